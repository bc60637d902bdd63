"""zip and tar archives of class folders, read in place.

A zip and a plain tar are read member by member where they lie. A compressed tar can only be read from its beginning,
so its images are taken into memory once, up to 2 GiB. Members that could do harm are left out and named: links,
absolute names, names with .., bombs, names that come twice.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from skipway.data.files import FileSource, Names, file_source
from skipway.data.images.decode import is_image_name
from skipway.data.sources.folder import group_by_name
from skipway.data.sources.layout import SPLIT_NAMES, arrange, is_litter, refuse
from skipway.data.sources.tar_index import (
    BROKEN,
    MAX_MEMBER,
    MAX_MEMBERS,
    MORE,
    NO_END,
    RAW,
    Bytes,
    DiskBytes,
    MemberFiles,
    Members,
    MemoryBytes,
    digest,
    scan_tar,
    tar_members,
    unsafe,
)
from skipway.data_spec import DataSpec
from skipway.errors import InputError

IN_MEMORY = 2 << 30  # bytes of images that are taken out of a compressed tar
UNPACKED = 4 << 30  # bytes of a compressed tar that are looked at
_UNPACKERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)


def open_archive(path: Path, spec: DataSpec, *, fault: Callable[[str], None] = refuse) -> FileSource:
    """Open a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz of class folders, with split folders above them or without.

    A folder that holds all the rest, as `zip -r photos.zip photos/` makes it, is looked through.

    Args:
        path: the archive; only read.
        spec: how to read and group, and whether a bad file stops.
        fault: what to do about a class that cannot be used, as in `arrange`.

    Raises:
        InputError: damaged beyond use, no images in class folders, or a compressed tar of more than 2 GiB.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".zip":
            found, source = scan_zip(path), cast(Bytes, DiskBytes([path]))
        elif suffix in _UNPACKERS:
            found, source = _stream(path, _UNPACKERS[suffix])
        else:
            found, source = scan_tar(path), DiskBytes([path])
    except InputError:
        raise
    except (*BROKEN, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{path} is not a whole {suffix[1:]} archive: {error}") from error
    paths, places, folders = _without_top(found)
    layout = arrange(paths, folders, str(path), fault=fault)
    rows = found.rows()[[places[i] for i in layout.order]]
    names = Names.of(paths[i] for i in layout.order)
    facts = path.stat()
    where = os.path.abspath(path), facts.st_size, facts.st_mtime_ns
    files = MemberFiles(source, rows, names, digest(where, names.blob, names.ends, rows))
    groups = group_by_name(names, spec.group) if spec.group else None
    bad = {**layout.bad, **found.bad}
    return file_source(files, layout.labels, layout.classes, layout.splits, spec, groups=groups, bad=bad)


def scan_zip(path: Path) -> Members:
    """The members of a zip, by its directory alone. Raises zipfile.BadZipFile and what else zipfile does."""
    found = Members()
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise InputError(f"{path} has {len(infos):,} members; up to {MAX_MEMBERS:,} are read")
    for info in infos:
        name = _zip_name(info)
        if name.endswith("/"):
            if not unsafe(name):
                found.folders.add(name.rstrip("/"))
            continue
        mode, fault = info.external_attr >> 16, ""
        if stat.S_ISLNK(mode):
            fault = "a link"
        elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            fault = "not a regular file"
        elif info.flag_bits & 0x41:
            fault = "encrypted: unpack the archive with its password first"
        elif info.compress_type not in _METHODS:
            fault = f"packed by method {info.compress_type}, which is not read: zip it with deflate"
        row = (0, info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
        found.take(name.removeprefix("./"), row, fault)
    return found


def _zip_name(info: zipfile.ZipInfo) -> str:
    r"""The name, with / between the parts.

    Where it is not marked as UTF-8, zipfile takes it for code page 437; archivers that forget the mark are common.
    """
    name = info.filename
    if not info.flag_bits & 0x800:
        with contextlib.suppress(ValueError):
            name = name.encode("cp437").decode()
    return name if "/" in name else name.replace("\\", "/")


class _Bounded:
    """A stream that unpacks, up to a bound.

    Args:
        stream: the unpacked side.
        limit: bytes.
        path: for the message.
    """

    def __init__(self, stream: IO[bytes], limit: int, path: Path):
        self._stream, self._limit, self._path, self.done = stream, limit, path, 0

    def read(self, size: int) -> bytes:
        """The next bytes. Raises InputError beyond the bound."""
        data = self._stream.read(size)
        self.done += len(data)
        if self.done > self._limit:
            raise _too_much(f"{self._path} unpacks to", self._limit)
        return data


def _stream(path: Path, unpacker: Callable[..., Any]) -> tuple[Members, MemoryBytes]:
    """The members of a compressed tar, their images in memory."""
    found, blob, damage = Members(), bytearray(), {}
    limit = min(UNPACKED, max(64 << 20, 200 * path.stat().st_size))
    with unpacker(path, "rb") as stream:
        bounded = _Bounded(stream, limit, path)
        with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r|") as tar:
            for name, info, fault in tar_members(tar, damage):
                if info.isdir():
                    if name not in ("", ".") and not unsafe(name):
                        found.folders.add(name)
                    continue
                wanted = not fault and is_image_name(name) and info.size <= MAX_MEMBER
                try:
                    data = cast(IO[bytes], tar.extractfile(info)).read() if wanted else b""
                except InputError:
                    raise
                except BROKEN as error:
                    damage[name] = f"the archive is damaged: {error}"
                    break
                if found.take(name, (0, len(blob), info.size, info.size, RAW, 0), fault):
                    blob += data
                if len(blob) > IN_MEMORY:
                    raise _too_much(f"the images in {path} take", IN_MEMORY)
            if not damage and bounded.done < tar.offset + tarfile.BLOCKSIZE:
                damage[f"after byte {tar.offset:,}"] = NO_END
            elif not damage and cast(Any, tar).fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
                damage[f"after byte {tar.offset:,}"] = MORE
    found.bad |= damage
    return found, MemoryBytes(np.frombuffer(blob, np.uint8))


def _too_much(what: str, limit: int) -> InputError:
    return InputError(
        f"{what} more than the {limit / 2**30:.2g} GiB that a compressed tar may take in memory; unpack it into a "
        "folder, or pack it as a plain .tar or a .zip, which are read in place"
    )


def _without_top(found: Members) -> tuple[list[str], list[int], list[str]]:
    """Paths without folders that hold everything, their places, and the folders alike."""
    paths, places = found.names, list(range(len(found.names)))
    folders = {folder for folder in found.folders if not is_litter(folder)}
    for path in paths:
        above = path.rpartition("/")[0]
        while above and above not in folders:
            folders.add(above)
            above = above.rpartition("/")[0]
    while top := _common_top([path for path in paths if is_image_name(path)], folders):
        for path in paths:
            if "/" in path and not path.startswith(top):
                found.bad[path.split("/")[0]] = f"stands beside {top[:-1]}, which holds the images"
        inside = [i for i, path in enumerate(paths) if path.startswith(top)]
        paths, places = [paths[i].removeprefix(top) for i in inside], [places[i] for i in inside]
        folders = {folder.removeprefix(top) for folder in folders if folder.startswith(top)}
    return paths, places, sorted(folders)


def _common_top(images: list[str], folders: set[str]) -> str:
    """The folder that holds all images, in folders of their own, with a / behind it; "" where there is none."""
    tops = {path.split("/")[0] if "/" in path else "" for path in images}
    top = next(iter(tops)) if len(tops) == 1 else ""
    if not top or top.lower() in SPLIT_NAMES:
        return ""
    direct = sum(path.count("/") == 1 for path in images)
    return f"{top}/" if 2 * direct < len(images) else ""

"""Members of archives as rows of one array, read in place: nothing is unpacked to disk.

Rows and names are flat arrays, so a million members are cheap and worker processes share them. Reads give their own
offset (pread), so processes that were forked with a file open cannot move it under each other.
"""

import bz2
import contextlib
import hashlib
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from skipway.data.files import Names
from skipway.data.sources.layout import is_litter
from skipway.errors import InputError, ReadError

MAX_MEMBER = 256 << 20  # bytes of one member, unpacked
MAX_MEMBERS = 20_000_000
MAX_RATIO = 200  # unpacked to packed, for members over 1 MiB; photos reach 1, flat bitmaps some dozens
RAW = -1  # the method of bytes that lie there as they are
COLUMNS = ("part", "offset", "packed", "size", "method", "crc")
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
    MemoryError,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
)  # fmt: skip  (what tarfile and the unpackers raise on hostile bytes)
MORE = "the archive is damaged: what follows is not read"
NO_END = "the archive has no end mark: it is cut short"
_DRIVE = re.compile(r"[A-Za-z]:")
_LOCAL_HEADER = 30


class Bytes(Protocol):
    """Where members lie: `read(part, offset, size)` gives up to so many bytes of a part. Raises OSError."""

    def read(self, part: int, offset: int, size: int) -> bytes: ...  # noqa: D102


class DiskBytes:
    """Files, each opened at its first read.

    Args:
        paths: they are the parts.
    """

    KEPT_OPEN = 256

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)
        self._open: dict[int, int] = {}

    def __getstate__(self) -> tuple[Path, ...]:
        return self.paths

    def __setstate__(self, paths: tuple[Path, ...]) -> None:
        self.paths, self._open = paths, {}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def read(self, part: int, offset: int, size: int) -> bytes:
        """As in Bytes."""
        if hasattr(os, "pread") and (part in self._open or len(self._open) < self.KEPT_OPEN):
            if part not in self._open:
                self._open[part] = os.open(self.paths[part], os.O_RDONLY)
            return os.pread(self._open[part], size, offset)
        with open(self.paths[part], "rb", buffering=0) as file:
            file.seek(offset)
            return file.read(size)


@dataclass(frozen=True)
class MemoryBytes:
    """One part, in memory: (bytes,) uint8."""

    blob: np.ndarray

    def read(self, part: int, offset: int, size: int) -> bytes:
        """As in Bytes."""
        return self.blob[offset : offset + size].tobytes()


@dataclass(frozen=True)
class MemberFiles:
    """Members of archives by number; implements Files.

    Args:
        source: where they lie.
        rows: (N, 6) int64, the COLUMNS.
        names: theirs.
        fingerprint: as in Files.
    """

    source: Bytes
    rows: np.ndarray
    names: Names
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The name inside the archive."""
        return str(self.names[index])

    def get(self, index: int) -> bytes:
        """The member, unpacked and checked. Raises ReadError."""
        part, offset, packed, size, method, crc = self.rows[index].tolist()
        try:
            if method != RAW:
                offset += _header_size(self.source.read(part, offset, _LOCAL_HEADER))
            data = _unpack(self.source.read(part, offset, packed), method, size)
        except OSError as error:
            raise ReadError(self.name(index), error.strerror or str(error)) from error
        except (ValueError, zlib.error) as error:
            raise ReadError(self.name(index), f"damaged in the archive: {error}") from error
        if len(data) != size:
            raise ReadError(self.name(index), f"cut short in the archive: {len(data)} of {size} bytes")
        if method != RAW and zlib.crc32(data) != crc:
            raise ReadError(self.name(index), "damaged in the archive: its checksum differs")
        return data


def _header_size(header: bytes) -> int:
    """Bytes from the local header of a zip member to its data."""
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise ValueError("no member begins where the directory says")
    return _LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))


def _unpack(data: bytes, method: int, size: int) -> bytes:
    """Unpacked, at most one byte more than there should be."""
    if method == zipfile.ZIP_DEFLATED:
        return zlib.decompressobj(-15).decompress(data, size + 1)
    if method == zipfile.ZIP_BZIP2:
        return bz2.BZ2Decompressor().decompress(data, size + 1)
    return data


@dataclass
class Members:
    """What was found in an archive: files as rows and names, folders, and what was left out and why."""

    names: list[str] = field(default_factory=list)
    values: array = field(default_factory=lambda: array("q"))
    folders: set[str] = field(default_factory=set)
    bad: dict[str, str] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def take(self, name: str, row: Sequence[int], fault: str = "") -> bool:
        """Take a file in, its row as the COLUMNS, or note why not. Litter is passed over."""
        packed, size = row[2], row[3]
        if is_litter(name) and not unsafe(name):
            return False
        if name in self._seen and not fault:
            self.bad[f"{name} (again)"] = "a second member of this name; the first is read"
            return False
        fault = fault or unsafe(name) or _too_large(packed, size)
        self._seen.add(name)
        if fault:
            self.bad[name] = fault
            return False
        self.names.append(name)
        self.values.extend(row)
        return True

    def rows(self) -> np.ndarray:
        """(N, 6) int64."""
        return np.array(self.values, np.int64).reshape(-1, len(COLUMNS))


def unsafe(name: str) -> str:
    """Why a member's name is not to be trusted; "" where it is."""
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        return "an absolute name"
    if ".." in name.replace("\\", "/").split("/"):
        return "a name that leads out of the archive (..)"
    return "a name with a NUL in it" if "\0" in name else ""


def _too_large(packed: int, size: int) -> str:
    if not size:
        return "empty (0 bytes)"
    if max(size, packed) > MAX_MEMBER:
        return f"{max(size, packed):,} bytes are more than the {MAX_MEMBER:,} that are read"
    if size > 1 << 20 and size > MAX_RATIO * packed:
        return f"unpacks to {size // max(packed, 1):,} times its size: a bomb, not a photo"
    return ""


def tar_members(tar: tarfile.TarFile, bad: dict[str, str]) -> Iterator[tuple[str, tarfile.TarInfo, str]]:
    """The members of an open tar one by one: name, header, fault ("" for a plain file or folder).

    A tar that breaks off is read up to there, and what is behind is noted in `bad`.
    """
    count, reached = 0, -1
    while True:
        try:
            info = tar.next()
        except InputError:
            raise
        except BROKEN as error:
            bad[f"after member {count:,}"] = f"the archive is damaged: {error}"
            return
        if info is None:
            return
        if tar.offset <= reached or info.size < 0:  # older tarfiles follow sizes below zero, round and round
            bad[f"after member {count:,}"] = "the archive is damaged: a size below zero"
            return
        if count >= MAX_MEMBERS:
            bad[f"after member {count:,}"] = "more members than are read"
            return
        reached = tar.offset
        tar.members.clear()  # pyrefly: ignore[missing-attribute]  (they would pile up, one object each)
        count += 1
        name = info.name.removeprefix("./").rstrip("/")
        fault = ""
        if info.issym() or info.islnk():
            fault = "a link"
        elif info.issparse():
            fault = "a sparse file"
        elif not (info.isreg() or info.isdir()):
            fault = "not a regular file"
        yield name, info, fault


def scan_tar(path: Path, part: int = 0) -> Members:
    """The members of a plain tar, by their headers alone.

    Raises:
        OSError, tarfile.TarError: it cannot be opened as one.
    """
    found, damage = Members(), {}
    end = path.stat().st_size
    with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for name, info, fault in tar_members(tar, damage):
            if info.isdir():
                if name not in ("", ".") and not unsafe(name):
                    found.folders.add(name)
                continue
            if not fault and info.offset_data + info.size > end:
                fault = "cut short: the archive ends before it"
            found.take(name, (part, info.offset_data, info.size, info.size, RAW, 0), fault)
        check_end(file, tar.offset, damage)
    found.bad |= damage
    return found


def check_end(file: IO[bytes], offset: int, bad: dict[str, str]) -> None:
    """Note in `bad`, where nothing is said yet, that a tar goes on behind its last member, or breaks off there."""
    if bad:
        return
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        bad[f"after byte {offset:,}"] = MORE
    elif not block:
        bad[f"after byte {offset:,}"] = NO_END


def digest(*parts: Any) -> str:
    """A hash over arrays and text."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
        hashed.update(b"\0")
    return hashed.hexdigest()

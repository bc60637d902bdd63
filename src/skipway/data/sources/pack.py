"""`pack`: any data set as shards, tar files of a fair sample each, which disks and networks read in one go.

Encoded files are copied byte for byte; images that live in memory become PNG, deep ones .npy, so pixels stay as they
are. Names, order and headers are functions of the data and the seed: packing twice gives the same bytes.
"""

import contextlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from skipway import randomness
from skipway.data.files import FileSource
from skipway.data.images.decode import read_header
from skipway.data.images.opened import content
from skipway.data.images.reading import SUFFIXES, SUFFIXES_OF
from skipway.data.open import open_source
from skipway.data.source import Source, is_multilabel
from skipway.data.sources.packed import NpySource, to_npy
from skipway.data.sources.shards import FACTS, FORMAT, UNFINISHED
from skipway.data_spec import DataSpec
from skipway.errors import InputError, ReadError


@dataclass(frozen=True)
class Packed:
    """What `pack` wrote.

    Args:
        folder: where.
        samples: how many of each split.
        shards: how many files.
        bytes: of all of them.
        bad: samples left out -> reason.
    """

    folder: Path
    samples: dict[str, int]
    shards: int
    bytes: int
    bad: dict[str, str]


def pack(
    data: str | Path | DataSpec | Source,
    out: str | Path,
    *,
    shard_size_mb: float = 256,
    seed: int = 0,
    console: Console | None = None,
) -> Packed:
    """Write a data set as shards in WebDataset's layout, with a shards.json that tells classes and splits.

    A sample is its image, a .json (class name, the sample's own name, its group) and, where it has one class, a
    .cls (its number). Samples are dealt to the shards of their split at random.

    Args:
        data: whatever `train` takes, or a Source. It is only read.
        out: a new or empty folder. It appears when it is whole.
        shard_size_mb: millions of bytes; a shard ends with the sample that reaches them.
        seed: of the deal.
        console: where the bar is shown.

    Raises:
        InputError: data that cannot be opened, a folder that holds something, no space.
        ReadError: a bad sample, and they are to stop.

    Example:
        >>> skipway.pack("photos/", "shards/").samples  # doctest: +SKIP
        {'train': 245, 'val': 153}
    """
    if not 0 < shard_size_mb <= 1e6:
        raise InputError(f"shard_size_mb must lie in 0 ... 1,000,000, got {shard_size_mb}")
    spec = data if isinstance(data, DataSpec) else DataSpec(path=str(data) if isinstance(data, str | Path) else "")
    out = Path(os.path.abspath(out))
    _check_place(out, spec.path)
    source = open_source(spec) if isinstance(data, str | Path | DataSpec) else data
    writer = _Writer(source, max(int(shard_size_mb * 1e6), 1), bad=dict(source.bad), stop=spec.bad_files == "stop")
    beside = _make_beside(out)
    try:
        facts = {split: writer.split(split, part, beside, seed, console) for split, part in _splits(source).items()}
        _write_facts(source, facts, seed, beside)
        (beside / UNFINISHED).unlink()
        with contextlib.suppress(FileNotFoundError):
            out.rmdir()
        os.rename(beside, out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shards = [shard for entry in facts.values() for shard in entry["shards"]]
    samples = {split: entry["samples"] for split, entry in facts.items()}
    return Packed(out, samples, len(shards), sum(shard["bytes"] for shard in shards), writer.bad)


def _splits(source: Source) -> dict[str, Tensor]:
    return source.splits or {"all": torch.arange(len(source))}


def _check_place(out: Path, data: str) -> None:
    """Nothing of the user's is written over or into."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something already: name a new folder for the shards")
    root = Path(os.path.expanduser(data))
    if data and root.is_dir() and out.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{out} lies inside the data: name a folder outside {root}")


def _make_beside(out: Path) -> Path:
    """The folder that is written before it takes its name; what a killed run left in it is removed."""
    beside = out.with_name(f"{out.name}.packing")
    try:
        if beside.is_dir() and (beside / UNFINISHED).is_file():
            if _alive(beside / UNFINISHED):
                raise InputError(f"{out} is being packed by another process")
            shutil.rmtree(beside)
        beside.mkdir(parents=True)
        (beside / UNFINISHED).write_text(json.dumps({"process": os.getpid()}), encoding="utf-8")
    except FileExistsError as error:
        raise InputError(f"{beside} is in the way: move it") from error
    except OSError as error:
        raise InputError(f"{beside} cannot be written: {error.strerror or error}") from error
    return beside


def _alive(note: Path) -> bool:
    try:
        process = int(json.loads(note.read_text(encoding="utf-8"))["process"])
        os.kill(process, 0)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return False
    return True


def _write_facts(source: Source, facts: dict[str, Any], seed: int, folder: Path) -> None:
    what = {
        "format": FORMAT,
        "classes": list(source.classes),
        "multi_label": is_multilabel(source),
        "channels": source.channels,
        "deep": source.deep,
        "seed": seed,
        "splits": facts,
    }
    (folder / FACTS).write_text(json.dumps(what, indent=1) + "\n", encoding="utf-8")


@dataclass
class _Writer:
    """Writes samples of a source.

    Args:
        source: whose.
        limit: bytes of a shard.
        bad: those that could not be read.
        stop: whether such a one stops.
    """

    source: Source
    limit: int
    bad: dict[str, str] = field(default_factory=dict)
    stop: bool = False

    def split(self, split: str, part: Tensor, folder: Path, seed: int, console: Console | None) -> dict[str, Any]:
        """The shards of one split, and what shards.json says of them."""
        console = console or Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
        )
        order = randomness.order(part, seed=seed, epoch=0).tolist()
        shards: list[dict[str, Any]] = []
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            samples = iter(self._samples(bars.track(order, description=f"packing {split}")))
            sample = next(samples, None)
            while sample is not None:
                name = f"{split}-{len(shards):06}.tar"
                count = 0
                with open(folder / f"{name}.tmp", "wb") as file:
                    while sample is not None and file.tell() < self.limit:
                        for member, data in sample:
                            _add(file, member, data)
                        count += 1
                        sample = next(samples, None)
                    file.write(bytes(2 * tarfile.BLOCKSIZE))
                    size = file.tell()
                os.replace(folder / f"{name}.tmp", folder / name)
                shards.append({"name": name, "samples": count, "bytes": size})
        return {"samples": sum(shard["samples"] for shard in shards), "shards": shards}

    def _samples(self, order: Any) -> Iterator[list[tuple[str, bytes]]]:
        """The members of each sample."""
        for index in order:
            try:
                image, suffix = _image(self.source, index)
            except ReadError as error:
                if self.stop:
                    raise
                self.bad[error.name] = error.reason
                continue
            key = f"{index:08}"
            yield [(f"{key}.{suffix}", image), *_label(self.source, index, key)]


def _image(source: Source, index: int) -> tuple[bytes, str]:
    """A sample's image as it goes into the shard, and the ending of its name. Raises ReadError."""
    if isinstance(source, NpySource):
        return content(source.files.get(index)), "npy"
    if isinstance(source, FileSource):
        file = source.files.get(index)
        try:
            data = content(file)
        except OSError as error:
            raise ReadError(source.name(index), error.strerror or str(error)) from error
        name = source.name(index).lower()
        endings = [ending for ending in SUFFIXES if name.endswith(ending)]
        if endings:
            return data, max(endings, key=len)[1:]
        return data, SUFFIXES_OF[read_header(data, source.name(index)).format][0][1:]
    image = source.read(index)
    if source.deep:
        return to_npy(image), "npy"
    pixels = image.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue(), "png"


def _label(source: Source, index: int, key: str) -> list[tuple[str, bytes]]:
    """A sample's label, by name, and by number where it is one."""
    label, members = source.labels[index], []
    facts: dict[str, Any] = {"name": source.name(index)}
    if source.groups is not None:
        facts["group"] = int(source.groups[index])
    if label.ndim:
        facts["classes"] = [source.classes[i] for i in label.nonzero()[:, 0].tolist()]
    else:
        facts["class"] = source.classes[int(label)]
        members.append((f"{key}.cls", str(int(label)).encode()))
    return [*members, (f"{key}.json", json.dumps(facts, sort_keys=True).encode())]


def _add(file: BinaryIO, name: str, data: bytes) -> None:
    """One member, with a header that tells nothing of when and by whom."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    file.write(info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
    file.write(data)
    file.write(bytes(-len(data) % tarfile.BLOCKSIZE))

"""Encoded images wherever they lie, by number: on disk, in an archive, in a column of bytes. And the source over them.

Names are one array of bytes, not a list of strings: worker processes share it, and a million of them open at once.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from skipway.data.images.decode import decode, read_header, warm_up
from skipway.data.images.reading import PHOTO, SCANS, Header, Reading
from skipway.data.pool import Overrun, Pool, num_workers
from skipway.data.source import only
from skipway.data_spec import DataSpec
from skipway.errors import InputError, ReadError, for_example, stopped_by

HEADERS_UP_TO = 20_000  # sets of more files have the headers of a sample read when they are opened
SAMPLE = 2_000


class Files(Protocol):
    """Encoded images by number.

    Attributes:
        fingerprint: changes when a file may have changed; "" where that cannot be known.
    """

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person calls the file."""
        ...

    def get(self, index: int) -> str | bytes:
        """The file: a path, or its bytes. Raises ReadError."""
        ...


class Names:
    """Strings in one array of bytes.

    Args:
        blob: (bytes,) uint8, one name behind the other.
        ends: (N,) int64, where each name ends.
    """

    def __init__(self, blob: np.ndarray, ends: np.ndarray):
        self.blob, self.ends = blob, ends

    @staticmethod
    def of(names: Iterable[str]) -> "Names":
        """From strings; they may hold what the file system's encoding could not say."""
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        return Names(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.blob[start : int(self.ends[index])].tobytes())


@dataclass(frozen=True)
class DiskFiles:
    """Files below a folder.

    Args:
        root: the folder.
        names: paths below it (or absolute ones).
        fingerprint: as in Files.
    """

    root: Path
    names: Names
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The path below the folder."""
        return self.names[index]

    def get(self, index: int) -> str:
        """The path, as text: a Path of each image would intern its name."""
        return os.path.join(self.root, self.names[index])


@dataclass(frozen=True)
class BytesFiles:
    """Encoded images in memory, one behind the other.

    Args:
        blob: (bytes,) uint8.
        ends: (N,) int64, where each ends.
        title: they are called "title[index]".
        names: or so, where given.
    """

    blob: np.ndarray
    ends: np.ndarray
    title: str
    names: Names | None = None
    fingerprint: str = ""

    @staticmethod
    def of(blobs: Iterable[bytes], title: str, names: Names | None = None) -> "BytesFiles":
        """From byte strings; the fingerprint is a hash of them all."""
        kept = list(blobs)
        blob = b"".join(kept)
        ends = np.cumsum(np.fromiter(map(len, kept), np.int64, len(kept)))
        digest = hashlib.sha256(blob + ends.tobytes()).hexdigest()
        return BytesFiles(np.frombuffer(blob, np.uint8), ends, title, names, digest)

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, index: int) -> str:
        """The given name, else `title[index]`."""
        return f"{self.title}[{index}]" if self.names is None else self.names[index]

    def get(self, index: int) -> bytes:
        """The bytes."""
        start = int(self.ends[index - 1]) if index else 0
        return self.blob[start : int(self.ends[index])].tobytes()


@dataclass(frozen=True)
class FileSource:
    """A data set of encoded images, decoded when read; implements Source.

    Args:
        files: the encoded images.
        labels, classes, splits, groups, size, bad: as in Source.
        reading: how they become tensors.
    """

    files: Files
    labels: Tensor
    classes: tuple[str, ...]
    splits: dict[str, Tensor]
    reading: Reading = PHOTO
    size: tuple[int, int] | None = None
    groups: Tensor | None = None
    bad: dict[str, str] = field(default_factory=dict)
    images: Tensor | None = None  # never: it lives on disk

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.reading.channels

    @property
    def deep(self) -> bool:
        """Whether images are float32."""
        return self.reading.deep

    @property
    def fingerprint(self) -> str:
        """That of the files."""
        return self.files.fingerprint

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """That of the file."""
        return self.files.name(index)

    def read(self, index: int, at_least: int = 0) -> Tensor:
        """One image, (C, H, W) uint8 or float32. Raises ReadError."""
        return decode(self.files.get(index), self.reading, self.files.name(index), at_least=at_least)


def file_source(
    files: Files,
    labels: Tensor,
    classes: tuple[str, ...],
    splits: dict[str, Tensor],
    spec: DataSpec,
    *,
    groups: Tensor | None = None,
    bad: dict[str, str] | None = None,
) -> FileSource:
    """The source over some files, once their headers were read: all of up to 20,000, else of a sample.

    Args:
        files, labels, classes, groups: as in FileSource.
        splits: as in Source; {} for one undivided set. Files whose header is bad drop out of them.
        spec: how to read, how many processes, and whether a bad file stops.
        bad: files that were left out already: name -> reason.

    Raises:
        ReadError: a bad file, and they are to stop.
        InputError: none can be read.
    """
    count = len(files)
    if count:
        warm_up(files.name(0))
    looked_at = (
        range(count)
        if count <= HEADERS_UP_TO or isinstance(files, BytesFiles)
        else np.linspace(0, count - 1, SAMPLE).astype(int).tolist()
    )
    headers, found = read_headers(files, looked_at, spec.workers)
    bad = {**(bad or {}), **{files.name(index): reason for index, reason in found.items()}}
    if bad and spec.bad_files == "stop":
        raise stopped_by(bad)
    if not headers:
        raise InputError(f"none of the {count:,} images in {spec.path} can be read{for_example(bad)}")
    good = torch.ones(count, dtype=torch.bool)
    if spec.bad_files != "replace":  # else they stay, for the loader to replace
        good[list(found)] = False
    kept = only(splits or {"all": torch.arange(count)}, good)
    if spec.window == "auto" and any(h.format in SCANS and h.grey and not h.windowed for h in headers):
        spec = replace(spec, window="full")  # one scale for all, where some say none
    deep = any(header.deep for header in headers)
    channels = 1 if deep and all(header.grey for header in headers) else 3
    sizes = {(header.height, header.width) for header in headers}
    size = sizes.pop() if len(sizes) == 1 and len(headers) + len(found) == count else None
    return FileSource(files, labels, classes, kept, Reading.of(spec, channels, deep=deep), size, groups, bad)


@dataclass(frozen=True)
class _ReadHeader:
    """The job of a worker: index -> header or error."""

    files: Files

    def __call__(self, index: int) -> Header | ReadError:
        try:
            return read_header(self.files.get(index), self.files.name(index))
        except ReadError as error:
            return error


def read_headers(files: Files, indices: Sequence[int], workers: int) -> tuple[list[Header], dict[int, str]]:
    """The headers of some files, read by bounded processes, and why the others have none: index -> reason."""
    headers, bad = [], {}
    chunks = [indices[start : start + 64] for start in range(0, len(indices), 64)]
    with Pool(_ReadHeader(files), workers=min(num_workers(workers), len(chunks))) as pool:
        for chunk, results in zip(chunks, pool.map(chunks), strict=True):
            for index, result in zip(chunk, results, strict=True):
                if isinstance(result, (ReadError, Overrun)):
                    bad[index] = result.reason
                else:
                    headers.append(result)
    return headers, bad

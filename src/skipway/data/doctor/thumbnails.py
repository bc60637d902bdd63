"""One look at every image: each is decoded once, and what the doctor asks about it is kept in one row of a table.

Files are read by processes bounded in time and memory, as in training; what cannot be read gets a reason instead.
"""

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipway.data.doctor.alignment import shrink
from skipway.data.doctor.duplicates import SIDE
from skipway.data.files import Files, read_headers
from skipway.data.images.decode import read_header
from skipway.data.images.opened import content
from skipway.data.images.reading import Header
from skipway.data.pool import TIME_LIMIT_S, Overrun, Pool, num_workers
from skipway.data.source import Source
from skipway.errors import ReadError

LOOK = np.dtype(
    [
        ("width", "i4"),  # pixels as stored, 0 where unknown
        ("height", "i4"),
        ("format", "S8"),  # as in Header; empty where there is no file
        ("mode", "S8"),
        ("orientation", "u1"),
        ("cut", "?"),  # it decodes, but the file's end is missing
        ("bytes", "i8"),
        ("content", "V16"),  # hash of the file
        ("pixels", "V16"),  # hash of the decoded image
        ("mean", "f4", 3),
        ("square", "f4", 3),  # mean of squares
        ("seconds", "f4"),  # to decode
        ("thumb", "u1", (SIDE, SIDE)),  # grey, squashed
    ]
)
ON_DISK_FROM = 200_000  # rows: larger tables lie in a temporary file
MEASURED = 1_000_000  # pixels of an image that its mean and deviation are measured on, roughly
TAIL_UP_TO = 64 << 20  # bytes of a file whose end is looked for
GREY = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
CHUNK = 8
GLANCE_UP_TO = 20_000  # images that are looked at without decoding
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Looks:
    """What was seen.

    Args:
        table: (N,) of LOOK, a row for each sample of the source; zeros where it was not read.
        seen: (n,) int64, the samples that were read, in order.
        unreadable: sample -> why it could not be.
    """

    table: np.ndarray
    seen: np.ndarray
    unreadable: dict[int, str]


def look_at(source: Source, samples: Tensor, workers: int, *, progress: Progress | None = None) -> Looks:
    """Decode images and note what there is to see.

    Args:
        source: of any kind.
        samples: (n,) int64, which.
        workers: processes, as in DataSpec.
        progress: called with (done, total).
    """
    count = len(source)
    table = np.zeros(count, LOOK) if count < ON_DISK_FROM else _on_disk(count)
    unreadable: dict[int, str] = {}
    chunks = [part.tolist() for part in samples.sort().values.split(CHUNK)]
    images = source.images
    processes = 0 if images is not None else min(num_workers(workers), len(chunks))
    done = 0
    with Pool(_Look(source), workers=processes, time_limit_s=2 * TIME_LIMIT_S) as pool:
        for chunk, rows in zip(chunks, pool.map(chunks), strict=True):
            for index, row in zip(chunk, rows, strict=True):
                if isinstance(row, (ReadError, Overrun)):
                    unreadable[index] = row.reason
                else:
                    table[index] = row
            done += len(chunk)
            if progress:
                progress(done, len(samples))
    bad = np.fromiter(unreadable, np.int64, len(unreadable))
    return Looks(table, np.setdiff1d(samples.numpy(), bad), unreadable)


def glance_at(source: Source, samples: Tensor, workers: int) -> Looks:
    """What can be seen without decoding: headers, and the hash of files that another one has the size of.

    Images in memory get the hash of their pixels. Of more than GLANCE_UP_TO images nothing is seen.
    """
    table, seen = np.zeros(len(source), LOOK), samples.sort().values
    files: Any = getattr(source, "files", None)
    images = source.images
    if len(seen) > GLANCE_UP_TO or (files is None and images is None):
        return Looks(table, np.empty(0, np.int64), {})
    if images is not None:
        for index in seen.tolist():
            table["content"][index] = _hash(images[index].contiguous().numpy()).digest()
        table["width"][seen], table["height"][seen] = images.shape[3], images.shape[2]
        return Looks(table, seen.numpy(), {})
    headers, unreadable = read_headers(files, seen.tolist(), workers)
    read = [index for index in seen.tolist() if index not in unreadable]
    for index, header in zip(read, headers, strict=True):
        _note_header(table[index], header)
    with contextlib.suppress(ReadError, OSError):  # what went away meanwhile, training will name
        _hash_twins(table, files, np.array(read, np.int64))
    return Looks(table, np.array(read, np.int64), unreadable)


def _hash_twins(table: np.ndarray, files: Files, samples: np.ndarray) -> None:
    """Hash the files that are not alone in their size; the others get their number, which no hash is equal to."""
    found = {index: files.get(index) for index in samples.tolist()}
    for index, file in found.items():
        table["bytes"][index] = os.path.getsize(file) if isinstance(file, str) else len(file)
        table["content"][index] = index.to_bytes(16, "big")
    _, inverse, counts = np.unique(table["bytes"][samples], return_inverse=True, return_counts=True)
    for index in samples[counts[inverse] > 1].tolist():
        file = found[index]
        table["content"][index] = _hash(content(file)).digest()


def _on_disk(count: int) -> np.ndarray:
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, LOOK, "w+", shape=(count,))  # the file goes with the array


@dataclass(frozen=True)
class _Look:
    """A worker's job: sample -> its row, or the error."""

    source: Source

    def __call__(self, index: int) -> np.ndarray | ReadError:
        row = np.zeros((), LOOK)
        try:
            files = getattr(self.source, "files", None)
            if files is not None:
                _look_at_file(row, files, index)
            began = time.perf_counter()
            image = self.source.read(index)
            row["seconds"] = time.perf_counter() - began
        except ReadError as error:
            return error
        _look_at_pixels(row, image)
        return row


def _look_at_file(row: np.ndarray, files: Files, index: int) -> None:
    """What the encoded file says. Raises ReadError."""
    name, file = files.name(index), files.get(index)
    header = read_header(file, name)
    _note_header(row, header)
    try:
        if isinstance(file, str):
            row["bytes"] = os.path.getsize(file)
            with open(file, "rb") as opened:
                digest = hashlib.file_digest(opened, _hash)
                opened.seek(0)
                data = opened.read() if row["bytes"] <= TAIL_UP_TO else b""
        else:
            row["bytes"], digest, data = len(file), _hash(file), file
    except OSError as error:
        raise ReadError(name, error.strerror or "cannot be read") from error
    row["content"] = digest.digest()
    row["cut"] = bool(data) and is_cut(data, header.format)


def _note_header(row: np.ndarray | np.void, header: Header) -> None:
    row["width"], row["height"], row["orientation"] = header.width, header.height, header.orientation
    row["format"], row["mode"] = header.format.encode(), header.mode.encode()


def is_cut(data: bytes, kind: str) -> bool:
    """Whether an encoded file ends before its format says it does."""
    if kind == "JPEG":
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if kind == "PNG":
        return b"IEND" not in data[-4096:] and b"IEND" not in data
    if kind == "WEBP":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    return False


def _hash(data: Any = b"") -> Any:
    return hashlib.blake2b(data, digest_size=16)


def _look_at_pixels(row: np.ndarray, image: Tensor) -> None:
    """What the decoded image says, (C, H, W)."""
    channels, height, width = image.shape
    if not row["width"]:
        row["width"], row["height"] = width, height
    pixels = image.permute(1, 2, 0).contiguous().numpy()  # as they come from a file: nothing is copied
    digest = _hash(f"{pixels.shape}{pixels.dtype}".encode())
    digest.update(pixels)
    row["pixels"] = digest.digest()
    step = max(int((height * width / MEASURED) ** 0.5), 1)
    white = 255 if image.dtype == torch.uint8 else 1
    values = image[:, ::step, ::step].flatten(1).float() / white
    row["mean"][:channels], row["square"][:channels] = values.mean(1).numpy(), values.square().mean(1).numpy()
    small = shrink(image[None], SIDE)[0].float()
    grey = (small * GREY).sum(0) if channels == 3 else small[0]
    if image.dtype != torch.uint8:
        grey = torch.nan_to_num(grey)
        grey = (grey - grey.amin()) * (255 / (grey.amax() - grey.amin()).clamp(min=1e-12))
    row["thumb"] = grey.round().clamp(0, 255).to(torch.uint8).numpy()

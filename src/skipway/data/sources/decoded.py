"""Decode a whole set of small images of one size into memory, once: the pixels are kept in the cache and mapped later.

This is for sets that live in memory as they are; keep.py keeps what was fitted to a network's size.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skipway.cache import cache_folder, keep_arrays, kept_arrays
from skipway.data.files import HEADERS_UP_TO, FileSource, read_headers
from skipway.data.pool import Overrun, Pool, SharedArray, num_workers
from skipway.data.source import ArraySource, only
from skipway.data_spec import DataSpec
from skipway.errors import InputError, ReadError, for_example, stopped_by

FORMAT = "decoded-2"
IN_MEMORY = 2 << 30  # bytes of pixels up to which a set is decoded into memory
KEEP_FROM = 2_000  # images from which on the pixels are kept; fewer are decoded as fast as found
CHUNK = 64


@dataclass(frozen=True)
class Decoded:
    """images (N, C, H, W) uint8 or float32, and index -> why that one could not be decoded (it is black)."""

    images: Tensor
    bad: dict[int, str]


def load(fingerprint: str, spec: DataSpec) -> Decoded | None:
    """The pixels kept of these files, mapped; None where there are none."""
    kept = kept_arrays(_place(fingerprint, spec)) if spec.cache != "off" else None
    try:
        if kept is not None:
            bad = {int(index): str(reason) for index, reason in kept[1]["bad"].items()}
            return Decoded(torch.from_numpy(kept[0]["pixels"]).permute(0, 3, 1, 2), bad)
    except (KeyError, ValueError, AttributeError):
        pass  # another's: decode again, and write it anew
    return None


def decode_all(source: FileSource, spec: DataSpec) -> Decoded | None:
    """Every image, by bounded processes; None where they are of several sizes, or too large in sum."""
    size = source.size
    if size is None and len(source) > HEADERS_UP_TO:  # not all headers were read: take it that they are alike, and see
        headers, _ = read_headers(source.files, [int(next(iter(source.splits.values()))[0])], spec.workers)
        size = (headers[0].height, headers[0].width) if headers else None
    dtype = np.dtype(np.float32 if source.deep else np.uint8)
    if size is None or len(source) * size[0] * size[1] * source.channels * dtype.itemsize > IN_MEMORY:
        return None
    shared = SharedArray((len(source), *size, source.channels), dtype)
    bad: dict[int, str] = {}
    tasks = [range(i, min(i + CHUNK, len(source))) for i in range(0, len(source), CHUNK)]
    with Pool(_DecodeInto(source, shared), workers=min(num_workers(spec.workers), len(tasks))) as pool:
        for task, results in zip(tasks, pool.map(tasks), strict=True):
            if "" in results:
                return None
            bad |= {i: r.reason if isinstance(r, Overrun) else r for i, r in zip(task, results, strict=True) if r}
    decoded = Decoded(torch.from_numpy(shared.array).permute(0, 3, 1, 2), bad)
    if len(source) >= KEEP_FROM and source.fingerprint and spec.cache != "off":
        keep_arrays(_place(source.fingerprint, spec), {"pixels": shared.array}, {"bad": bad})
    return decoded


def in_memory(decoded: Decoded, source: ArraySource, spec: DataSpec) -> ArraySource:
    """The source with these images, and without those that could not be decoded.

    Raises:
        ReadError: some could not, or were left out before, and they are to stop.
        InputError: none could.
    """
    bad = source.bad | {source.name(index): reason for index, reason in decoded.bad.items()}
    if bad and spec.bad_files == "stop":
        raise stopped_by(bad)
    good = torch.ones(len(source), dtype=torch.bool)
    good[list(decoded.bad)] = False
    splits = only(source.splits, good)
    if not splits:
        raise InputError(f"none of the {len(source):,} images in {spec.path} can be read{for_example(bad)}")
    return replace(source, images=decoded.images, splits=splits, bad=bad)


@dataclass(frozen=True)
class _DecodeInto:
    """A worker's job: index -> None where the image now lies in its place, else why not; "": of another size."""

    source: FileSource
    pixels: SharedArray  # (N, H, W, C)

    def __call__(self, index: int) -> str | None:
        try:
            image = self.source.read(index).permute(1, 2, 0).numpy()
        except ReadError as error:
            return error.reason
        if image.shape != self.pixels.array.shape[1:]:
            return ""
        self.pixels.array[index] = image
        return None


def _place(fingerprint: str, spec: DataSpec) -> Path:
    """Where the pixels are kept: a name of all that they depend on."""
    what = json.dumps([FORMAT, fingerprint, spec.window, spec.frame, spec.slice_axis])
    return cache_folder() / "decoded" / f"{hashlib.sha256(what.encode()).hexdigest()[:24]}.safetensors"

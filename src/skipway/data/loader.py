"""Batches: sliced out of memory or out of the decoded cache, or read by processes that can be killed.

Order and size are the caller's. Whichever way they come, batches of the same order hold the same bits.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipway import randomness
from skipway.data.pool import Overrun, Pool, SharedArray, num_workers
from skipway.data.preprocess import Preprocess
from skipway.data.source import Source
from skipway.data_spec import DataSpec
from skipway.errors import ReadError, stopped_by

CHUNK = 32  # images a task of a worker, at most
AHEAD = 8  # tasks under way beyond the one waited for, at least
SLOT_BYTES = 256 << 20  # what images on their way may take
CANDIDATES = 10  # images tried in place of a bad one


@dataclass(frozen=True)
class Batch:
    """images (B, C, S, S) uint8 or float32, labels (B,) int64 or (B, K) uint8, indices (B,) int64 in the source;
    which one of the order's batches it is, from 0."""

    images: Tensor
    labels: Tensor
    indices: Tensor
    number: int = 0


@dataclass(frozen=True)
class Kept:
    """Images that are fitted already.

    Args:
        pixels: (n, S, S, C), or (n, C, S, S) where the channels come first.
        rows: (N,) int64, where a sample of the source lies among them, -1 for nowhere; None: at its own index.
        channels_first: the layout of pixels.
    """

    pixels: np.ndarray
    rows: Tensor | None = None
    channels_first: bool = False

    def has(self, index: int) -> bool:
        """Whether a sample is among them."""
        return self.rows is None or int(self.rows[index]) >= 0

    def has_all(self, indices: Tensor) -> bool:
        """Whether samples are."""
        return self.rows is None or bool((self.rows[indices] >= 0).all())

    def take(self, indices: Tensor) -> Tensor:
        """Some of them, (B, C, S, S). NumPy copies whole images at once, several times as fast as PyTorch does."""
        rows = indices if self.rows is None else self.rows[indices]
        picked = torch.from_numpy(self.pixels[rows.numpy()])
        return picked if self.channels_first else picked.permute(0, 3, 1, 2)


class Loader:
    """Batches of a source's images, fitted to the network's size.

    Args:
        source: the data.
        preprocess: whose fit applies.
        spec: how many processes, and what to do about bad files.
    """

    def __init__(self, source: Source, preprocess: Preprocess, spec: DataSpec):
        if source.deep != preprocess.reading.deep:  # scored on images of another depth: both are on 0 to 1
            preprocess = replace(preprocess, reading=replace(preprocess.reading, deep=source.deep))
        self.source, self.preprocess, self.spec = source, preprocess, spec
        self.bad: dict[str, str] = dict(source.bad)
        self._kept: Kept | None = None
        self._reader: _Reader | None = None
        self._single: Pool | None = None  # reads what stands in for a bad file
        self._known_bad: dict[int, str] = {}  # index -> reason, found while reading

    @property
    def in_memory(self) -> bool:
        """Whether images are at hand without decoding."""
        return self._kept is not None

    def keep(self, kept: "Kept", bad: dict[int, str]) -> None:
        """From now on take images from here; those in `bad` could not be read."""
        for index, reason in bad.items():
            self._note(index, reason)
        self._kept = kept

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Batches over `order`, (N,) int64 sample indices; the last one may be smaller.

        A file that cannot be read is noted in `bad` and, as asked, left out of its batch (which is then smaller, and
        passed over where it is empty) or replaced by another of its label.

        Raises:
            ReadError: a file cannot be read and bad files are to stop.
        """
        replace_bad = self.spec.bad_files == "replace"
        for number, (indices, images, errors) in enumerate(self.fitted(order, batch_size)):
            for place, reason in errors.items():
                self._note(int(indices[place]), reason)
            if errors:
                images, indices = images.clone(), indices.clone()
                good = torch.ones(len(indices), dtype=torch.bool)
                for place in errors:
                    found = self._substitute(order, int(indices[place])) if replace_bad else None
                    if found is None:
                        good[place] = False
                    else:
                        indices[place], images[place] = found
                images, indices = images[good], indices[good]
            if len(indices):
                yield Batch(images, self.source.labels[indices], indices, number)

    def read(self, index: int) -> Tensor:
        """One fitted image, (C, S, S). Raises ReadError."""
        if self._kept is not None and index not in self._known_bad and self._kept.has(index):
            return self._kept.take(torch.tensor([index]))[0]
        return read_fitted(self.source, self.preprocess, index)

    def close(self) -> None:
        """End the processes."""
        if self._reader:
            self._reader.pool.close()
        if self._single:
            self._single.close()
        self._reader = self._single = None

    def fitted(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, dict[int, str]]]:
        """(indices, images, {place in the batch: why it is bad}) for each batch, as it comes."""
        parts = order.split(batch_size)
        if self._kept is not None and self._kept.has_all(order):
            for indices in parts:
                errors = {}
                if self._known_bad:
                    places = enumerate(indices.tolist())
                    errors = {place: self._known_bad[i] for place, i in places if i in self._known_bad}
                yield indices, self._kept.take(indices), errors
            return
        self._reader = self._reader or _Reader(self.source, self.preprocess, num_workers(self.spec.workers))
        yield from self._reader.batches(parts)

    def _note(self, index: int, reason: str) -> None:
        name = self.source.name(index)
        if self.spec.bad_files == "stop":
            raise stopped_by({name: reason})
        self._known_bad[index] = self.bad[name] = reason

    def _substitute(self, order: Tensor, index: int) -> tuple[int, Tensor] | None:
        """Another image of the same label out of `order`, by a draw of the index's own; None where there is none."""
        labels = self.source.labels
        same = labels[order] == labels[index]
        members = order[same if same.ndim == 1 else same.all(1)].unique()
        for other in randomness.order(members[members != index], seed=index, epoch=0)[:CANDIDATES].tolist():
            if other in self._known_bad:
                continue
            image = self._alone(other)
            if isinstance(image, Tensor):
                return other, image
            self._note(other, image)
        return None

    def _alone(self, index: int) -> Tensor | str:
        """One image outside the order, (C, S, S), or why it cannot be read."""
        if self._kept is not None and self._kept.has(index):
            return self._kept.take(torch.tensor([index]))[0]
        if self._single is None:
            self._single = Pool(_Fit(self.source, self.preprocess), workers=min(num_workers(self.spec.workers), 1))
        [[result]] = self._single.map([[index]])
        return result.reason if isinstance(result, ReadError | Overrun) else torch.from_numpy(result).permute(2, 0, 1)


def read_fitted(source: Source, preprocess: Preprocess, index: int) -> Tensor:
    """One image as the network's size wants it, (C, S, S). Raises ReadError."""
    return preprocess.fit(source.read(index, preprocess.image_size))


@dataclass(frozen=True)
class _Fit:
    """A worker's job: index -> the fitted image (S, S, C), or the error."""

    source: Source
    preprocess: Preprocess

    def __call__(self, index: int) -> np.ndarray | ReadError:
        try:
            return read_fitted(self.source, self.preprocess, index).permute(1, 2, 0).contiguous().numpy()
        except ReadError as error:
            return error


@dataclass(frozen=True)
class _FitInto:
    """A worker's job: (slot, index) -> the fitted image in the slot, or the error."""

    source: Source
    preprocess: Preprocess
    slots: SharedArray  # (slots, S, S, C)

    def __call__(self, item: tuple[int, int]) -> ReadError | None:
        slot, index = item
        try:
            self.slots.array[slot] = read_fitted(self.source, self.preprocess, index).permute(1, 2, 0).numpy()
        except ReadError as error:
            return error
        return None


class _Reader:
    """The processes behind a loader, and the memory they share with it; they live as long as it does."""

    def __init__(self, source: Source, preprocess: Preprocess, workers: int):
        size, channels = preprocess.image_size, preprocess.channels
        dtype = np.float32 if preprocess.reading.deep else np.uint8
        self.ahead = max(AHEAD, 2 * workers)
        self._shape = (size, size, channels)
        each = (self.ahead + 1) * size * size * channels * np.dtype(dtype).itemsize
        self._chunk = min(max(SLOT_BYTES // each, 1), CHUNK)
        slots = SharedArray(((self.ahead + 1) * self._chunk, *self._shape), dtype)
        self._slots = slots.array
        self.pool = Pool(_FitInto(source, preprocess, slots), workers=workers)

    def batches(self, parts: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor, dict[int, str]]]:
        """(indices, images, errors by place) for each list of indices."""
        chunks = (chunk.tolist() for part in parts for chunk in part.split(self._chunk))
        tasks = ([(self._first(k) + i, index) for i, index in enumerate(chunk)] for k, chunk in enumerate(chunks))
        results = self.pool.map(tasks, ahead=self.ahead)
        number = 0
        for part in parts:
            images = np.empty((len(part), *self._shape), self._slots.dtype)
            errors: dict[int, str] = {}
            for start in range(0, len(part), self._chunk):
                result = next(results)
                first = self._first(number)
                images[start : start + len(result)] = self._slots[first : first + len(result)]
                errors |= {start + i: r.reason for i, r in enumerate(result) if r is not None}
                number += 1
            yield part, torch.from_numpy(images).permute(0, 3, 1, 2), errors

    def _first(self, number: int) -> int:
        """The first slot of a chunk; `ahead` + 1 of them are in use at once."""
        return number % (self.ahead + 1) * self._chunk


Confirm = Callable[[str], bool]


def make_loader(
    source: Source,
    preprocess: Preprocess,
    spec: DataSpec,
    *,
    wanted: Tensor | None = None,
    confirm: Confirm | None = None,
    progress: Any = None,
) -> Loader:
    """The loader that fits the source.

    Images that live in memory stay there, fitted once where those of another size fit too. With `wanted`, files are
    decoded once where they fit into memory (keep.py), or into the cache where that is asked for; otherwise they stream.

    Args:
        source: the data.
        preprocess: whose fit applies.
        spec: how many processes, whether to cache, what to do about bad files.
        wanted: (n,) int64, the samples that will be asked for again and again; None: each once.
        confirm: asks the user a question; None: nobody is there to answer.
        progress: called with (done, total) while images are decoded.
    """
    from skipway.data.keep import fits, keep_decoded

    loader = Loader(source, preprocess, spec)
    if source.images is not None:
        images, size = source.images, preprocess.image_size
        shape = (*images.shape[:2], size, size)
        if images.shape == shape and source.deep == preprocess.reading.deep:
            loader.keep(Kept(images.numpy(), channels_first=True), {})
            return loader
        if fits(math.prod(shape) * images.itemsize):
            fitted = torch.empty(shape, dtype=images.dtype)
            for place, image in zip(fitted, images, strict=True):
                place.copy_(preprocess.fit(image))
            loader.keep(Kept(fitted.numpy(), channels_first=True), {})
            return loader
    if wanted is not None:
        keep_decoded(loader, wanted, confirm=confirm, progress=progress)
    return loader

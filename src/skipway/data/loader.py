"""Batches: sliced out of memory, or read from files by worker processes. Order and size are the caller's."""

import os
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skipway.data.preprocess import Preprocess
from skipway.data.source import Source
from skipway.errors import ReadError
from skipway.spec import DataSpec


@dataclass(frozen=True)
class Batch:
    """images (B, C, S, S) uint8, labels (B,) int64, indices (B,) int64: the samples' places in the source."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class MemoryLoader:
    """A set that lives in memory: one uint8 tensor, fitted to the network's size once. No workers."""

    def __init__(self, source: Source, preprocess: Preprocess):
        assert source.images is not None
        images = source.images
        if images.shape[-2:] != (preprocess.image_size,) * 2:
            images = torch.stack([preprocess.fit(image) for image in images])
        self._images, self._labels = images, source.labels
        self.bad: dict[str, str] = dict(source.bad)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Batches over `order`, (N,) int64 sample indices; the last one may be smaller."""
        for indices in order.split(batch_size):
            yield Batch(self._images[indices], self._labels[indices], indices)


class StreamLoader:
    """Files that are read, decoded and fitted by worker processes.

    A file that cannot be read is left out of its batch (which is then smaller) and noted in `bad`.
    """

    def __init__(self, source: Source, preprocess: Preprocess, *, workers: int, stop: bool):
        self._dataset = _Fitted(source, preprocess)
        self._workers = workers if workers >= 0 else min(os.cpu_count() or 1, 8)
        self._stop = stop
        self.bad: dict[str, str] = dict(source.bad)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Batches over `order`, (N,) int64 sample indices; a batch may be smaller, and never is empty.

        Raises:
            ReadError: a file cannot be read and bad files are to stop the run.
        """
        batch_lists = [part.tolist() for part in order.split(batch_size)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: as asked
            loader = DataLoader(
                self._dataset,
                batch_sampler=batch_lists,
                num_workers=min(self._workers, len(batch_lists)),
                collate_fn=_collate,
                worker_init_fn=_quiet_worker,
            )
            parts = iter(loader)
        for images, labels, indices, errors in parts:
            for error in errors:
                if self._stop:
                    raise ReadError(error.name, f"{error.reason} (--bad-files skip leaves such files out)")
                self.bad[error.name] = error.reason
            if len(indices):
                yield Batch(images, labels, indices)


class _Fitted(Dataset):
    """index -> (fitted image or the error, label, index)."""

    def __init__(self, source: Source, preprocess: Preprocess):
        self.source, self.preprocess = source, preprocess

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor | ReadError, Tensor, int]:
        try:
            return self.preprocess.fit(self.source.read(index)), self.source.labels[index], index
        except ReadError as error:
            return error, self.source.labels[index], index


def _collate(
    items: list[tuple[Tensor | ReadError, Tensor, int]],
) -> tuple[Tensor, Tensor, Tensor, list[ReadError]]:
    good = [(image, label, index) for image, label, index in items if isinstance(image, Tensor)]
    errors = [image for image, _, _ in items if isinstance(image, ReadError)]
    images = torch.stack([image for image, _, _ in good]) if good else torch.empty(0)
    labels = torch.stack([label for _, label, _ in good]) if good else torch.empty(0, dtype=torch.int64)
    return images, labels, torch.tensor([index for _, _, index in good], dtype=torch.int64), errors


def _quiet_worker(_: int) -> None:
    """Ctrl-C is for the main process, which ends its workers itself; they do not inherit its handlers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


Loader = MemoryLoader | StreamLoader


def make_loader(source: Source, preprocess: Preprocess, spec: DataSpec) -> Loader:
    """The loader that fits the source: out of memory where its images live there, else streaming."""
    if source.images is not None:
        return MemoryLoader(source, preprocess)
    return StreamLoader(source, preprocess, workers=spec.workers, stop=spec.bad_files == "stop")

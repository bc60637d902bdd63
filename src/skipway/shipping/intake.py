"""Image files into fitted pixels, read by processes that are bounded in time and memory, as in training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skipway.data.images.decode import decode, warm_up
from skipway.data.pool import Overrun, Pool, num_workers
from skipway.data.preprocess import Preprocess
from skipway.errors import ReadError

CHUNK = 8


@dataclass(frozen=True)
class _Read:
    """A worker's job: path -> pixels (S, S, C), or the error."""

    preprocess: Preprocess

    def __call__(self, path: Path) -> np.ndarray | ReadError:
        fitted = self.preprocess
        try:
            image = decode(path, fitted.reading, at_least=fitted.image_size)
            return fitted.fit(image).permute(1, 2, 0).contiguous().numpy()
        except ReadError as error:
            return error


def read_files(paths: Sequence[Path], preprocess: Preprocess) -> Iterator[Tensor | ReadError]:
    """Each file fitted to the network's size, (C, S, S) uint8 or float32, or why it cannot be read; in order."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    for ending in {"".join(path.suffixes[-2:]) for path in paths}:  # of two parts: .nii.gz
        warm_up(ending)
    with Pool(_Read(preprocess), workers=min(num_workers(-1), len(chunks))) as pool:
        for chunk, results in zip(chunks, pool.map(chunks), strict=True):
            for path, result in zip(chunk, results, strict=True):
                if isinstance(result, Overrun):
                    yield ReadError(str(path), result.reason)
                else:
                    yield result if isinstance(result, ReadError) else torch.from_numpy(result).permute(2, 0, 1)

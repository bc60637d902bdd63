"""Which samples a process takes, and an order that reads shards nearly in sequence.

Everything is a function of the source, the seed and the epoch: every machine comes to the same parts without a word
to the others, and every sample is in exactly one part.
"""

import numpy as np
import torch
from torch import Tensor

from skipway import randomness
from skipway.data.files import FileSource
from skipway.data.source import Source
from skipway.data.sources.tar_index import MemberFiles
from skipway.errors import InputError

WINDOW = 16_384  # samples that are shuffled among each other


def share(order: Tensor, rank: int, world: int) -> Tensor:
    """Every world-th sample of an order, from `rank` on: counts differ by one at most.

    Args:
        order: (N,) int64.
        rank: of this process, from 0.
        world: how many processes.

    Raises:
        InputError: a rank outside 0 ... world - 1.
    """
    _check(rank, world)
    return order[rank::world]


def shard_part(source: Source, indices: Tensor, *, rank: int, world: int) -> Tensor:
    """The samples of one process where each is to read its own shards, the same ones every epoch.

    The samples are laid in the order of the shards and cut into equal parts, so counts differ by one at most, and
    a part reads no shards but its own and a piece of the one at each end.

    Args:
        source: of shards; others are cut alike.
        indices: (N,) int64 samples, each once.
        rank: of this process, from 0.
        world: how many processes.

    Raises:
        InputError: a rank outside 0 ... world - 1.
    """
    _check(rank, world)
    parts, offsets = _places(source, indices)
    count = len(indices)
    return indices[np.lexsort((offsets, parts))[count * rank // world : count * (rank + 1) // world]]


def shard_order(source: Source, indices: Tensor, *, seed: int, epoch: int, window: int = WINDOW) -> Tensor:
    """A random order for an epoch that reads from few shards at a time.

    Shards come in random order, and within a window samples do. `pack` deals samples to shards at random, so that a
    window is a fair sample of the whole.

    Args:
        source: of shards; others are one shard.
        indices: (N,) int64 samples, each once.
        seed: the run's.
        epoch: whose order.
        window: how many samples are shuffled among each other.

    Returns:
        (N,) int64, the same samples.
    """
    parts, offsets = _places(source, indices)
    turn = randomness.uniform(torch.from_numpy(parts), seed=seed, epoch=epoch, stream="shards")[:, 0]
    shards = np.lexsort((offsets, parts, turn.numpy()))
    start = int(randomness.uniform(torch.zeros(1, dtype=torch.int64), seed=seed, epoch=epoch, stream="window") * window)
    windows = (np.arange(len(indices)) + start) // window  # cut elsewhere each epoch
    turn = randomness.uniform(indices[shards], seed=seed, epoch=epoch, stream="order")[:, 0]
    return indices[shards[np.lexsort((turn.numpy(), windows))]]


def _places(source: Source, indices: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Which file each sample lies in, and where; (N,) int64 both."""
    if isinstance(source, FileSource) and isinstance(source.files, MemberFiles):
        rows = source.files.rows[indices.numpy()]
        return rows[:, 0].copy(), rows[:, 1]
    return np.zeros(len(indices), np.int64), indices.numpy()


def _check(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise InputError(f"rank must lie in 0 ... {world - 1}, got {rank}")

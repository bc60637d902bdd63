"""Which training images an epoch shows, in which order: a function of (seed, epoch, sample index) alone.

An epoch is as long as the train split. Evened out by class, each class has a fixed number of places in it; it fills
them with its images in a random order, all of them before the first one comes again, and goes on in the next epoch
where it stopped.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from skipway import randomness

How = Literal["shuffle", "balanced", "sqrt"]


@dataclass(frozen=True)
class Sampler:
    """The order of each epoch.

    Args:
        indices: (N,) int64, the train split.
        members: (n,) int64 of each class, a part of `indices`; none: each image once an epoch.
        places: how many places of an epoch each class has; N in all.
        seed: the run's.
    """

    indices: Tensor
    members: tuple[Tensor, ...]
    places: tuple[int, ...]
    seed: int

    def epoch(self, epoch: int) -> Tensor:
        """The sample indices of an epoch (counted from 1), in order. -> (N,) int64."""
        if not self.members:
            return randomness.order(self.indices, seed=self.seed, epoch=epoch)
        shown = [self._shown(part, n, epoch) for part, n in zip(self.members, self.places, strict=True)]
        picked, rounds = torch.cat([pair[0] for pair in shown]), torch.cat([pair[1] for pair in shown])
        ids = randomness.mix(picked) + rounds  # an image that comes twice has a place of its own each time
        draws = randomness.uniform(ids, seed=self.seed, epoch=epoch, stream="sampler")[:, 0]
        return picked[draws.argsort(stable=True)]

    def _shown(self, members: Tensor, places: int, epoch: int) -> tuple[Tensor, Tensor]:
        """The images of one class in an epoch, and in which of its rounds each comes: (places,) int64 both."""
        size = len(members)
        first, last = (epoch - 1) * places, epoch * places
        rounds = torch.arange(first // size, -(-last // size))
        ids = randomness.mix(members) + rounds[:, None]  # (rounds, size)
        draws = randomness.uniform(ids.flatten(), seed=self.seed, epoch=0, stream="rounds").view_as(ids)
        cut = slice(first - int(rounds[0]) * size, last - int(rounds[0]) * size)
        return members[torch.argsort(draws, dim=1, stable=True)].flatten()[cut], rounds.repeat_interleave(size)[cut]


def make_sampler(indices: Tensor, labels: Tensor, how: How, *, seed: int) -> Sampler:
    """The sampler of a train split.

    Args:
        indices: (N,) int64, the train split.
        labels: (M,) int64 or (M, K) uint8, of every sample of the source. An image of several labels counts for the
            one that is rarest in train; images without any are a class of their own.
        how: "shuffle": each image once; "balanced": every class equally often; "sqrt": in proportion to the root of
            the class's number of images. Counts are exact but for rounding to whole images.
        seed: the run's.
    """
    if how == "shuffle":
        return Sampler(indices, (), (), seed)
    strata = rarest_label(labels[indices])
    counts = strata.sort().values.unique_consecutive(return_counts=True)[1]
    members = indices[strata.argsort(stable=True)].split(counts.tolist())
    weights = counts.double().sqrt() if how == "sqrt" else torch.ones(len(counts), dtype=torch.float64)
    return Sampler(indices, members, _share_out(len(indices), weights, seed), seed)


def rarest_label(labels: Tensor) -> Tensor:
    """One class for each image: its own, or of several the rarest in `labels`, or K for none.

    (N,) int64 or (N, K) uint8 -> (N,) int64.
    """
    if labels.ndim == 1:
        return labels
    by_count = labels.sum(0).argsort(stable=True)  # (K,) the rarest first
    padded = torch.cat([labels[:, by_count], torch.ones_like(labels[:, :1])], 1)
    rarest = padded.argmax(1)  # the first of the largest
    return torch.cat([by_count, torch.tensor([labels.shape[1]])])[rarest]


def _share_out(total: int, weights: Tensor, seed: int) -> tuple[int, ...]:
    """Whole numbers in proportion to weights that add up to `total`; what rounding leaves goes to the largest rests."""
    exact = total * weights / weights.sum()
    whole = exact.floor()
    draws = randomness.uniform(torch.arange(len(weights)), seed=seed, epoch=0, stream="places")[:, 0]
    rests = (exact - whole) + 1e-6 * draws  # equal ones by lot
    whole[rests.argsort(descending=True)[: total - int(whole.sum())]] += 1
    return tuple(int(n) for n in whole.tolist())

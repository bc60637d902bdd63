"""Randomness without hidden state: every draw is a function of what it is for.

Data draws (order, crops, flips, mixing) are functions of (seed, epoch, sample index), so a batch is the same
on any worker, at any time, after any restart. Network draws (dropout and the like) come from PyTorch's
generator, reseeded at every step from (seed, step, rank).

The mixing function is SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"),
computed on int64 tensors: two's-complement products wrap exactly as unsigned ones do.
"""

import hashlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def _signed(value: int) -> int:
    """The int64 with the same 64 bits as `value`."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift right (PyTorch's >> keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's output for the state `x`. x: int64 of any shape -> int64 of that shape."""
    z = x + _signed(_GOLDEN)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _key(seed: int, epoch: int, stream: str) -> int:
    """One 64-bit key for (seed, epoch, stream)."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{stream}".encode(), digest_size=8).digest()
    return _signed(int.from_bytes(digest, "little"))


def uniform(indices: Tensor, *, seed: int, epoch: int, stream: str, num: int = 1) -> Tensor:
    """Uniform numbers that belong to samples, not to a position in a stream of draws.

    Args:
        indices: (B,) int64 sample ids.
        seed: the run's seed.
        epoch: the epoch the draw is for.
        stream: what the draw is for ("flip", "crop", ...); streams are independent.
        num: how many numbers each sample gets.

    Returns:
        (B, num) float64 in [0, 1), on the device of `indices`.

    Example:
        >>> a = uniform(torch.tensor([7, 3]), seed=0, epoch=2, stream="flip")
        >>> bool((a[1] == uniform(torch.tensor([3]), seed=0, epoch=2, stream="flip")[0]).all())
        True
    """
    per_sample = mix(indices[:, None] ^ _key(seed, epoch, stream))  # (B, 1)
    counters = torch.arange(num, device=indices.device) * _signed(_GOLDEN)  # (num,)
    bits = mix(mix(per_sample) + counters)  # (B, num)
    return _shift(bits, 11).double() * 2.0**-53


def order(indices: Tensor, *, seed: int, epoch: int) -> Tensor:
    """`indices` in this epoch's random order. (N,) int64 -> (N,) int64."""
    keys = mix(mix(indices) ^ _key(seed, epoch, "order"))
    return indices[torch.argsort(keys, stable=True)]


def seed_network(*, seed: int, step: int, rank: int = 0) -> None:
    """Reseed PyTorch's generators for one step's draws inside the network (dropout, drop path)."""
    torch.manual_seed(_key(seed, step, f"network/{rank}") & (_MASK >> 1))

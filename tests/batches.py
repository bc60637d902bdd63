"""Batches of random images, and how far results are from each other."""

import torch


def images(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Normal numbers times 2 plus 5, channels_last, that want a gradient."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 5
    return made.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def distance(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    """|a - b| / |b|, in double."""
    assert a is not None
    assert b is not None
    return ((a.double() - b.double()).norm() / b.double().norm()).item()

"""Gradients along a line through input space, and how alike they are by distance."""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from skipway.insight.watch import QUIET, Watch

BATCH = 32
ROUNDING = 1e-5  # of the largest value: below it a gradient is one and the same


def line_gradients(network: nn.Module, a: Tensor, b: Tensor, points: int, *, watch: Watch = QUIET) -> Tensor:
    """Gradients of the sum of the logits at points evenly from one image to another.

    Args:
        network: in evaluation mode, so that points do not see each other.
        a, b: (C, S, S) each, as the network takes them.
        points: how many.
        watch: told of each batch of them.

    Returns:
        (points, C * S * S) float64.
    """
    found = []
    for t in torch.linspace(0, 1, points).split(BATCH):
        t = t.view(-1, 1, 1, 1)
        x = ((1 - t) * a + t * b).contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(network(x).sum(), x)
        found.append(gradient.flatten(1).double())
        watch.tell(sum(map(len, found)) / points)
    return torch.cat(found)


def directional(gradients: Tensor, along: Tensor) -> Tensor:
    """(P, D) gradients -> (P,) derivatives by the position on a line in the direction `along`, (C, S, S)."""
    return gradients @ along.flatten().double()


def autocorrelation(series: Tensor) -> Tensor:
    """How a series correlates with itself by lag, its mean taken off.

    r_k = sum_i (g_i - m)(g_{i+k} - m) / sum_i (g_i - m)^2.

    Args:
        series: (P,) float64.

    Returns:
        (P // 2,) from lag 0 on: 1 where the series is constant, as that of a linear network is; NaN where it is zero
        or not finite.
    """
    lags = len(series) // 2
    most = float(series.abs().max())
    if most == 0 or not math.isfinite(most):
        return torch.full((lags,), math.nan, dtype=torch.float64)
    centred = (series - series.mean()) / most
    if float(centred.abs().max()) < ROUNDING:
        return torch.ones(lags, dtype=torch.float64)
    total = centred.square().sum()
    return torch.stack([(centred[: len(centred) - k] * centred[k:]).sum() / total for k in range(lags)])


def likeness(gradients: Tensor) -> Tensor:
    """(P, D) -> (P // 2,): mean cosine of gradients so many points apart, of those that are not zero."""
    norms = gradients.norm(dim=1, keepdim=True)
    unit = gradients / torch.where(norms > 0, norms, math.nan)
    cosines = unit @ unit.T
    return torch.stack([cosines.diagonal(k).nanmean() for k in range(len(gradients) // 2)])


@lru_cache
def noise_autocorrelation(points: int, *, brown: bool, draws: int = 200) -> tuple[float, ...]:
    """The mean autocorrelation of white or brown noise, by lag: what the same estimate gives for so many points."""
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(draws, points, generator=generator, dtype=torch.float64)
    rows = [autocorrelation(row.cumsum(0) if brown else row) for row in series]
    return tuple(torch.stack(rows).mean(0).tolist())

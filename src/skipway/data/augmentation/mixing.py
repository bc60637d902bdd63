"""mixup and cutmix: a sample and the next of its batch become one, and so do their labels."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.augmentation.erase import between, crossed
from skipway.data.sending import sent


def mix(inputs: Tensor, targets: Tensor, draws: Tensor, *, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """mixup (Zhang et al. 2017, arXiv:1710.09412) or cutmix (Yun et al. 2019, arXiv:1905.04899), by sample.

    The partner is the next sample of the batch. With both on, each sample gets one of them, half and half.

    Args:
        inputs: (B, C, S, S) float.
        targets: (B, K) float, each class's share.
        draws: (B, 4) uniform numbers: which, lambda, box y, box x.
        mixup, cutmix: alpha of each one's Beta distribution; 0: off.

    Returns:
        Inputs and targets of the same shapes.
    """
    size, u = inputs.shape[-1], draws
    cut = u[:, 0] < 0.5 if mixup and cutmix else torch.full((len(u),), cutmix > 0)
    keep = torch.where(cut, beta(u[:, 1], cutmix), beta(u[:, 1], mixup))
    half = size * (1 - keep).sqrt() / 2
    low_y, high_y = (u[:, 2] * size - half).clamp(min=0), (u[:, 2] * size + half).clamp(max=size)
    low_x, high_x = (u[:, 3] * size - half).clamp(min=0), (u[:, 3] * size + half).clamp(max=size)
    rows, columns = between(low_y, high_y, size), between(low_x, high_x, size)
    pasted = rows.sum(1).double() * columns.sum(1) / size**2
    keep = torch.where(cut, 1 - pasted, keep).float()
    cut, rows, columns, weight = (sent(part, inputs.device) for part in (cut, rows, columns, keep.view(-1, 1, 1, 1)))
    weight = torch.where(cut[:, None, None, None], (~crossed(rows, columns)).float(), weight)
    inputs = inputs * weight + inputs.roll(1, 0) * (1 - weight)
    share = sent(keep, targets.device)[:, None]
    return inputs, targets * share + targets.roll(1, 0) * (1 - share)


def shares(labels: Tensor, num_classes: int) -> Tensor:
    """Labels, (B,) int64 or (B, K) of 0 and 1 -> (B, K) float32."""
    return F.one_hot(labels, num_classes).float() if labels.ndim == 1 else labels.float()


def beta(u: Tensor, alpha: float) -> Tensor:
    """Uniform numbers -> numbers of the symmetric Beta(alpha, alpha), by its inverse distribution. (B,) -> (B,)."""
    if not alpha:
        return torch.ones_like(u)
    x, cumulative = _beta_table(alpha)
    lower = torch.minimum(u, 1 - u).numpy()
    value = torch.from_numpy(np.interp(lower, cumulative, x))
    return torch.where(u < 0.5, value, 1 - value)


@functools.lru_cache
def _beta_table(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Points x in [0, 1/2] and the distribution there. Below alpha 1, v = x^alpha takes away the pole at 0."""
    if alpha < 1:
        v = np.linspace(0, 0.5**alpha, 8193)
        x = v ** (1 / alpha)
        density = (1 - x) ** (alpha - 1)
    else:
        x = np.linspace(0, 0.5, 65537)
        density = (4 * x * (1 - x)) ** (alpha - 1)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return x, cumulative * (0.5 / cumulative[-1])

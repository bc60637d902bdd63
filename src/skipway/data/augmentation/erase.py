"""Rectangles of normalised images become 0, which is the mean: random erasing and cutout."""

import math

import torch
from torch import Tensor

from skipway.data.sending import sent


def erase(inputs: Tensor, draws: Tensor, rate: float) -> Tensor:
    """A rectangle of some images becomes the mean (Zhong et al. 2017, arXiv:1708.04896, alg. 1; theirs is random).

    It covers 2 to 33% of the area; its height is 0.3 to 3.3 times its width.

    Args:
        inputs: (B, C, S, S) float, mean 0.
        draws: (B, 5) uniform numbers: whether, area, ratio, top, left.
        rate: share of images.

    Returns:
        (B, C, S, S).
    """
    size, u = inputs.shape[-1], sent(draws, inputs.device)
    area = (0.02 + u[:, 1] * 0.31) * size * size
    ratio = torch.exp(math.log(0.3) + u[:, 2] * math.log(3.3 / 0.3))
    height, width = (area * ratio).sqrt().clamp(1, size), (area / ratio).sqrt().clamp(1, size)
    top, left = u[:, 3] * (size - height), u[:, 4] * (size - width)
    inside = box(top, left, top + height, left + width, size)
    inside &= (u[:, 0] < rate)[:, None, None, None]
    return inputs.masked_fill(inside, 0.0)


def cutout(inputs: Tensor, draws: Tensor, share: float) -> Tensor:
    """A square of every image becomes the mean (DeVries and Taylor 2017, arXiv:1708.04552).

    Its centre lies anywhere in the image, and what reaches over the edge is cut off.

    Args:
        inputs: (B, C, S, S) float, mean 0.
        draws: (B, 2) uniform numbers: the centre's height and place across.
        share: the square's side over the image's.

    Returns:
        (B, C, S, S).
    """
    size = inputs.shape[-1]
    half = max(round(share * size), 1) / 2
    y, x = (sent(draws, inputs.device) * size).T
    return inputs.masked_fill(box(y - half, x - half, y + half, x + half, size), 0.0)


def box(top: Tensor, left: Tensor, bottom: Tensor, right: Tensor, size: int) -> Tensor:
    """Which pixels' centres lie in each sample's rectangle; four (B,) -> (B, 1, S, S) bool."""
    return crossed(between(top, bottom, size), between(left, right, size))


def between(low: Tensor, high: Tensor, size: int) -> Tensor:
    """Which of a side's pixels have their centre from `low` on and before `high`; two (B,) -> (B, S) bool."""
    centre = torch.arange(size, device=low.device) + 0.5
    return (centre >= low[:, None]) & (centre < high[:, None])


def crossed(rows: Tensor, columns: Tensor) -> Tensor:
    """Which pixels lie in chosen rows and columns; two (B, S) bool -> (B, 1, S, S) bool."""
    return (rows[:, :, None] & columns[:, None, :])[:, None]

"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) and TrivialAugment (Müller and Hutter 2021, arXiv:2103.10158).

Both draw from the same fourteen operations; they differ in how many, how strong, and in the ranges. Images are
grouped by their drawn operation, and each group is changed at once, every image by a strength of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from skipway.data.augmentation import colour

NAMES = (
    "identity", "rotate", "shift across", "shift down", "shear across", "shear down", "brightness", "contrast",
    "sharpness", "saturation", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
BINS = 30  # strengths are whole numbers from 0 to this, over this


@dataclass(frozen=True)
class Ranges:
    """What strength 1 means; solarize goes from inverting nothing to inverting everything in both.

    Args:
        rotate: degrees.
        shift: pixels, or (share) a share of the size.
        share: whether it is one.
        shear: slope.
        colour: brightness, contrast, sharpness and saturation lie between 1 - this and 1 + this.
        posterize: bits of 8 that are dropped.
    """

    rotate: float
    shift: float
    share: bool
    shear: float
    colour: float
    posterize: int


RANDAUGMENT = Ranges(rotate=30, shift=0.45, share=True, shear=0.3, colour=0.9, posterize=4)
# The paper's wide space, table 7. There images are sheared about their corner, here about their centre.
TRIVIALAUGMENT = Ranges(rotate=135, shift=32, share=False, shear=0.99, colour=0.99, posterize=6)


def randaugment(images: Tensor, draws: Tensor, magnitude: int) -> Tensor:
    """Apply operations in turn, each sample its own.

    Args:
        images: (B, C, S, S) uint8.
        draws: (B, 2n) uniform numbers: for each of n turns which operation, and its sign.
        magnitude: 0 to 30.

    Returns:
        (B, C, S, S) uint8.
    """
    for which, side in zip(draws[:, 0::2].T, draws[:, 1::2].T, strict=True):
        strength = torch.where(side < 0.5, 1.0, -1.0) * (magnitude / BINS)
        images = apply(images, (which * len(NAMES)).long(), strength, RANDAUGMENT)
    return images


def trivialaugment(images: Tensor, draws: Tensor) -> Tensor:
    """One operation for each image, at a strength drawn from 0, 1/30, ... 1.

    Args:
        images: (B, C, S, S) uint8.
        draws: (B, 3) uniform numbers: which operation, its sign, its strength.

    Returns:
        (B, C, S, S) uint8.
    """
    which, side, how = draws.T
    strength = torch.where(side < 0.5, 1.0, -1.0) * (how * (BINS + 1)).floor() / BINS
    return apply(images, (which * len(NAMES)).long(), strength, TRIVIALAUGMENT)


def apply(images: Tensor, which: Tensor, strength: Tensor, ranges: Ranges) -> Tensor:
    """One operation for each image.

    Args:
        images: (B, C, S, S) uint8.
        which: (B,) int64, positions in NAMES.
        strength: (B,) in [-1, 1]; posterize and solarize use its absolute value.
        ranges: what it is a share of.

    Returns:
        (B, C, S, S) uint8, new.
    """
    images = images.clone(memory_format=torch.contiguous_format)
    geometric = (which >= 1) & (which <= 5)
    _put(images, geometric, lambda x: _move(x, which[geometric], strength[geometric], ranges))
    for place in range(6, len(NAMES)):
        chosen = which == place
        s = strength[chosen].view(-1, 1, 1, 1)
        _put(images, chosen, lambda x, place=place, s=s: _recolour(x, NAMES[place], s, ranges))
    return images


def _put(images: Tensor, chosen: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Change some images where they are."""
    members = chosen.nonzero()[:, 0]
    if len(members):
        images[members] = change(images[members])


def _recolour(images: Tensor, name: str, strength: Tensor, ranges: Ranges) -> Tensor:
    """An operation that moves nothing. images: (B, C, S, S), strength: (B, 1, 1, 1) -> (B, C, S, S)."""
    from torchvision.transforms.v2 import functional as T

    if name in ("brightness", "contrast", "sharpness", "saturation"):
        return getattr(colour, name)(images, (1 + ranges.colour * strength)[:, 0, 0, 0])
    if name == "posterize":
        dropped = (ranges.posterize * strength.abs()).round().long()
        return images & (256 - 2**dropped).byte()
    if name == "solarize":
        return torch.where(images >= 256 * (1 - strength.abs()), 255 - images, images)
    return T.autocontrast(images) if name == "autocontrast" else T.equalize(images)


def _move(images: Tensor, which: Tensor, strength: Tensor, ranges: Ranges) -> Tensor:
    """Rotate, shift or shear about the centre; each pixel takes its nearest, and what comes from outside is black.

    Coordinates are computed pixel by pixel, not as a matrix product, so their bits depend on no batch.
    """
    size = images.shape[-1]
    value = {i: torch.where(which == i, strength, 0.0)[:, None, None] for i in range(1, 6)}  # (B, 1, 1) each
    angle = value[1] * math.radians(ranges.rotate)
    cos, sin = angle.double().cos().float(), angle.double().sin().float()  # the same alone and in a vector of many
    pixels = [(value[i] * (ranges.shift * size if ranges.share else ranges.shift)).round() for i in (2, 3)]
    centre = (size - 1) / 2
    y, x = (torch.arange(size) - centre).view(1, -1, 1), (torch.arange(size) - centre).view(1, 1, -1)
    column = (cos * x + ((sin + value[4] * ranges.shear) * y + (centre - pixels[0]))).round_()  # (B, S, S)
    row = (cos * y + ((value[5] * ranges.shear - sin) * x + (centre - pixels[1]))).round_()
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    place = torch.where(inside, row * size + column, 0).long().flatten(1)[:, None]  # exact: far below 2^24
    picked = images.flatten(2).gather(2, place.expand(-1, images.shape[1], -1)).view_as(images)
    return picked.mul_(inside[:, None])

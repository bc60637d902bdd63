"""Brightness, contrast, saturation, sharpness: whole batches, each sample with a factor of its own.

A factor moves an image from another one (black, its mean grey, its grey, its blur) at 0 through itself at 1 and
beyond, as torchvision's functions of these names. Greys and their means are computed in whole numbers, and every
other step is a single operation on one pixel, so the bits depend on no batch.
"""

import torch
from torch import Tensor

GREY = (19595, 38470, 7471)  # red, green, blue of a grey, in 65536ths (ITU-R 601)
STEPS = 2**20  # that a deep image's range is cut into where its mean is taken


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation in turn; each sample by its own factors.

    Args:
        images: (B, C, S, S) uint8, or float32 of any range.
        factors: (B, 3), 1 leaves as it is; saturation counts for colour images only.

    Returns:
        (B, C, S, S) of the same type. Deep images have no upper end: brightness stretches the distance from their
        least value, and nothing is cut off.
    """
    images = brightness(images, factors[:, 0])
    images = contrast(images, factors[:, 1])
    return saturation(images, factors[:, 2])


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """From black (deep images: their least value). images: (B, C, S, S), factor: (B,) -> (B, C, S, S)."""
    if images.dtype == torch.uint8:
        return _blend(images, torch.zeros(()), factor)
    return _blend(images, images.amin((1, 2, 3), keepdim=True), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """From the mean of the grey image. images: (B, C, S, S), factor: (B,) -> (B, C, S, S)."""
    return _blend(images, _mean(grey(images)), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """From the grey image; grey images stay. images: (B, C, S, S), factor: (B,) -> (B, C, S, S)."""
    return _blend(images, grey(images), factor) if images.shape[1] == 3 else images


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """From the blurred image. images: (B, C, S, S) uint8, factor: (B,) -> (B, C, S, S)."""
    if min(images.shape[-2:]) < 3:
        return images
    blurred = images.float()
    whole = images.short()
    lines = whole[..., :-2, :] + whole[..., 1:-1, :] + whole[..., 2:, :]
    total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:] + 4 * whole[..., 1:-1, 1:-1]
    blurred[..., 1:-1, 1:-1] = (total / 13).round_()  # the border stays as it is
    return _blend(images, blurred, factor)


def grey(images: Tensor) -> Tensor:
    """(B, C, S, S) -> (B, 1, S, S) of the same type."""
    if images.shape[1] == 1:
        return images
    whole = images.dtype == torch.uint8
    red, green, blue = (images[:, i : i + 1].to(torch.int32 if whole else torch.float64) for i in range(3))
    total = red * GREY[0] + green * GREY[1] + blue * GREY[2]
    return (total >> 16).byte() if whole else (total / 65536).float()


def _mean(images: Tensor) -> Tensor:
    """The mean of each image, (B, 1, S, S) -> (B, 1, 1, 1) float32, as an exact sum of whole numbers."""
    if images.dtype == torch.uint8:
        return images.mean((1, 2, 3), dtype=torch.float64, keepdim=True).float()  # a sum far below 2^53
    low = images.amin((1, 2, 3), keepdim=True).double()
    reach = images.amax((1, 2, 3), keepdim=True).double() - low
    step = torch.where(reach > 0, reach / STEPS, 1.0)
    levels = ((images.double() - low) / step).round()
    return (low + levels.mean((1, 2, 3), keepdim=True) * step).float()


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """other + factor * (images - other); uint8 is cut off at 0 and 255 and rounded down, as torchvision does."""
    factor = factor.float().view(-1, 1, 1, 1)
    mixed = images * factor + other * (1 - factor)
    return mixed.clamp_(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else mixed

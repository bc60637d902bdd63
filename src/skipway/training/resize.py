"""Progressive resizing: smaller images early in the run, which cost less, and full size at its end."""

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.speed_spec import SpeedSpec

STEP = 4  # pixels: every size is a multiple, which keeps compiled networks few


def size_at(done: float, speed: SpeedSpec, *, full: int) -> int:
    """The size of training images, in pixels a side.

    It rises linearly from `start_size` to the full size, in steps of 4 pixels (Howard 2018, DAWNBench; fixed sizes
    of Tan and Le 2021, arXiv:2104.00298, in stages).

    Args:
        done: share of the run that is done, 0 to 1.
        speed: whose `start_size` and `full_size` count.
        full: pixels a side in the end.
    """
    start = speed.start_size
    growing = 1 - speed.full_size
    if not start or start >= full or done >= growing:
        return full
    return min(full, int(start + (full - start) * done / growing) // STEP * STEP)


def resized(pixels: Tensor, size: int) -> Tensor:
    """(B, C, S, S) uint8 or float -> (B, C, size, size), antialiased; the same tensor where it has that size."""
    if pixels.shape[-1] == size:
        return pixels
    if pixels.device.type == "cpu" or pixels.dtype != torch.uint8:
        return F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    made = F.interpolate(pixels.float(), size=(size, size), mode="bilinear", antialias=True)
    return made.round_().to(torch.uint8)  # a mean of pixels stays within 0 to 255

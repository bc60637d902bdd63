"""Two images laid over each other: shifted and scaled until they fit, and then how well they agree."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WHOLE, OVERLAP, TEXTURED = 0.8, 0.6, 0.25  # what a pair must reach, as in Match
NOISE = 4.0  # grey levels: detail weaker than this counts less


@dataclass(frozen=True)
class Match:
    """How well pairs agree once they are laid over each other, (P,) float32 each.

    Args:
        detail: correlation of the fine detail, -1 to 1.
        whole: correlation of the images, -1 to 1.
        overlap: share of the second image that the first covers.
        textured: share of the overlap where either has detail.
    """

    detail: Tensor
    whole: Tensor
    overlap: Tensor
    textured: Tensor

    def same(self, bar: float) -> Tensor:
        """Which pairs are the same photo, (P,) bool; `bar`: the detail that must agree."""
        enough = (self.overlap > OVERLAP) & (self.textured > TEXTURED)
        return (self.detail > bar) & (self.whole > WHOLE) & enough


def laid_over(first: Tensor, second: Tensor, sides: tuple[int, ...], shift: Tensor | None = None) -> Tensor:
    """The shift that lays images (P, 1, S, S) over others, as in _align, found at each size in turn."""
    shift = torch.zeros(len(first), 4) if shift is None else shift
    for side in sides:
        shift = _align(shrink(first, side), shrink(second, side), shift)
    return shift


def match(first: Tensor, second: Tensor, shift: Tensor) -> Match:
    """How well images agree, the first laid over the second by `shift` (as _align gives it)."""
    moved, inside = _warp(first, shift, "bicubic")
    within = -F.max_pool2d(-inside, 5, 1, 2)  # where the blur saw no pixel from outside
    details, textured = [], torch.zeros_like(within)
    for image in (moved, second):
        fine = image - _blur(image)
        strength = F.avg_pool2d(F.pad(fine.square(), (3, 3, 3, 3), "reflect"), 7, 1)
        details.append(fine / (strength + NOISE**2).sqrt())
        textured = torch.maximum(textured, within * (strength > NOISE**2))
    seen = within.sum((1, 2, 3)).clamp(min=1)
    return Match(
        _correlation(details[0], details[1], within),
        _correlation(moved, second, inside),
        inside.mean((1, 2, 3)),
        textured.sum((1, 2, 3)) / seen,
    )


def _align(first: Tensor, second: Tensor, shift: Tensor, steps: int = 8) -> Tensor:
    """Shift and scale that lay `first` over `second`, whatever their brightness and contrast.

    Args:
        first, second: (P, 1, S, S).
        shift: (P, 4) where to begin: scale - 1 of x and y, shift of x and y, where the image goes from -1 to 1.
        steps: of Gauss-Newton.
    """
    side = first.shape[-1]
    line = _line(side)
    right, down = line.expand(side, side), line[:, None].expand(side, side)
    hold = 5e-4 * side * side * torch.eye(4)  # keeps flat images where they are
    target = second[:, 0]
    for _ in range(steps):
        moved, inside = _warp(first, shift, "bilinear")
        moved, inside = moved[:, 0], inside[:, 0]
        now, wanted = _standard(moved, inside), _standard(target, inside)
        dx, dy = (torch.gradient(now, dim=d)[0] * (side / 2) for d in (2, 1))
        slope = (torch.stack([dx * right, dy * down, dx, dy], 1) * inside[:, None]).flatten(2)
        miss = ((wanted - now) * inside).flatten(1)
        step = torch.linalg.solve(slope @ slope.transpose(1, 2) + hold, slope @ miss[:, :, None])[:, :, 0]
        shift = (shift + step.clamp(-0.2, 0.2)).clamp(-0.4, 0.4)
    return shift


def _warp(image: Tensor, shift: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """The image scaled and shifted, and where it covers the square (1, else 0), both (P, 1, S, S)."""
    side = image.shape[-1]
    line = _line(side)
    x = line.view(1, 1, side) * (1 + shift[:, 0, None, None]) + shift[:, 2, None, None]
    y = line.view(1, side, 1) * (1 + shift[:, 1, None, None]) + shift[:, 3, None, None]
    grid = torch.stack(torch.broadcast_tensors(x, y), -1)
    moved = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
    return moved, (grid.abs() < 1).all(-1)[:, None].float()


def _line(side: int) -> Tensor:
    """Where the middles of pixels lie, from -1 to 1."""
    return (torch.arange(side) + 0.5) * 2 / side - 1


def _standard(values: Tensor, inside: Tensor) -> Tensor:
    """(P, S, S) with mean 0 and deviation 1 where inside."""
    count = inside.sum((1, 2), keepdim=True).clamp(min=1)
    values = values - (values * inside).sum((1, 2), keepdim=True) / count
    return values / ((values.square() * inside).sum((1, 2), keepdim=True) / count).sqrt().clamp(min=1e-3)


def _correlation(first: Tensor, second: Tensor, inside: Tensor) -> Tensor:
    """Correlation where inside, (P,)."""
    first, second = (_standard(image[:, 0], inside[:, 0]) for image in (first, second))
    return (first * second * inside[:, 0]).sum((1, 2)) / inside.sum((1, 2, 3)).clamp(min=1)


def _blur(image: Tensor) -> Tensor:
    """Binomial blur over 5x5 pixels."""
    row = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    return F.conv2d(F.pad(image, (2, 2, 2, 2), "reflect"), (row[:, None] * row)[None, None])


def shrink(image: Tensor, side: int) -> Tensor:
    """To (P, C, side, side), antialiased."""
    return image if image.shape[-1] == side else F.interpolate(image, (side, side), mode="bilinear", antialias=True)

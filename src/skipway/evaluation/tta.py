"""Test-time augmentation: logits averaged over an image's mirrored and shifted copies.

Its scores are reported beside the plain ones, never in their place, and choose nothing: neither the best epoch nor
a threshold.
"""

from collections.abc import Callable, Iterator
from typing import get_args, get_type_hints

import torch
from torch import Tensor

from skipway.errors import unknown
from skipway.train_spec import TrainSpec

KINDS = get_args(get_type_hints(TrainSpec)["tta"])


def check_tta(kind: str) -> None:
    """Refuse what is no kind of test-time augmentation. Raises InputError."""
    if kind not in KINDS:
        raise unknown("tta", kind, KINDS)


def views(inputs: Tensor, kind: str) -> Iterator[tuple[float, Tensor]]:
    """The copies of a batch with their shares in the average: first the batch as it is; shares add up to 1.

    flip: the images and their mirror images. flip_shift: these with half the weight; the other half is shared by two
    copies shifted by a pixel, to the upper left and to the lower right, and their mirror images; what enters at the
    edge is reflected (Jordan 2024, arXiv:2404.00498, section 3.6, "multicrop").

    Args:
        inputs: (B, C, H, W) of any type.
        kind: "none", "flip" or "flip_shift".

    Yields:
        A share, and (B, C, H, W) like the inputs.
    """
    if kind == "none":
        yield 1.0, inputs
        return
    shifted = (_shifted(inputs, 1), _shifted(inputs, -1)) if kind == "flip_shift" else ()
    own = 0.25 if shifted else 0.5
    for share, copy in ((own, inputs), *((0.125, copy) for copy in shifted)):
        yield share, copy
        yield share, copy.flip(-1)


def averaged(forward: Callable[[Tensor], Tensor], inputs: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The plain logits, and those averaged over all views.

    Args:
        forward: (B, C, H, W) -> (B, K) logits.
        inputs: (B, C, H, W) float.
        kind: as in `views`.

    Returns:
        (B, K) of the plain images, (B, K) averaged; with "none" the same tensor twice.
    """
    copies = views(inputs, kind)
    share, images = next(copies)
    plain = forward(images)
    mean = plain if kind == "none" else share * plain
    for share, images in copies:
        mean = mean + share * forward(images)
    return plain, mean


def _shifted(images: Tensor, by: int) -> Tensor:
    """The image `by` pixels further along each diagonal: 1 shows it moved to the upper left, -1 to the lower right."""
    for dim in (-2, -1):
        size = images.shape[dim]
        place = (torch.arange(size, device=images.device) + by).abs()
        place = (size - 1 - (size - 1 - place).abs()).clamp(min=0)  # clamp: a single pixel has no neighbours
        images = images.index_select(dim, place)
    return images

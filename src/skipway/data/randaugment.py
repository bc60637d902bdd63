"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) on whole batches: images are grouped by their drawn operation,
and each group goes through torchvision's batched kernels at once."""

from collections.abc import Callable

from torch import Tensor

# One operation: images (B, C, S, S) uint8, strength in [-1, 1] -> images. One-sided ones use its absolute value.
Operation = Callable[[Tensor, float], Tensor]


def _operations() -> tuple[Operation, ...]:
    """The paper's fourteen, with its ranges at strength 1 (magnitude 30)."""
    from torchvision.transforms.v2 import functional as T

    Pair = tuple[float, float]

    def affine(images: Tensor, *, angle: float = 0.0, shift: Pair = (0, 0), shear: Pair = (0, 0)) -> Tensor:
        pixels = [float(round(share * images.shape[-1])) for share in shift]
        return T.affine(images, angle=angle, translate=pixels, scale=1.0, shear=list(shear))

    return (
        lambda x, s: x,
        lambda x, s: affine(x, angle=30 * s),
        lambda x, s: affine(x, shift=(0.45 * s, 0)),
        lambda x, s: affine(x, shift=(0, 0.45 * s)),
        lambda x, s: affine(x, shear=(17 * s, 0)),  # degrees: a slope of 0.3
        lambda x, s: affine(x, shear=(0, 17 * s)),
        lambda x, s: T.adjust_brightness(x, 1 + 0.9 * s),
        lambda x, s: T.adjust_contrast(x, 1 + 0.9 * s),
        lambda x, s: T.adjust_sharpness(x, 1 + 0.9 * s),
        lambda x, s: T.adjust_saturation(x, 1 + 0.9 * s) if x.shape[1] == 3 else x,
        lambda x, s: T.posterize(x, 8 - round(4 * abs(s))),
        lambda x, s: T.solarize(x, 256 * (1 - abs(s))) if s else x,  # at strength 0 nothing is above the threshold
        lambda x, s: T.autocontrast(x),
        lambda x, s: T.equalize(x),
    )


def randaugment(images: Tensor, draws: Tensor, magnitude: int) -> Tensor:
    """Apply operations in turn, each sample its own.

    Args:
        images: (B, C, S, S) uint8.
        draws: (B, 2n) uniform numbers: for each of n turns which operation, and its sign.
        magnitude: 0 to 30.

    Returns:
        (B, C, S, S) uint8.
    """
    operations = _operations()
    images = images.clone()
    for which, side in zip(draws[:, 0::2].T, draws[:, 1::2].T, strict=True):
        choice = (which * len(operations)).long() * 2 + (side < 0.5)
        for value in choice.unique().tolist():
            members = (choice == value).nonzero()[:, 0]
            strength = magnitude / 30 * (1 if value % 2 else -1)
            images[members] = operations[value // 2](images[members], strength)
    return images

"""The whitening stem's filters from images: the principal components of their patches, each scaled to variance 1.

`whiten` is called once, before the first step of a fresh run; the filters stay as they are from then on and travel
with the weights.
"""

import torch
from torch import Tensor

from skipway.errors import InputError
from skipway.nn.network import ResNet
from skipway.nn.stem import WhiteningStem

EPSILON = 5e-4  # added to a component's variance (Jordan 2024): rare components are not blown up
PATCH_VALUES = 1 << 21  # numbers of patches held at a time


def whiten(network: ResNet, images: Tensor) -> None:
    """Give the whitening stem its filters: plus and minus each eigenvector of the patches' covariance.

    An eigenvector is divided by sqrt(eigenvalue + 0.0005) (Jordan 2024, arXiv:2404.00498, section 3.2). The largest
    eigenvalue comes first; the first of an eigenvector's large numbers is positive. Computed in fp64 on the CPU.

    Args:
        network: whose stem is "whitening"; changed in place.
        images: (N, C, H, W) float, normalised as in training; a few thousand do.

    Raises:
        InputError: another stem, images of other channels, with numbers that are none, or too few or small for two
            patches.
    """
    stem, spec = network.stem, network.spec
    if not isinstance(stem, WhiteningStem):
        raise InputError(f"network.stem must be whitening for filters from images, got {spec.stem}")
    if images.ndim != 4 or images.shape[1] != spec.in_channels or not images.is_floating_point():
        raise InputError(
            f"whitening takes images (N, {spec.in_channels}, H, W) in floating point, got {tuple(images.shape)} "
            f"in {str(images.dtype).removeprefix('torch.')}"
        )
    covariance = patch_covariance(images, spec.stem_patch)
    if not covariance.isfinite().all():
        raise InputError("whitening takes images of finite numbers; these hold NaN or infinity")
    basis = _scaled_eigenvectors(covariance)[: spec.stem_out // 2]
    stem.conv.set_basis(basis.to(stem.conv.weight))


def patch_covariance(images: Tensor, patch: int) -> Tensor:
    """The covariance of all patches, at every pixel that a whole patch begins at.

    Args:
        images: (N, C, H, W).
        patch: pixels a side.

    Returns:
        (d, d) fp64 over the d = C * patch^2 values of a patch, in the order of a convolution's weights.

    Raises:
        InputError: fewer than two patches.
    """
    size = images.shape[1] * patch**2
    products = torch.zeros(size, size, dtype=torch.float64)
    total, count = torch.zeros(size, dtype=torch.float64), 0
    if min(images.shape[2:]) >= patch:
        rows = max(PATCH_VALUES // (size * (images.shape[3] - patch + 1)), 1)
        for image in images:
            for first in range(0, images.shape[2] - patch + 1, rows):
                strip = image[:, first : first + rows + patch - 1].to("cpu", torch.float64)
                patches = strip.unfold(1, patch, 1).unfold(2, patch, 1)  # (C, h, w, patch, patch)
                patches = patches.permute(1, 2, 0, 3, 4).reshape(-1, size)
                products += patches.T @ patches
                total += patches.sum(0)
                count += len(patches)
    if count < 2:
        raise InputError(
            f"whitening needs two patches of {patch} pixels at least, got {len(images)} images of "
            f"{images.shape[3]}x{images.shape[2]} pixels"
        )
    return (products - torch.outer(total, total) / count) / (count - 1)


def _scaled_eigenvectors(covariance: Tensor) -> Tensor:
    """One a row, (d, d)."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1).T
    large = vectors.abs() >= vectors.abs().amax(1, keepdim=True) / 2  # of equals the first, whatever the rounding
    first = (large * torch.arange(len(values), 0, -1)).argmax(1, keepdim=True)
    return vectors * vectors.gather(1, first).sign() / (values + EPSILON).sqrt()[:, None]

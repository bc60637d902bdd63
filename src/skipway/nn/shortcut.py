"""S(x) of `y = relu(F(x) + S(x))` (He et al. 2015, arXiv:1512.03385, section 3.2 and options A and B of 4.1)."""

import torch.nn.functional as F
from torch import Tensor, nn

from skipway.errors import unknown


class ZeroPad(nn.Module):
    """Option A: every `stride`-th pixel, new channels filled with zeros; no parameters.

    The paper does not say where the zeros go. Half go before the old channels and half behind, as in the common
    CIFAR repositories, so that their weights fit.
    """

    def __init__(self, in_width: int, out_width: int, stride: int):
        super().__init__()
        extra = out_width - in_width
        self.stride = stride
        self.before, self.behind = extra // 2, extra - extra // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.behind))


class Projection(nn.Module):
    """Option B: a 1x1 convolution with the block's stride, then its norm."""

    def __init__(self, in_width: int, out_width: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(in_width, out_width, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(out_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        return self.norm(self.conv(x))


# What stands in for S(x) where the shape changes; elsewhere S is the identity. "none" has no S at all.
SHORTCUTS = {"projection": Projection, "zero_pad": ZeroPad}


def make_shortcut(kind: str, in_width: int, out_width: int, stride: int) -> nn.Module | None:
    """The module that computes S(x).

    Args:
        kind: "projection", "zero_pad" or "none".
        in_width: channels that come in.
        out_width: channels that the block gives out.
        stride: the block's.

    Returns:
        A module (B, C, H, W) -> (B, C', H/stride, W/stride), or None for "none": the plain twin, y = relu(F(x)).

    Raises:
        InputError: an unknown kind.
    """
    if kind == "none":
        return None
    if kind not in SHORTCUTS:
        raise unknown("shortcut", kind, [*SHORTCUTS, "none"])
    if in_width == out_width and stride == 1:
        return nn.Identity()
    return SHORTCUTS[kind](in_width, out_width, stride)

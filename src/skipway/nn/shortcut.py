"""S(x) of `y = relu(F(x) + S(x))` (He et al. 2015, arXiv:1512.03385, section 3.2 and options A, B and C of 4.1)."""

import torch.nn.functional as F
from torch import Tensor, nn

from skipway.errors import unknown
from skipway.network_spec import NetworkSpec
from skipway.nn.layers import make_conv, make_norm, norm_act
from skipway.nn.pools import AvgPool


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
    """Option B: a 1x1 convolution with the block's stride, then its norm (none in a pre-activation block).

    With `pooled` (option D; He et al. 2018, arXiv:1812.01187, fig. 2c) a 2x2 average takes the stride's place; odd
    images are rounded up, as strides do, or down, as the branch's max-pool does.
    """

    def __init__(self, spec: NetworkSpec, in_width: int, out_width: int, stride: int, *, pooled: bool = False):
        super().__init__()
        self.pool = AvgPool(up=spec.blur != "max") if pooled and stride > 1 else None
        self.conv = make_conv(spec, in_width, out_width, 1, stride=1 if self.pool else stride)
        self.norm = None if spec.preact else make_norm(spec, out_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        if self.pool is not None:
            x = self.pool(x)
        x = self.conv(x)
        return x if self.norm is None else norm_act(x, self.norm, None)


SHORTCUTS = ("projection", "zero_pad", "avg_zero_pad", "project_all", "avg_pool", "none")


def make_shortcut(spec: NetworkSpec, in_width: int, out_width: int, stride: int) -> nn.Module | None:
    """The module that computes S(x): the identity where the shape stays, else what `spec.shortcut` says.

    Args:
        spec: the network; its `shortcut` is one of SHORTCUTS.
        in_width: channels that come in.
        out_width: channels that the block gives out.
        stride: the block's.

    Returns:
        A module (B, C, H, W) -> (B, C', H/stride, W/stride), or None for "none": the plain twin, y = relu(F(x)).

    Raises:
        InputError: an unknown kind.
    """
    kind = spec.shortcut
    if kind not in SHORTCUTS:
        raise unknown("shortcut", kind, SHORTCUTS)
    if kind == "none":
        return None
    if in_width == out_width and stride == 1 and kind != "project_all":
        return nn.Identity()
    if kind == "avg_zero_pad" and stride > 1:  # Han et al. 2017 (arXiv:1610.02915), section 3.3
        before = (out_width - in_width) // 2
        return AvgPool(up=spec.blur != "max", before=before, behind=out_width - in_width - before)
    if kind in ("zero_pad", "avg_zero_pad"):
        return ZeroPad(in_width, out_width, stride)
    return Projection(spec, in_width, out_width, stride, pooled=kind == "avg_pool")

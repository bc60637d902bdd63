"""What halves an image: maximum, average, binomial filter."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.network_spec import NetworkSpec
from skipway.nn import kernels, passes


class BlurPool(nn.Module):
    """Every second pixel of the image under a 3x3 binomial filter (Zhang 2019, arXiv:1904.11486). No parameters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("line", torch.tensor([0.25, 0.5, 0.25]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2), rounded up."""
        if x.device.type != "cpu" or kernels.computes_in(x) != torch.bfloat16:
            return self._blurred(x)
        with torch.autocast("cpu", enabled=False):  # the gradient in bfloat16 takes PyTorch ten times as long
            return self._blurred(x.float()).bfloat16()

    def _blurred(self, x: Tensor) -> Tensor:
        line = self.line.to(x.dtype)
        filters = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), filters, stride=2, groups=x.shape[1])


class AvgPool(nn.AvgPool2d):
    """2x2 average pool with stride 2; odd images are rounded up, over the pixels that there are, or down.

    Args:
        up: which.
        before, behind: channels of zeros before and behind those that there are.
    """

    def __init__(self, *, up: bool, before: int = 0, behind: int = 0):
        super().__init__(2, 2, ceil_mode=up, count_include_pad=False)
        self.before, self.behind = before, behind

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/2, W/2)."""
        even = not self.ceil_mode or not (input.shape[2] % 2 or input.shape[3] % 2)
        if self.training and even and kernels.suits(input):
            return passes.avg_pool(input, self.before, self.behind)
        pooled = super().forward(input)
        widens = self.before or self.behind
        return F.pad(pooled, (0, 0, 0, 0, self.before, self.behind)) if widens else pooled


class MaxPool(nn.MaxPool2d):
    """2x2 max-pool with stride 2, rounded down."""

    def __init__(self):
        super().__init__(2, 2)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H // 2, W // 2)."""
        return passes.max_pool(input) if self.training and kernels.suits(input) else super().forward(input)


def make_blur(spec: NetworkSpec) -> nn.Module:
    """What halves the image in place of a stride: rounded up, the maximum down."""
    if spec.blur == "blur":
        return BlurPool()
    if spec.blur == "max":
        return MaxPool()
    return nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)

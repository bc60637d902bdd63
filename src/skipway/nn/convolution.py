"""Convolutions of small feature maps on the CPU: the same arithmetic, laid out so that the machine can do it.

oneDNN computes a row of output pixels at a time. Where a row has 8 pixels or fewer, most of a matrix unit's 16 rows
stand empty, and the gradient of a 3x3 weight at 4x4 pixels costs four times what it costs at 32x32. Here images stand
side by side in strips, zeros between them where the padding would be: one wide image with the same products in it.
On two cores the weight gradient of 512 channels at 4x4 takes 17 ms in place of 71, of 256 at 8x8 18 in place of 29
(benchmarks/kernels.py). The matrix unit, where it is to be had, takes the 3x3 ones of stride 1 before
(matrix_unit.py). A 1x1 weight's gradient is one matrix product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.nn import kernels

LARGEST = 8  # pixels a side of the images that go into strips
WIDE = 1 << 18  # channels in x channels out from which the other two passes gain from strips too, at 4x4 pixels


def convolve(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """A convolution without bias, dilation or groups, whose training passes suit small images.

    Args:
        x: (B, C, H, W).
        weight: (C', C, k, k), k odd.
        stride: 1 or 2.
        padding: k // 2.

    Returns:
        (B, C', H/stride, W/stride), the bits of F.conv2d.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    made = _Convolution.apply(x, weight, stride, padding)
    assert isinstance(made, Tensor)
    return made


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, stride, padding):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        images = _strip_length(x) if _is_wide(x, weight, stride) else 1
        if images == 1:
            return F.conv2d(x, weight, None, stride, padding)
        width = x.shape[-1]
        return _apart(F.conv2d(_strips(x, images, width + padding), weight, None, 1, padding), images, width)

    @staticmethod
    def backward(ctx, dy):  # pyrefly: ignore[bad-override]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        dx = _input_gradient(dy, x, weight, ctx.stride, ctx.padding) if wants_x else None
        return dx, _weight_gradient(dy, x, weight, ctx.stride, ctx.padding) if wants_weight else None, None, None


def _gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, which: int) -> Tensor:
    """One of the gradients of a convolution: which = 0 that of x, 1 that of the weight."""
    mask = [which == 0, which == 1, False]
    window = ([stride] * 2, [padding] * 2, [1, 1])
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *window, False, [0, 0], 1, mask)[which]


def _input_gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    images = _strip_length(x) if _is_wide(x, weight, stride) else 1
    if images == 1:
        return _gradient(dy, x, weight, stride, padding, 0)
    width = x.shape[-1]
    joined = _strips(dy, images, width + padding)
    like = joined.new_empty((len(joined), x.shape[1], *joined.shape[2:])).to(memory_format=torch.channels_last)
    return _apart(_gradient(joined, like, weight, stride, padding, 0), images, width)


def _weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    if weight.shape[-1] == 1:
        pixels = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        return (dy.permute(0, 2, 3, 1).reshape(-1, dy.shape[1]).t() @ pixels).view_as(weight)
    images = _strip_length(x)
    if images == 1:
        return _gradient(dy, x, weight, stride, padding, 1)
    step = -(-(x.shape[-1] + padding) // stride)  # output pixels from image to image: no window sees two
    joined = _strips(dy, images, step), _strips(x, images, step * stride)
    return _gradient(*joined, weight, stride, padding, 1)


def _is_wide(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether forward and input gradient gain from strips too."""
    return stride == 1 and weight.shape[-1] == 3 and x.shape[-1] <= 4 and weight[:, :, 0, 0].numel() >= WIDE


def _strip_length(x: Tensor) -> int:
    """Images in a strip: about ten, and a divisor of the batch."""
    return next(n for n in (10, 8, 9, 7, 12, 6, 5, 4, 3, 2, 1) if len(x) % n == 0)


def _strips(x: Tensor, images: int, step: int) -> Tensor:
    """Images side by side, one every `step` pixels, zeros between. (B, C, H, W) -> (B/images, C, H, images * step)."""
    batch, channels, height, width = x.shape
    joined = x.new_zeros((batch // images, height, images, step, channels))
    parted = x.permute(0, 2, 3, 1).reshape(batch // images, images, height, width, channels)
    joined[:, :, :, :width] = parted.transpose(1, 2)
    return joined.view(batch // images, height, images * step, channels).permute(0, 3, 1, 2)


def _apart(joined: Tensor, images: int, width: int) -> Tensor:
    """The inverse of _strips: (B/images, C, H, images * step) -> (B, C, H, width)."""
    count, channels, height, total = joined.shape
    rows = joined.permute(0, 2, 3, 1).reshape(count, height, images, total // images, channels)
    parted = rows[:, :, :, :width].transpose(1, 2)
    return parted.reshape(count * images, height, width, channels).permute(0, 3, 1, 2)


def suits(x: Tensor, conv: torch.nn.Conv2d) -> bool:
    """Whether a training step of this convolution gains: small square images on the CPU, bf16, channels_last."""
    return (
        x.device.type == "cpu"
        and kernels.computes_in(x) == torch.bfloat16
        and x.shape[-1] <= LARGEST
        and conv.groups == 1
        and conv.bias is None
        and conv.dilation == (1, 1)
        and conv.kernel_size in ((1, 1), (3, 3))
        and conv.stride[0] == conv.stride[1] <= 2
        and conv.padding == (conv.kernel_size[0] // 2,) * 2
        and conv.weight.requires_grad
        and torch.is_grad_enabled()
    )

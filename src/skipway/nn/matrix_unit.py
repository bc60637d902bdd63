"""3x3 convolutions of a training step on the processor's matrix unit (AMX), by our own kernels (convolution.cpp).

These lay a few images out in the cache at a time, whatever their size: on two cores weight gradients take 0.13 to 0.81
of oneDNN's time, forward passes and input gradients of small images 0.42 to 0.98 (benchmarks/kernels.py). Where
oneDNN's forward pass and input gradient are faster, on large images of many channels, they stay.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from skipway.nn import kernels

LARGE, WIDE = 12, 128  # pixels a side and channels from which two of the three passes are left to oneDNN


def suits(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether the kernels take this convolution: 3x3, stride 1, multiples of 32 channels, bf16, no bias, loaded."""
    return (
        kernels.active
        and kernels.library is not None
        and x.device.type == "cpu"
        and x.ndim == 4
        and x.numel() > 0
        and kernels.computes_in(x) == torch.bfloat16
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and conv.weight.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and bool(kernels.call("conv_ready"))
        and bool(kernels.call("conv_fits", x.shape[2], x.shape[3], conv.in_channels, conv.out_channels))
    )


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of what `suits`. (B, C, H, W), (C', C, 3, 3) -> (B, C', H, W), bf16, sums in fp32."""
    return fork(x.to(torch.bfloat16), weight)[0]


def fork(x: Tensor, weight: Tensor, *, pool: bool = False) -> tuple[Tensor, Tensor]:
    """The convolution, and x for whoever else needs it, a shortcut say: both gradients of x are added in one pass.

    Args:
        x: (B, C, H, W), bf16.
        weight: (C', C, 3, 3).
        pool: a 2x2 max-pool with stride 2 follows, rounded down; what it is taken from never goes to memory.
    """
    made, same = _Convolution.apply(x, weight.to(torch.bfloat16), pool)
    return made, same


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, pool):
        x, weight = _rows(x), _rows(weight)
        batch, _, height, width = x.shape
        which = _empty(x, (batch, len(weight), height // 2, width // 2), torch.uint8) if pool else None
        ctx.save_for_backward(x, weight, which)
        ctx.set_materialize_grads(False)
        return _multiply(x, weight, (height, width), which=which), x

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, added):  # pyrefly: ignore[bad-override]
        x, weight, which = ctx.saved_tensors
        if dy is None:
            return added, None, None
        (batch, channels, *size), dx, dw, dy = x.shape, None, None, _rows(dy)
        if ctx.needs_input_grad[0]:
            dx = _multiply(dy, weight, (size[0], size[1]), added=added, which=which, turned=True)
        if ctx.needs_input_grad[1]:
            dw, threads = torch.empty_like(weight), torch.get_num_threads()
            kernels.call("conv_weight", x, dy, dw, which, batch, *size, channels, len(weight), threads)
        return dx, dw, None


def _multiply(
    x: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    *,
    added: Tensor | None = None,
    which: Tensor | None = None,
    turned: bool = False,
) -> Tensor:
    """The forward pass, or turned the input gradient, plus what is added.

    Args:
        x, weight, added: images, or their gradient, and filters.
        size: pixels of the images that the convolution itself sees.
        which: what a pool behind the convolution takes: to be told, or turned known.
        turned: which of the two.
    """
    if which is None and size[1] >= LARGE and min(weight.shape[:2]) >= WIDE:
        made = _input_gradient(x, weight) if turned else F.conv2d(x, weight, padding=1)
        return made if added is None else made.add_(added)
    out = weight.shape[1 if turned else 0]
    made = _empty(x, (len(x), out, *(size if which is None or turned else which.shape[2:])), x.dtype)
    added = None if added is None else _rows(added)
    shape, packed, threads = (len(x), *size, x.shape[1], out), torch.empty_like(weight), torch.get_num_threads()
    kernels.call("conv_forward", x, weight, added, made, which, packed, *shape, int(turned), threads)
    return made


def _empty(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Channels next to each other."""
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """oneDNN's."""
    like = dy.new_empty(()).expand(len(dy), weight.shape[1], *dy.shape[2:])
    mask = [True, False, False]
    return torch.ops.aten.convolution_backward(
        dy, like, weight, None, [1] * 2, [1] * 2, [1] * 2, False, [0] * 2, 1, mask
    )[0]


def _rows(x: Tensor) -> Tensor:
    """Channels next to each other."""
    return x.contiguous(memory_format=torch.channels_last)

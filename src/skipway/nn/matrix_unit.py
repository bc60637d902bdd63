"""3x3 convolutions of a training step on the processor's matrix unit (AMX), by our own kernels (convolution.cpp).

oneDNN's reach 0.4 to 3.4 of the unit's 6.8 TFLOP/s on two cores, least in weight gradients and on small images; these
lay a few images out in the cache at a time, whatever their size, and reach 1.6 to 3 (benchmarks/kernels.py). Where
oneDNN's forward pass and input gradient are faster still, on large images of many channels, they stay.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from skipway.nn import kernels

LARGE, WIDE = 12, 128  # pixels a side and channels from which two of the three passes are left to oneDNN


def suits(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether the kernels take this convolution: 3x3, stride 1, multiples of 32 channels, bf16, no bias, loaded."""
    library = kernels.library
    return (
        kernels.active
        and library is not None
        and x.device.type == "cpu"
        and x.ndim == 4
        and x.numel() > 0
        and (x.dtype == torch.bfloat16 or _autocasts())
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and conv.weight.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and bool(library.conv_ready())
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


def _autocasts() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, pool):
        x, weight = _rows(x), _rows(weight)
        ctx.set_materialize_grads(False)
        if not pool:
            ctx.save_for_backward(x, weight, None)
            return _multiply(x, weight, None, turned=False), x
        made = _empty(x, len(weight), x.shape[2] // 2, x.shape[3] // 2)
        which = torch.empty_like(made, dtype=torch.uint8)
        _call(x, weight, None, made, which, _shape(x), turned=False)
        ctx.save_for_backward(x, weight, which)
        return made, x

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, added):  # pyrefly: ignore[bad-override]
        x, weight, which = ctx.saved_tensors
        if dy is None:
            return added, None, None
        dy = _rows(dy)
        dx = dw = None
        if ctx.needs_input_grad[0] and which is None:
            dx = _multiply(dy, weight, added, turned=True)
        elif ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            _call(dy, weight, added, dx, which, (*_shape(x)[:3], len(weight)), turned=True)
        if ctx.needs_input_grad[1]:
            dw = torch.empty_like(weight)
            kernels.call("conv_weight", x, dy, dw, which, *_shape(x), len(weight), torch.get_num_threads())
        return dx, dw, None


def _multiply(x: Tensor, weight: Tensor, added: Tensor | None, *, turned: bool) -> Tensor:
    """The forward pass, or turned the input gradient, plus what is added."""
    if x.shape[-1] >= LARGE and min(weight.shape[:2]) >= WIDE:
        made = _input_gradient(x, weight) if turned else F.conv2d(x, weight, padding=1)
        return made if added is None else made.add_(added)
    made = _empty(x, weight.shape[1 if turned else 0], x.shape[2], x.shape[3])
    _call(x, weight, added, made, None, _shape(x), turned=turned)
    return made


def _call(
    x: Tensor,
    weight: Tensor,
    added: Tensor | None,
    made: Tensor,
    which: Tensor | None,
    shape: tuple[int, int, int, int],
    *,
    turned: bool,
) -> None:
    """The kernel, into `made`; the shape is that of the images that the convolution itself sees."""
    added = None if added is None else _rows(added)
    packed, threads = torch.empty_like(weight), torch.get_num_threads()
    kernels.call("conv_forward", x, weight, added, made, which, packed, *shape, made.shape[1], int(turned), threads)


def _empty(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """As many images, channels next to each other."""
    return x.new_empty((len(x), height, width, channels)).permute(0, 3, 1, 2)


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


def _shape(x: Tensor) -> tuple[int, int, int, int]:
    """Images, height, width, channels."""
    return x.shape[0], x.shape[2], x.shape[3], x.shape[1]

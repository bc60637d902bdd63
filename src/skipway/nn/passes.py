"""Pools of 2x2 pixels, and a bias with its activation, by our own kernels; for what `kernels.suits`."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from skipway.nn import kernels


def max_pool(x: Tensor) -> Tensor:
    """2x2 max-pool with stride 2, for what `suits`. (B, C, H, W) -> (B, C, H // 2, W // 2)."""
    made = _MaxPool.apply(x)
    assert isinstance(made, Tensor)
    return made


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        batch, channels, height, width = ctx.shape = x.shape
        shape = (batch, channels, height // 2, width // 2)
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        which = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        kernels.Pixels(x).call("max_pool", x, y, which, batch, height, width, channels)
        ctx.save_for_backward(which)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # pyrefly: ignore[bad-override]
        (which,) = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty(ctx.shape, dtype=dy.dtype, memory_format=torch.channels_last)
        kernels.Pixels(dy).call("max_unpool", dy, which, dx, batch, height, width, channels)
        return dx


def avg_pool(x: Tensor, before: int = 0, behind: int = 0) -> Tensor:
    """2x2 average pool with stride 2, between channels of zeros. (B, C, H, W) -> (B, C', H // 2, W // 2)."""
    made = _AvgPool.apply(x, before, behind)
    assert isinstance(made, Tensor)
    return made


class _AvgPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, before, behind):
        batch, channels, height, width = ctx.shape = x.shape
        ctx.wide, ctx.before = before + channels + behind, before
        y = x.new_empty((batch, height // 2, width // 2, ctx.wide)).permute(0, 3, 1, 2)
        kernels.Pixels(x).call("avg_pool", x, y, batch, height, width, channels, ctx.wide, before)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # pyrefly: ignore[bad-override]
        batch, channels, height, width = ctx.shape
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty(ctx.shape, dtype=dy.dtype, memory_format=torch.channels_last)
        kernels.Pixels(dy).call("avg_unpool", dy, dx, batch, height, width, channels, ctx.wide, ctx.before)
        return dx, None, None


def takes(conv: nn.Conv2d, act: nn.Module) -> bool:
    """Whether `bias_act` can take the place of its bias and of the activation behind it; hooks want the modules."""
    known = conv.bias is not None and conv.bias.dtype == torch.float32 and type(act) in kernels.KINDS
    return kernels.active and known and not kernels.hooked(conv) and not kernels.hooked(act)


def bias_act(x: Tensor, bias: Tensor, act: nn.Module) -> Tensor:
    """act(x + bias), one number of the bias a channel. Same shape and dtype as x."""
    made = _BiasAct.apply(x, bias, kernels.KINDS[type(act)])
    assert isinstance(made, Tensor)
    return made


class _BiasAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, kind):
        pixels, y = kernels.Pixels(x), torch.empty_like(x)
        pixels.call("norm_apply", kind, x, None, y, *pixels.shape, torch.ones_like(bias), bias)
        kept = y if kind == kernels.KINDS[nn.ReLU] else None
        ctx.save_for_backward(x, bias, kept)
        ctx.kind = kind
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # pyrefly: ignore[bad-override]
        x, bias, y = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x)
        extra = (torch.ones_like(bias), bias, torch.zeros_like(bias))
        sums = kernels.Pixels(x).reduce("norm_slopes", ctx.kind, dy, x, y, None, dx, extra=extra)
        return dx, sums[0], None

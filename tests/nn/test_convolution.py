"""Small images in strips against PyTorch's convolution."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skipway.nn import convolution
from skipway.nn.convolution import convolve, suits
from skipway.nn.layers import Conv

# batch, channels in, out, pixels, stride, kernel
SHAPES = [
    *((20, 16, 32, 4, 1, 3), (20, 16, 32, 4, 2, 3), (14, 16, 32, 7, 1, 3), (14, 16, 32, 7, 2, 3), (11, 6, 8, 8, 2, 3)),
    *((16, 16, 32, 5, 1, 3), (16, 6, 32, 6, 2, 3), (12, 8, 8, 1, 1, 3), (12, 8, 8, 2, 2, 3), (13, 8, 8, 3, 1, 3)),
    *(
        (10, 16, 8, 4, 1, 1),
        (10, 16, 8, 7, 2, 1),
        (10, 16, 8, 8, 2, 1),
        (10, 512, 512, 4, 1, 3),
        (4, 512, 512, 3, 1, 3),
    ),
]


def both(shape, dtype):
    """Output and gradients, ours and PyTorch's."""
    batch, inside, outside, pixels, stride, kernel = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, inside, pixels, pixels, generator=generator)
    weight = torch.randn(outside, inside, kernel, kernel, generator=generator)
    found = []
    for function in (
        lambda x, w: convolve(x, w, stride, kernel // 2),
        lambda x, w: F.conv2d(x, w, None, stride, kernel // 2),
    ):
        own = [t.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, weight)]
        y = function(*own)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        found.append((y, *torch.autograd.grad(y, own, dy)))
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_strips_hold_the_same_arithmetic(shape):
    ours, theirs = both(shape, torch.float64)
    for a, b in zip(ours, theirs, strict=True):
        assert ((a - b).norm() / b.norm()).item() < 1e-14
        assert a.shape == b.shape


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_gives_the_bits_of_output_and_input_gradient(shape):
    ours, theirs = both(shape, torch.bfloat16)
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(a, b)
    assert ((ours[2] - theirs[2]).float().norm() / theirs[2].float().norm()).item() < 1e-3


def test_zeros_between_images_keep_them_apart():
    x = torch.randn(6, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    joined = convolution._strips(x, 3, 4)
    assert joined.shape == (2, 2, 3, 12)
    assert (joined[..., 3::4] == 0).all()
    assert torch.equal(convolution._apart(joined, 3, 3), x)


def test_layer_takes_strips_under_autocast_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(convolution, "convolve", lambda *a: calls.append(a) or convolve(*a))
    layer = Conv(8, 8, 3, 1, 1, bias=False)
    x = torch.randn(4, 8, 8, 8)
    layer(x)
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert len(calls) == 1
        layer.eval()
        assert torch.equal(layer(x), y)
        assert len(calls) == 1
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("layer", "pixels"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, bias=False), 9),
        (nn.Conv2d(8, 8, 3, padding=1), 8),
        (nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), 8),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False), 8),
        (nn.Conv2d(8, 8, 5, padding=2, bias=False), 8),
        (nn.Conv2d(8, 8, 3, bias=False), 8),
        (nn.Conv2d(8, 8, 3, padding=1, bias=False).requires_grad_(False), 8),
    ],
)
def test_other_layers_stay_pytorchs(layer, pixels):
    x = torch.randn(4, 8, pixels, pixels, dtype=torch.bfloat16)
    assert not suits(x, layer)
    assert suits(x[..., :8, :8], nn.Conv2d(8, 8, 3, padding=1, bias=False))


def test_compiles_into_one_graph():
    layer = Conv(8, 8, 3, 1, 1, bias=False)
    x = torch.randn(4, 8, 8, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    grads = []
    for call in (layer, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            loss = call(x).square().sum()
        grads += torch.autograd.grad(loss, layer.weight)
    assert torch.equal(*grads)


def test_second_derivatives_are_pytorchs():
    found = []
    for function in (lambda x, w: convolve(x, w, 1, 1), lambda x, w: F.conv2d(x, w, None, 1, 1)):
        x, w = (
            torch.randn(s, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
            for s in ((4, 3, 4, 4), (5, 3, 3, 3))
        )
        (grad,) = torch.autograd.grad(function(x, w).pow(3).sum(), w, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), (x, w)))
    for a, b in zip(*found, strict=True):
        assert ((a - b).norm() / b.norm()).item() < 1e-12

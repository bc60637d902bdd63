"""Convolutions on the matrix unit against PyTorch's arithmetic in double."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from batches import distance
from torch import nn

import skipway
from skipway.nn import kernels, matrix_unit
from skipway.nn.layers import Conv, fork
from skipway.nn.pools import MaxPool
from skipway.nn.zoo import find

ROUNDING = 2.5e-3  # of bf16 numbers with 8 bits


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return made.contiguous(memory_format=torch.channels_last).requires_grad_()


def exact_convolution(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight, padding=1)


SHAPES = [(1, 32, 32, 1, 1), (5, 64, 96, 7, 7), (3, 96, 64, 15, 15), (9, 32, 32, 3, 5), (2, 64, 32, 33, 20)]
SHAPES += [(70, 32, 64, 4, 4), (1, 32, 128, 56, 56), (33, 256, 256, 2, 2), (7, 160, 32, 8, 9), (2, 128, 160, 13, 12)]


@pytest.mark.parametrize(("batch", "inside", "outside", "height", "width"), SHAPES)
def test_output_and_gradients_are_a_convolutions(unit, batch, inside, outside, height, width):
    x, weight = drawn(batch, inside, height, width), drawn(outside, inside, 3, 3, seed=1)
    dy, aside = drawn(batch, outside, height, width, seed=2), drawn(batch, inside, height, width, seed=3)
    y, same = matrix_unit.fork(x, weight)
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    z = exact_convolution(*exact)
    ours = torch.autograd.grad([y, same], [x, weight], [dy.detach(), aside.detach()])
    theirs = torch.autograd.grad([z, exact[0]], exact, [dy.detach().double(), aside.detach().double()])
    assert torch.equal(same, x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.dtype == torch.bfloat16
    for a, b in zip((y, *ours), (z, *theirs), strict=True):
        assert a.shape == b.shape
        assert distance(a, b) < ROUNDING


@pytest.mark.parametrize(
    ("batch", "inside", "outside", "height", "width"),
    [(3, 32, 64, 30, 30), (5, 64, 256, 15, 15), (7, 256, 96, 7, 6), (9, 96, 64, 2, 2), (1, 32, 32, 3, 5)],
)
def test_a_pool_behind_it_gives_the_bits_of_both(unit, batch, inside, outside, height, width):
    x, weight = drawn(batch, inside, height, width), drawn(outside, inside, 3, 3, seed=1)
    dy, aside = drawn(batch, outside, height // 2, width // 2, seed=2), drawn(batch, inside, height, width, seed=3)
    found = []
    for pool in (True, False):
        y, same = matrix_unit.fork(x, weight, pool=pool)
        y = y if pool else F.max_pool2d(y, 2)
        found.append((y, *torch.autograd.grad([y, same], [x, weight], [dy.detach(), aside.detach()])))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_pool_keeps_nan_and_infinity(unit):
    x, weight = torch.zeros(1, 32, 4, 4, dtype=torch.bfloat16), torch.zeros(32, 32, 3, 3, dtype=torch.bfloat16)
    weight[:, :, 1, 1] = torch.eye(32)
    x[0, 0, 0, 1], x[0, 1, 1, 1], x[0, 2] = torch.nan, torch.inf, -torch.inf
    x[0, 0, 0, 0] = torch.inf  # NaN goes before
    y, _ = matrix_unit.fork(x, weight.requires_grad_(), pool=True)
    assert y[0, :, 0, 0].isnan().all()  # 0 times infinity in the sums of all others
    y, _ = matrix_unit.fork(x.nan_to_num(7, 5, -3), weight, pool=True)
    assert y[0, :3, 0, 0].tolist() == [7, 5, -3]
    assert y[0, 3:].eq(0).all()


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_one_gradient_alone(unit, wanted):
    x, weight = drawn(3, 32, 6, 6), drawn(32, 32, 3, 3, seed=1)
    exact = [t.detach().double().requires_grad_(w) for t, w in zip((x, weight), wanted, strict=True)]
    for t, w in zip((x, weight), wanted, strict=True):
        t.requires_grad_(w)
    matrix_unit.convolve(x, weight).square().sum().backward()
    exact_convolution(*exact).square().sum().backward()
    for t, e, w in zip((x, weight), exact, wanted, strict=True):
        assert (t.grad is not None) == w
        if w:
            assert distance(t.grad, e.grad) < 2 * ROUNDING


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(unit, threads):
    before = torch.get_num_threads()
    x, weight = drawn(11, 64, 5, 5), drawn(96, 64, 3, 3, seed=1)
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    theirs = torch.autograd.grad(exact_convolution(*exact).pow(2).sum(), exact)
    try:
        torch.set_num_threads(threads)
        first, again = (torch.autograd.grad(matrix_unit.convolve(x, weight).pow(2).sum(), (x, weight)) for _ in "12")
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(first, again, theirs, strict=True):
        assert torch.equal(a, b)
        assert distance(a, c) < 2 * ROUNDING


def test_inputs_in_any_layout(unit):
    x, weight = drawn(2, 32, 9, 9), drawn(32, 32, 3, 3, seed=1)
    plain = matrix_unit.convolve(x.detach().contiguous(), weight.detach().contiguous())
    shifted = torch.cat([torch.zeros(1, 32, 9, 9, dtype=torch.bfloat16), x.detach()])[1:]
    assert torch.equal(plain, matrix_unit.convolve(x, weight))
    assert torch.equal(plain, matrix_unit.convolve(shifted.contiguous(memory_format=torch.channels_last), weight))


def test_infinities_stay_where_they_are(unit):
    x, weight = drawn(2, 32, 6, 6).detach(), drawn(32, 32, 3, 3, seed=1)
    x[0, 3, 5, 5] = torch.inf
    y = matrix_unit.convolve(x, weight)
    assert not y[0, :, 4:, 4:].isfinite().any()
    assert y[0, :, :4].isfinite().all()
    assert y[1].isfinite().all()


def test_layers_take_it_under_autocast_in_training_alone(unit, monkeypatch):
    calls = []
    inner = matrix_unit.fork
    monkeypatch.setattr(matrix_unit, "fork", lambda *a: calls.append(a) or inner(*a))
    layer, x = Conv(32, 32, 3, 1, 1, bias=False), torch.randn(4, 32, 10, 10)
    layer(x)
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
        assert len(calls) == 1
        layer.eval()(x)
        with kernels.used(False):
            layer.train()(x)
    assert len(calls) == 1
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("layer", "pixels"),
    [
        (nn.Conv2d(32, 48, 3, padding=1, bias=False), 8),
        (nn.Conv2d(16, 32, 3, padding=1, bias=False), 8),
        (nn.Conv2d(32, 32, 3, padding=1), 8),
        (nn.Conv2d(32, 32, 3, padding=1, stride=2, bias=False), 8),
        (nn.Conv2d(32, 32, 3, padding=2, dilation=2, bias=False), 8),
        (nn.Conv2d(64, 32, 3, padding=1, groups=2, bias=False), 8),
        (nn.Conv2d(32, 32, 1, bias=False), 8),
        (nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular", bias=False), 8),
        (nn.Conv2d(32, 32, 3, padding=1, bias=False).requires_grad_(False), 8),
        (nn.Conv2d(512, 512, 3, padding=1, bias=False), 40),
    ],
)
def test_other_layers_stay_pytorchs(unit, layer, pixels):
    x = torch.zeros(2, layer.in_channels, pixels, pixels, dtype=torch.bfloat16)
    assert not matrix_unit.suits(x, layer)
    assert matrix_unit.suits(x[:, :32, :8, :8], nn.Conv2d(32, 32, 3, padding=1, bias=False))


def test_fork_keeps_the_hooks_of_a_convolution(unit):
    layer, x = Conv(32, 32, 3, 1, 1, bias=False), drawn(2, 32, 5, 5)
    seen = []
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    y, same = fork(layer, x)
    handle.remove()
    z, _ = fork(layer, x)
    assert seen == [1]
    assert same is x
    assert torch.equal(y, z)
    pool = MaxPool()
    handle = pool.register_forward_hook(lambda *_: seen.append(2))
    y, _ = fork(layer, x, pool)
    handle.remove()
    z, _ = fork(layer, x, pool)
    assert seen == [1, 2]
    assert torch.equal(y, z)
    assert y.shape == (2, 32, 2, 2)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_networks_gradients_are_those_without_it(unit, name):
    spec = dataclasses.replace(find(name), stem="cifar")
    network = skipway.build(spec, num_classes=10).to(memory_format=torch.channels_last)
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x, y = x.contiguous(memory_format=torch.channels_last), torch.arange(16) % 10
    found = []
    for dtype, used in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        network.zero_grad()
        with kernels.used(used), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(network(x).float(), y)
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert distance(found[2], found[0]) < 1.5 * distance(found[1], found[0])

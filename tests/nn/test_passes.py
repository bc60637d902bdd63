"""Pools and biases with activations by our own kernels, against PyTorch's."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from batches import distance, images
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import skipway
from skipway.network_spec import NetworkSpec
from skipway.nn import kernels, passes
from skipway.nn.pools import AvgPool, BlurPool
from skipway.recipes import cifar10_94

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 5e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("shape", [(3, 16, 8, 8), (3, 5, 7, 9), (2, 20, 2, 3)])
def test_average_pool_is_torchs(loaded, dtype, up, shape):
    x = images(*shape, dtype=dtype)
    exact = x.detach().double().requires_grad_()
    y, z = AvgPool(up=up)(x), F.avg_pool2d(exact, 2, ceil_mode=up, count_include_pad=False)
    dy = images(*z.shape, dtype=dtype, seed=1).detach()
    y.backward(dy)
    z.backward(dy.double())
    assert y.shape == z.shape
    assert y.dtype == dtype
    assert distance(y, z) < TOLERANCE[dtype]
    assert distance(x.grad, exact.grad) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_average_pool_between_channels_of_zeros(loaded, dtype):
    x = images(3, 5, 7, 9, dtype=dtype)
    pool, found = AvgPool(up=False, before=2, behind=4), []
    for own in (True, False):
        with kernels.used(own):
            y = pool(x)
        dy = images(3, 11, 3, 4, dtype=dtype, seed=1).detach()
        found.append((y, *torch.autograd.grad(y, x, dy)))
    for a, b in zip(*found, strict=True):
        assert distance(a, b) < TOLERANCE[dtype]
    assert found[0][0][:, :2].abs().sum() == 0


@pytest.mark.parametrize("up", [False, True])
def test_our_average_pool_runs_where_it_may(loaded, monkeypatch, up):
    calls = []
    inner = passes.avg_pool
    monkeypatch.setattr(passes, "avg_pool", lambda *a: calls.append(a) or inner(*a))
    pool = AvgPool(up=up)
    pool(images(2, 4, 6, 6))
    pool(images(2, 4, 7, 6))  # up: PyTorch's
    pool.eval()(images(2, 4, 6, 6))
    with kernels.used(False):
        pool.train()(images(2, 4, 6, 6))
    assert len(calls) == (1 if up else 2)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU()])
def test_bias_and_activation(loaded, dtype, act):
    x, bias = images(6, 24, 7, 5, dtype=dtype), torch.randn(24, requires_grad=True)
    y = passes.bias_act(x, bias, act)
    dy = images(6, 24, 7, 5, dtype=dtype, seed=1).detach()
    y.backward(dy)
    x2, bias2 = x.detach().double().requires_grad_(), bias.detach().double().requires_grad_()
    z = act(x2 + bias2[:, None, None])
    z.backward(dy.double())
    for a, b in ((y, z), (x.grad, x2.grad), (bias.grad, bias2.grad)):
        assert distance(a, b) < TOLERANCE[dtype]


@pytest.mark.parametrize("act", ["relu", "silu", "gelu"])
def test_whitening_stem_computes_the_same_with_and_without(loaded, act):
    spec = cifar10_94().network
    assert isinstance(spec, NetworkSpec)
    network = skipway.build(dataclasses.replace(spec, act=act)).to(memory_format=torch.channels_last)
    stem, x = network.stem, images(4, 3, 12, 12).detach()
    with torch.no_grad():
        stem.get_parameter("conv.bias").normal_(generator=torch.Generator().manual_seed(1))
    found = []
    for own in (True, False):
        with kernels.used(own):
            y = stem(x)
        (grad,) = torch.autograd.grad(y.square().sum(), stem.get_parameter("conv.bias"))
        found.append((y, grad))
    for a, b in zip(*found, strict=True):
        assert distance(a, b) < 1e-6
    seen = []
    handle = stem.get_submodule("conv").register_forward_hook(lambda *_: seen.append(1))
    with kernels.used(True):
        stem(x)
    handle.remove()
    assert seen == [1]


@pytest.mark.parametrize("autocast", [False, True])
def test_blur_in_bfloat16_is_that_in_float32_rounded_once(autocast):
    x = torch.randn(2, 4, 7, 9, generator=torch.Generator().manual_seed(0))
    x = x.bfloat16().float() if autocast else x.bfloat16()
    exact, x = x.detach().float().requires_grad_(), x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = BlurPool()(x)
    z = BlurPool()(exact)
    assert z.dtype == torch.float32
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, z.bfloat16())
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    (dx,), (dz,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(z, exact, dy.float())
    assert torch.equal(dx, dz.to(dx.dtype))


def test_blur_sends_nothing_to_a_device_at_each_step():
    made = make_fx(BlurPool())(torch.zeros(1, 4, 8, 8)).code
    assert "lift_fresh" not in made
    assert not BlurPool().state_dict()

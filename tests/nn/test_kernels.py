"""Our own kernels against PyTorch's arithmetic in double."""

import copy
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from batches import distance, images
from torch import nn

import skipway
from skipway.nn import kernels
from skipway.nn.layers import norm_act
from skipway.nn.pools import MaxPool
from skipway.nn.zoo import find

ACTS = {"none": None, "relu": nn.ReLU(), "silu": nn.SiLU()}
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 5e-3}


def random_norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=generator)
        norm.bias.normal_(generator=generator)
    return norm


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", [(6, 24, 7, 5), (300, 3, 1, 1), (2, 130, 2, 2)])
def test_norm_act_is_batch_norm_addition_and_activation(loaded, dtype, act, added, shape):
    x, norm = images(*shape, dtype=dtype), random_norm(shape[1])
    extra = images(*shape, dtype=dtype, seed=2) if added else None
    exact = copy.deepcopy(norm).double()
    module = ACTS[act]
    assert kernels.takes(norm, ACTS[act], extra, x)
    y = norm_act(x, norm, ACTS[act], extra)
    dy = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    y.backward(dy)
    x2 = x.detach().double().requires_grad_()
    extra2 = None if extra is None else extra.detach().double().requires_grad_()
    z = exact(x2) if extra2 is None else exact(x2) + extra2
    z = module(z) if module else z
    z.backward(dy.double())
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    pairs = [(y, z), (x.grad, x2.grad), (norm.weight.grad, exact.weight.grad), (norm.bias.grad, exact.bias.grad)]
    if extra is not None and extra2 is not None:
        pairs.append((extra.grad, extra2.grad))
    assert max(distance(a, b) for a, b in pairs) < TOLERANCE[dtype]
    assert distance(norm.running_mean, exact.running_mean) < 1e-6
    assert distance(norm.running_var, exact.running_var) < 1e-6
    assert norm.num_batches_tracked == 1


def test_variance_survives_a_mean_that_dwarfs_it(loaded):
    x = (images(64, 8, 9, 9).detach() * 1e-3 + 1000).requires_grad_()
    norm = nn.BatchNorm2d(8, eps=1e-12)
    y = norm_act(x, norm, None)
    wanted = (x.double() - x.double().mean((0, 2, 3), keepdim=True)) / x.double().std(
        (0, 2, 3), keepdim=True, correction=0
    )
    assert (
        distance(y, wanted) < 0.03
    )  # fp32 steps at 1000 are 0.00006, a deviation 0.002; sums without a shift give noise


def test_same_bits_with_any_number_of_threads(loaded):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, norm = images(10, 24, 9, 9, dtype=torch.bfloat16), random_norm(24)
            y = norm_act(x, norm, ACTS["silu"])
            y.backward(y.detach())
            found.append((y, x.grad, norm.weight.grad, norm.running_var))
    finally:
        torch.set_num_threads(before)
    assert all(distance(a, b) == 0 for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("act", ACTS)
def test_numbers_that_are_none_are_passed_on(loaded, act):
    x, norm = images(4, 8, 3, 3), random_norm(8)
    with torch.no_grad():
        x[0, 2, 1, 1] = float("nan")
    y = norm_act(x, norm, ACTS[act])
    assert y[:, 2].isnan().all()
    assert y[:, :2].isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(3, 16, 8, 8), (3, 5, 7, 9), (2, 20, 2, 3)])
def test_max_pool_is_torchs(loaded, dtype, shape):
    x = images(*shape, dtype=dtype)
    with torch.no_grad():
        x[:, 0] = 1  # all equal: the first counts
    x2 = x.detach().clone().requires_grad_()
    y, z = MaxPool()(x), F.max_pool2d(x2, 2)
    dy = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    y.backward(dy)
    z.backward(dy)
    assert torch.equal(y, z)
    assert distance(x.grad, x2.grad) == 0


@pytest.mark.parametrize("name", ["resnet20", "preact_resnet20", "resnet50"])
def test_networks_gradients_are_as_exact_as_pytorchs(loaded, name):
    spec = replace(find(name), act="silu")  # smooth: no sign decides
    network = skipway.build(spec, num_classes=10, image_size=32).to(memory_format=torch.channels_last)
    x = images(8, 3, 32, 32).detach()

    def gradient(dtype: torch.dtype, *, own: bool) -> torch.Tensor:
        copied = copy.deepcopy(network).to(dtype)
        with kernels.used(own):
            F.cross_entropy(copied(x.to(dtype)), torch.arange(8)).backward()
        return torch.cat([p.grad.flatten().double() for p in copied.parameters() if p.grad is not None])

    exact = gradient(torch.float64, own=False)
    ours, theirs = gradient(torch.float32, own=True), gradient(torch.float32, own=False)
    assert not torch.equal(ours, theirs)
    assert distance(ours, exact) < 3 * distance(theirs, exact) + 1e-5


@pytest.mark.parametrize(
    "case",
    ["switched off", "evaluation", "a hook on the norm", "a hook on the activation", "contiguous", "GELU", "one value"],
)
def test_pytorch_computes_what_the_kernels_do_not_take(loaded, case):
    x, norm, act = images(4, 8, 3, 3), random_norm(8), nn.ReLU()
    assert kernels.takes(norm, act, None, x)
    if case == "evaluation":
        norm.eval()
    elif case == "a hook on the norm":
        norm.register_forward_hook(lambda *_: None)
    elif case == "a hook on the activation":
        act.register_forward_pre_hook(lambda *_: None)
    elif case == "contiguous":
        x = x.detach().contiguous()
    elif case == "GELU":
        act = nn.GELU()
    elif case == "one value":
        x = images(1, 8, 1, 1)
    with kernels.used(case != "switched off"):
        assert not kernels.takes(norm, act, None, x)


def test_second_derivative_is_refused_not_wrong(loaded):
    x, norm = images(4, 8, 3, 3), random_norm(8)
    (grad,) = torch.autograd.grad(norm_act(x, norm, nn.ReLU()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_without_a_compiler_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "library", None)
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert kernels.load() == "there is no C++ compiler"


def test_a_compiler_that_fails_is_told_in_one_line(monkeypatch, tmp_path):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'no space for it' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(kernels, "library", None)
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda _: str(broken))
    assert "no space for it" in kernels.load()
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="levels are those of x86")
@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_older_processors_have_kernels_too(tmp_path, level):
    code = f"""if True:
        import torch, skipway
        from skipway.nn import kernels
        kernels.FLAGS += ("-march={level}",)
        assert not kernels.load(), kernels.load()
        assert not kernels.call("conv_ready") and not kernels.call("conv_fits", 8, 8, 32, 32)
        network = skipway.build("resnet18", num_classes=2)
        x = torch.rand(4, 3, 32, 32).to(memory_format=torch.channels_last)
        found = []
        for own in (True, False):
            with kernels.used(own):
                found.append(network.to(memory_format=torch.channels_last)(x))
        assert not torch.equal(*found) and torch.allclose(*found, atol=1e-3)
        found[0].sum().backward()"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"SKIPWAY_CACHE": str(tmp_path)}, check=True)


def test_a_damaged_library_is_made_again(loaded, tmp_path):
    code = "from skipway.nn import kernels; import sys; sys.exit(kernels.load() or 0)"
    environment = os.environ | {"SKIPWAY_CACHE": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        (made,) = tmp_path.rglob("*.so")
        assert made.stat().st_size > 1000
        made.write_bytes(b"cut")

"""Slow weights and fixed norms, around every optimizer."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from skipway.spec import TrainSpec
from skipway.training.optim import make_optimizer

OPTIMIZERS = ("sgd", "adamw", "adam", "lamb", "muon")
SPEC = TrainSpec(lr=0.05, batch_size=8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(*layers)


def steps(net: nn.Module, spec: TrainSpec, num: int) -> list[list[Tensor]]:
    """The parameters after each of some steps along gradients that are always the same."""
    optimizer = make_optimizer(net, spec)
    made = []
    generator = torch.Generator().manual_seed(1)
    for _ in range(num):
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        made.append([p.detach().clone() for p in net.parameters()])
    return made


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_filters_keep_the_norm_that_they_began_with(kind):
    net = network()
    start = [p.detach().clone() for p in net.parameters()]
    spec = dataclasses.replace(SPEC, optimizer=kind, fixed_norm=True)
    ends, free = steps(net, spec, 5)[-1], steps(network(), dataclasses.replace(spec, fixed_norm=False), 5)[-1]
    for before, after, loose in zip(start, ends, free, strict=True):
        if before.ndim == 4:
            torch.testing.assert_close(after.norm(), before.norm())
            assert abs(loose.norm() / before.norm() - 1) > 1e-3
            assert not torch.allclose(after, before, rtol=1e-2)
        else:
            assert torch.equal(after, loose)


def test_a_first_step_is_the_free_one_scaled():
    (fixed,) = steps(network(), dataclasses.replace(SPEC, fixed_norm=True), 1)
    (free,) = steps(network(), SPEC, 1)
    for before, after, loose in zip(network().parameters(), fixed, free, strict=True):
        factor = before.detach().norm() / loose.norm() if before.ndim == 4 else 1.0
        torch.testing.assert_close(after, loose * factor)


def test_filters_that_begin_with_zeros_are_free():
    net, twin = network(), network()
    for each in (net, twin):
        nn.init.zeros_(each.get_parameter("1.weight"))
    ours, free = steps(net, dataclasses.replace(SPEC, fixed_norm=True), 4)[-1], steps(twin, SPEC, 4)[-1]
    assert free[2].any()
    assert torch.equal(ours[2], free[2])


def test_lookahead_is_the_papers_algorithm_over_sgd():
    """Algorithm 1 written out, for SGD without momentum, whose state is the weights alone."""
    spec = dataclasses.replace(SPEC, lookahead=3, momentum=0.0, weight_decay=0.0)
    net = network()
    slow = [p.detach().clone() for p in net.parameters()]
    fast = [p.clone() for p in slow]
    made = steps(net, spec, 8)
    generator = torch.Generator().manual_seed(1)
    for step in range(8):
        fast = [p - 0.05 * torch.randn(p.shape, generator=generator) for p in fast]
        if step in (2, 5):
            slow = [s + 0.5 * (f - s) for s, f in zip(slow, fast, strict=True)]
            fast = [s.clone() for s in slow]
        torch.testing.assert_close(made[step], fast)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_lookahead_changes_every_kth_step_alone(kind):
    spec = dataclasses.replace(SPEC, optimizer=kind)
    plain, ahead = steps(network(), spec, 2), steps(network(), dataclasses.replace(spec, lookahead=2), 2)
    start = [p.detach() for p in network().parameters()]
    assert all(torch.equal(a, b) for a, b in zip(plain[0], ahead[0], strict=True))
    torch.testing.assert_close(ahead[1], [(s + p) / 2 for s, p in zip(start, plain[1], strict=True)])


def test_slow_weights_have_the_fixed_norm_too():
    net = network()
    optimizer = make_optimizer(net, dataclasses.replace(SPEC, lookahead=2, fixed_norm=True))
    norms = [p.detach().norm() for p in net.parameters()]
    for _ in range(4):
        for p in net.parameters():
            p.grad = torch.randn(p.shape)
        optimizer.step()
    for p, norm in zip(net.parameters(), norms, strict=True):
        assert torch.equal(optimizer.state[p]["slow"], p)
        if p.ndim == 4:
            torch.testing.assert_close(p.detach().norm(), norm)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_part_that_joins_late_begins_where_it_is_then(kind):
    """A block that stochastic depth left out has no gradient; optimizers set up their state at its first one."""
    net = network()
    optimizer = make_optimizer(net, dataclasses.replace(SPEC, optimizer=kind, lookahead=2, fixed_norm=True))
    late = net.get_parameter("1.weight")
    start = late.detach().clone()
    for step in range(4):
        for p in net.parameters():
            p.grad = torch.randn(p.shape) if p is not late or step == 2 else None
        optimizer.step()
        if step < 2:
            assert torch.equal(late, start)
    assert not torch.equal(late, start)
    torch.testing.assert_close(late.detach().norm(), start.norm())

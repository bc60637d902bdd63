"""Paths counted one by one, their gradients along each of them, and their sum against autograd's own."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from subjects import SMALL, small_subject
from torch import Tensor, nn

from skipway.insight.adapters import ADAPTERS, Addition
from skipway.insight.backward import Backward, one_path, sums_by_length
from skipway.insight.paths import EXPERIMENT, Length, Paths, PathsSettings, path_lengths, paths
from skipway.insight.probe import Probe
from skipway.insight.subject import Subject
from skipway.network_spec import StageSpec
from skipway.nn.twin import twin

SPEC = replace(SMALL, stages=(StageSpec(2, 8), StageSpec(2, 16, stride=2)), stem_width=8)


class Linear(nn.Module):
    """x -> sum of paths: y = (W + 1) x, four times; without activations, so that each path is a product of matrices."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.blocks = nn.ModuleList(Straight(generator) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Straight(nn.Module):
    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5, generator=generator, dtype=torch.float64) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + x


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> Linear:
    place = (Straight.__module__, Straight.__name__)
    monkeypatch.setitem(ADAPTERS, place, lambda b: (Addition(lambda x: x @ b.weight.T, lambda x: x),))
    return Linear()


def test_paths_of_a_linear_network_are_products_of_matrices(linear):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with Probe(linear, x) as probe:
        back = Backward(probe, x, lambda logits: (logits * slope).sum() / 3)
        sums = sums_by_length(back)
        found = {taken: one_path(back, taken) for taken in subsets(4)}
    for taken, gradient in found.items():
        wanted = slope
        for i in sorted(taken, reverse=True):
            wanted = wanted @ linear.blocks[i].weight
        assert torch.allclose(gradient, wanted, rtol=1e-12)
    for length, total in sums.items():
        assert torch.allclose(total, added(g for t, g in found.items() if len(t) == length), rtol=1e-12)
    whole = slope
    for block in reversed(linear.blocks):
        whole = whole @ block.weight + whole
    assert torch.allclose(added(found.values()), whole, rtol=1e-12)
    assert torch.allclose(back.whole, whole, rtol=1e-12)


def added(gradients: Iterable[Tensor]) -> Tensor:
    return torch.stack([*gradients]).sum(0)


def subsets(count: int) -> list[frozenset[int]]:
    return [frozenset(c) for k in range(count + 1) for c in itertools.combinations(range(count), k)]


@pytest.mark.parametrize("changes", [{}, {"block": "preact"}, {"shortcut": "zero_pad"}])
def test_all_paths_of_a_network_add_up_to_its_gradient(changes):
    subject = small_subject(replace(SPEC, **changes), steps=4)
    images = subject.train.first(4)
    x = images.inputs.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(F.cross_entropy(subject.network(x), images.labels, reduction="sum"), x)
    with Probe(subject.network, images.inputs) as probe:
        back = Backward(probe, images.inputs, lambda logits: subject.loss(logits, images.labels))
        found = {taken: one_path(back, taken) for taken in subsets(4)}
        sums = sums_by_length(back)
    assert torch.allclose(back.whole, wanted, rtol=1e-4, atol=1e-6)
    assert torch.allclose(added(found.values()), wanted, rtol=1e-3, atol=1e-5)
    for length, total in sums.items():
        one_by_one = added(g for t, g in found.items() if len(t) == length)
        assert torch.allclose(total, one_by_one, rtol=1e-3, atol=1e-5)
    assert len({round(g.norm().item(), 9) for g in found.values()}) == 16


def test_a_path_is_the_gradient_with_the_other_ways_cut():
    """The branch detached where the path skips, the shortcut where it does not: written out by hand."""
    subject = small_subject(SPEC, steps=4)
    images, network = subject.train.first(4), subject.network
    x = images.inputs.clone().requires_grad_()
    h = network.get_submodule("stem")(x)
    for i in range(4):
        block = network.get_submodule(f"stages.{i // 2}.{i % 2}")
        branch, skip = block.branch(h), block.shortcut(h)  # pyrefly: ignore[not-callable]
        h = F.relu(branch + skip.detach()) if i in (1, 2) else F.relu(branch.detach() + skip)
    loss = F.cross_entropy(network.get_submodule("head")(h), images.labels, reduction="sum")
    (wanted,) = torch.autograd.grad(loss, x)
    with Probe(network, images.inputs) as probe:
        back = Backward(probe, images.inputs, lambda logits: subject.loss(logits, images.labels))
        assert torch.allclose(one_path(back, frozenset({1, 2})), wanted, rtol=1e-4, atol=1e-7)


def test_counts_are_binomial_and_those_of_paths_counted_one_by_one():
    subject = small_subject(SPEC)
    units = Probe(subject.network, subject.seen.inputs).units
    assert path_lengths(units) == dict(Counter(len(taken) for taken in subsets(4))) == {0: 1, 1: 4, 2: 6, 3: 4, 4: 1}
    plain = small_subject(twin(SPEC).spec)
    assert path_lengths(Probe(plain.network, plain.seen.inputs).units) == {4: 1}
    assert path_lengths(units * 15) == {k: math.comb(60, k) for k in range(61)}


def small() -> Subject:
    return small_subject(SPEC, steps=4)


def test_the_experiment_says_what_the_paths_say():
    subject = small()
    result = paths(subject, PathsSettings(num_images=4, num_draws=10))
    images = subject.train.first(4)
    with Probe(subject.network, images.inputs) as probe:
        back = Backward(probe, images.inputs, lambda logits: subject.loss(logits, images.labels))
        found = {taken: one_path(back, taken) for taken in subsets(4)}
    whole = back.whole.flatten(1)
    for each in result.lengths:
        mates = [g.flatten(1) for t, g in found.items() if len(t) == each.length]
        total = torch.stack(mates).sum(0)
        assert each.portion == len(mates) / 16
        assert each.together == pytest.approx((total.norm(dim=1) / whole.norm(dim=1)).mean().item(), rel=1e-3)
        along = ((total * whole).sum(1) / whole.square().sum(1)).mean().item()
        assert each.along == pytest.approx(along, rel=1e-3, abs=1e-5)
        if len(mates) in (1, 4):  # draws may name a path twice; of 1 they cannot miss
            norms = [g.norm(dim=1).mean().item() for g in mates]
            assert min(norms) * 0.999 <= each.single <= max(norms) * 1.001
    longest = found[frozenset(range(4))].flatten(1).norm(dim=1).mean().item()
    assert result.lengths[4].single == pytest.approx(longest, rel=1e-4)
    assert sum(x.along for x in result.lengths) == pytest.approx(1, abs=1e-4)
    assert sum(result.shares) == pytest.approx(1)
    assert result.residue < 1e-4


def test_a_plain_network_is_one_path():
    subject = small_subject(twin(SPEC).spec, steps=2)
    result = paths(subject, PathsSettings(num_images=4))
    (only,) = result.lengths
    assert (only.length, only.portion, result.num_skips) == (4, 1.0, 0)
    assert (only.together, only.along) == pytest.approx((1, 1), rel=1e-4)
    assert "1 path, through all 4 branches" in EXPERIMENT.read(result).sentences[0]


def made_up(*singles: float) -> Paths:
    count = len(singles) - 1
    lengths = (Length(k, math.comb(count, k) / 2**count, 0.1, 0.1, s) for k, s in enumerate(singles))
    return Paths(count, count, 10, tuple(lengths), 0.0)


@pytest.mark.parametrize(
    ("singles", "verdict"),
    [
        ((1.0, 0.1, 0.01, 0.001, 0.0001), "agrees"),
        ((0.1, 1.0, 10.0, 100.0, 1000.0), "disagrees"),
        ((1.0, 0.95, 0.9, 0.85, 0.8), "open"),
        ((float("nan"),) * 5, "open"),
    ],
)
def test_verdict_weighs_paths_with_their_gradient(singles, verdict):
    assert EXPERIMENT.read(made_up(*singles)).verdict == verdict


def test_branches_of_zero_show_nothing():
    from skipway.insight.paths import _verdict

    assert _verdict(4.0, 0.01) == "open"
    assert _verdict(4.0, 2.0) == "agrees"
    assert _verdict(4.0, 5.0) == "disagrees"

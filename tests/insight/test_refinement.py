"""Cosines against finite differences, and the answer forming against networks rebuilt without the later blocks."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from subjects import SMALL, small_subject
from torch import nn

from skipway.errors import InputError
from skipway.insight.edits import Edit
from skipway.insight.forming import forming
from skipway.insight.probe import Probe
from skipway.insight.refinement import EXPERIMENT, Refinement, RefinementSettings, Step, cosines, refinement
from skipway.insight.subject import Subject
from skipway.network_spec import StageSpec
from skipway.nn.network import ResNet
from skipway.nn.twin import twin

SPEC = replace(SMALL, stages=(StageSpec(2, 8), StageSpec(3, 16, stride=2)), stem_width=8)
QUICK = RefinementSettings(num_images=24, num_slopes=6)


def double(subject: Subject) -> Subject:
    """The subject in float64, for differences that are small."""
    network = copy.deepcopy(subject.network).double()
    images = replace(subject.seen, inputs=subject.seen.inputs.double())
    return replace(subject, model=replace(subject.model, network=network), seen=images)


def smooth(changes: dict) -> Subject:
    return double(small_subject(replace(SPEC, act="silu", **changes), steps=6))


@pytest.mark.parametrize("changes", [{}, {"block": "preact"}, {"shortcut": "zero_pad"}])
def test_the_cosine_with_the_gradient_by_the_sum_is_a_finite_difference(changes):
    """F . dL/d(F + S) is how the loss moves with the scale of F: from alpha = 1 - e to 1, of each image alone."""
    subject = smooth(changes)
    images, step = subject.seen.first(3), 1e-6
    with Probe(subject.network, images.inputs) as probe:
        found = cosines(subject, probe, images)
        seen, slopes = probe.activations(images.inputs), probe.gradients(images.inputs, images.labels)
        for unit, cosine in zip(probe.units, found, strict=True):
            scaled = probe.run(images.inputs, edits=[Edit("branch", unit.name, 1 - step)])
            losses = [F.cross_entropy(x, images.labels, reduction="none") for x in (probe.run(images.inputs), scaled)]
            moved = (losses[0] - losses[1]) / step
            f, g = (t[f"{unit.name}.branch"].flatten(1).norm(dim=1) for t in (seen, slopes))
            wanted = -moved / (f * g * len(images))  # `gradients` are of the mean
            assert torch.allclose(cosine.at_sum.double(), wanted, rtol=1e-3, atol=1e-5)
            assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize("changes", [{}, {"block": "preact"}])
def test_the_cosine_at_the_input_is_a_finite_difference_along_the_branch(changes):
    """(L(x + e F) - L(x - e F)) / 2e is F . dL/dx at the block's input."""
    subject = smooth(changes)
    images, step = subject.seen.first(3), 1e-5
    with Probe(subject.network, images.inputs) as probe:
        found = cosines(subject, probe, images)
        seen, slopes = probe.activations(images.inputs), probe.gradients(images.inputs, images.labels)
        for unit, cosine in zip(probe.units, found, strict=True):
            if unit.opens:
                assert cosine.at_input.isnan().all()
                continue
            x, branch = (seen[f"{unit.name}.{part}"].detach() for part in ("input", "branch"))
            moved = [
                F.cross_entropy(
                    probe.run(images.inputs, inputs={unit.name: x + sign * step * branch}),
                    images.labels,
                    reduction="none",
                )
                for sign in (1, -1)
            ]
            f, g = branch.flatten(1).norm(dim=1), slopes[f"{unit.name}.input"].flatten(1).norm(dim=1)
            wanted = -(moved[0] - moved[1]) / (2 * step) / (f * g * len(images))
            assert torch.allclose(cosine.at_input.double(), wanted, rtol=1e-3, atol=1e-5)


def test_batches_and_means_are_over_images(monkeypatch):
    subject = small_subject(SPEC, steps=6)
    images = subject.seen.first(6)
    with Probe(subject.network, images.inputs) as probe:
        whole = cosines(subject, probe, images)
        monkeypatch.setattr("skipway.insight.refinement.BATCH", 4)
        for a, b in zip(whole, cosines(subject, probe, images), strict=True):
            assert torch.allclose(a.at_sum, b.at_sum, rtol=1e-3, atol=1e-5)
    result = refinement(subject, QUICK)
    for step, found in zip(result.steps[1:], whole, strict=True):
        assert step.cosine == pytest.approx(found.at_sum.mean().item(), rel=1e-3, abs=1e-5)
        assert step.deviation == pytest.approx(found.at_sum.std(correction=0).item(), rel=1e-3, abs=1e-5)
        assert step.count == 6
        assert step.opens or step.before == pytest.approx(found.at_input.mean().item(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("spec", [SPEC, twin(SPEC).spec])
def test_the_answer_after_a_block_is_that_of_the_network_rebuilt_without_the_later_ones(spec):
    subject = small_subject(spec, steps=6)
    result = refinement(subject, QUICK)
    openers = [s.name for s in result.steps if s.opens]
    assert openers == ["stage2.block1"]
    for done, step in enumerate(result.steps):
        rebuilt = copy.deepcopy(subject.network)
        assert isinstance(rebuilt, ResNet)
        names = [s.name for s in result.steps[1 : done + 1]]
        for i in (0, 1):
            blocks = rebuilt.get_submodule(f"stages.{i}").named_children()
            here = [(f"stage{i + 1}.block{int(j) + 1}", block) for j, block in blocks]
            rebuilt.stages[i] = nn.ModuleList(block for name, block in here if name in [*names, *openers])
        with torch.no_grad():
            logits = rebuilt(subject.seen.inputs)
        assert step.loss == subject.loss(logits, subject.seen.labels).item()
        assert step.accuracy == subject.right(logits, subject.seen.labels).mean().item()
        one = forming(subject, subject.seen.inputs[5]).steps[done]
        sizes = dict(zip(one.classes, one.probabilities, strict=True))
        assert [sizes[c] for c in ("a", "b", "c")] == pytest.approx(logits.softmax(1)[5].tolist(), rel=1e-4, abs=1e-6)
    assert len({s.loss for s in result.steps}) == 5  # start, and four blocks that open no stage


def test_forming_ends_with_the_networks_own_answer():
    subject = small_subject(SPEC, steps=6)
    x = subject.seen.inputs[7:8]
    with torch.no_grad():
        wanted = subject.network(x).softmax(1)[0]
    found = forming(subject, x, top=2)
    best = wanted.topk(2)
    assert found.classes == tuple("abc"[i] for i in best.indices.tolist())
    assert found.steps[-1].probabilities == found.steps[-1].later
    assert found.steps[-1].later == pytest.approx(best.values.tolist(), rel=1e-5)
    assert [s.name for s in found.steps] == [
        "start",
        *(f"stage{i}.block{j}" for i, j in ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3))),
    ]
    assert all(list(s.probabilities) == sorted(s.probabilities, reverse=True) for s in found.steps)
    with pytest.raises(InputError, match="takes one image"):
        forming(subject, subject.seen.inputs[:2])


def test_forming_of_many_labels_gives_each_its_own_probability():
    subject = small_subject(SPEC, steps=6)
    subject = replace(subject, model=replace(subject.model, thresholds=(0.5, 0.5, 0.5)))
    found = forming(subject, subject.seen.inputs[0])
    with torch.no_grad():
        wanted = subject.network(subject.seen.inputs[:1]).sigmoid()[0].sort(descending=True).values
    assert found.steps[-1].probabilities == pytest.approx(wanted.tolist(), rel=1e-5)


def test_images_without_a_gradient_are_left_out():
    subject = small_subject(SPEC, steps=6)
    sure = copy.deepcopy(subject.network)
    with torch.no_grad():
        sure.get_parameter("head.linear.weight").zero_()
        sure.get_parameter("head.linear.bias").copy_(torch.tensor([1000.0, 0, 0]))
    subject = replace(subject, model=replace(subject.model, network=sure))
    result = refinement(subject, QUICK)
    assert all(s.count == 0 and math.isnan(s.cosine) for s in result.steps)
    assert EXPERIMENT.read(result).verdict == "open"


def made_up(*cosines: float, plain: bool = False) -> Refinement:
    steps = (Step(f"stage1.block{i}", False, i / 10, 1.0, c, 0.1, c, 5) for i, c in enumerate(cosines, 1))
    return Refinement(plain, 10, 0.1, (Step("start", False, 0.1, 2.0), *steps))


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (made_up(0.1, 0.12, 0.09), "agrees"),
        (made_up(-0.1, -0.12, -0.09), "disagrees"),
        (made_up(0.1, -0.12, 0.05), "open"),
        (made_up(0.1, 0.12, 0.09, plain=True), "open"),
    ],
)
def test_verdict_follows_the_mean_cosine(made, verdict):
    assert EXPERIMENT.read(made).verdict == verdict


def test_reading_says_where_half_of_the_way_is():
    says = EXPERIMENT.read(made_up(0.1, 0.12, 0.09)).sentences
    assert "cosine of 0.103 on average, most in stage1.block2 (0.120); 3 of 3" in says[0]
    assert "10.0% right, after the last 30.0%; half of the way is reached after stage1.block2" in says[1]

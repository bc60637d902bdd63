"""Lesions against networks rebuilt without the block, or with two blocks in each other's place."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from subjects import SMALL, small_subject
from torch import nn

from skipway.errors import InputError
from skipway.insight.cuts import damage_by_unit
from skipway.insight.edits import Edit
from skipway.insight.lesion import EXPERIMENT, Cut, Lesion, LesionSettings, Several, Swap, lesion
from skipway.insight.remeasure import Remeasured
from skipway.insight.subject import Subject
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.network import ResNet
from skipway.nn.twin import twin

LONGER = replace(SMALL, stem_width=8, stages=(StageSpec(3, 8), StageSpec(3, 16, stride=2)))
SHORTER = replace(LONGER, stages=(StageSpec(2, 8), StageSpec(2, 16, stride=2)))
QUICK = LesionSettings(num_images=24, num_draws=2, num_swaps=3)


@cache
def trained(spec: NetworkSpec = LONGER) -> Subject:
    return small_subject(spec, steps=6)


def without(network: nn.Module, *names: str) -> nn.Module:
    """A copy of a network of ours that lacks these blocks."""
    rebuilt = copy.deepcopy(network)
    assert isinstance(rebuilt, ResNet)
    for name in sorted(names, reverse=True):
        stage, block = (
            int(part.removeprefix(word)) - 1 for part, word in zip(name.split("."), ("stage", "block"), strict=True)
        )
        blocks = list(rebuilt.get_submodule(f"stages.{stage}").children())
        rebuilt.stages[stage] = nn.ModuleList(b for i, b in enumerate(blocks) if i != block)
    return rebuilt


def scored(subject, network: nn.Module) -> tuple[float, float]:
    with torch.no_grad():
        logits = network(subject.seen.inputs)
    return (logits.argmax(1) == subject.seen.labels).float().mean().item(), subject.loss(
        logits, subject.seen.labels
    ).item()


@pytest.mark.parametrize("spec", [LONGER, twin(LONGER).spec])
def test_each_cut_scores_as_the_network_rebuilt_without_the_block(spec):
    subject = trained(spec)
    result = lesion(subject, QUICK)
    assert (result.accuracy, result.loss) == scored(subject, subject.network)
    closed = [c for c in result.cuts if not c.opens]
    assert [c.name for c in closed] == [f"stage{i}.block{j}" for i, j in ((1, 1), (1, 2), (1, 3), (2, 2), (2, 3))]
    for cut in closed:
        assert (cut.accuracy, cut.loss) == scored(subject, without(subject.network, cut.name))
    assert len({c.loss for c in closed} | {result.loss}) == 6
    damage = damage_by_unit(subject)
    assert damage == {c.name: result.accuracy - c.accuracy for c in result.cuts}


def test_an_opener_cut_is_its_shortcut_alone():
    subject = trained(SHORTER)
    cut = next(c for c in lesion(subject, QUICK).cuts if c.opens)
    rebuilt = copy.deepcopy(subject.network)
    block = rebuilt.get_submodule("stages.1.0")
    block.branch = lambda x: torch.zeros_like(block.shortcut(x))  # pyrefly: ignore
    assert cut.name == "stage2.block1"
    assert (cut.accuracy, cut.loss) == scored(subject, rebuilt)


def test_openers_of_a_plain_network_are_listed_with_the_reason():
    result = lesion(trained(twin(SHORTER).spec), QUICK)
    assert result.plain
    assert list(result.uncut) == ["stage2.block1"]
    assert "has no shortcut" in result.uncut["stage2.block1"]
    assert "stage2.block1" not in {c.name for c in result.cuts}


def test_several_cuts_are_distinct_and_score_as_the_network_rebuilt():
    subject = trained()
    result = lesion(subject, replace(QUICK, num_draws=50))
    names = [f"stage{i}.block{j}" for i, j in ((1, 1), (1, 2), (1, 3), (2, 2), (2, 3))]
    assert [(s.count, len(s.accuracies)) for s in result.several] == [(1, 5), (2, 10), (3, 10), (4, 5), (5, 1)]
    assert result.several[-1].accuracies == (scored(subject, without(subject.network, *names))[0],)
    singles = sorted(scored(subject, without(subject.network, name))[0] for name in names)
    assert sorted(result.several[0].accuracies) == singles


def test_swaps_are_of_equal_shapes_and_score_as_the_network_rebuilt():
    subject = trained()
    result = lesion(subject, replace(QUICK, num_swaps=50))
    assert {(s.first, s.second) for s in result.swaps} == {
        ("stage1.block1", "stage1.block2"),
        ("stage1.block1", "stage1.block3"),
        ("stage1.block2", "stage1.block3"),
        ("stage2.block2", "stage2.block3"),
    }
    rebuilt = copy.deepcopy(subject.network)
    assert isinstance(rebuilt, ResNet)
    a, b, c = rebuilt.get_submodule("stages.0").children()
    rebuilt.stages[0] = nn.ModuleList([b, a, c])
    swap = next(s for s in result.swaps if s.second == "stage1.block2")
    assert swap.accuracy == scored(subject, rebuilt)[0]


def test_statistics_measured_again_are_those_of_the_network_rebuilt():
    """One batch of train images in training mode gives them; torch's running variance is the unbiased one."""
    subject = trained(SHORTER)
    rebuilt = without(subject.network, "stage1.block2")
    for module in rebuilt.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        rebuilt.train()(subject.train.inputs)
    result = lesion(subject, replace(QUICK, reestimate=True))
    cut = next(c for c in result.cuts if c.name == "stage1.block2")
    assert cut.reestimated == scored(subject, rebuilt.eval())[0]
    assert cut.accuracy == scored(subject, without(subject.network, "stage1.block2"))[0]
    with torch.no_grad():
        wanted = rebuilt(subject.seen.inputs)
    measured = Remeasured(subject, num_images=24)
    measured.logits(subject.seen, [])  # what was measured before leaves no trace
    assert torch.allclose(measured.logits(subject.seen, [Edit("block", "stage1.block2")]), wanted, atol=1e-5)
    assert result.reestimated == result.reestimated


def test_statistics_of_several_batches_are_averaged(monkeypatch):
    monkeypatch.setattr("skipway.insight.remeasure.BATCH", 8)
    subject = trained(SHORTER)
    measured = Remeasured(subject, num_images=24)
    measured.logits(subject.seen, [])
    copied = copy.deepcopy(subject.network)
    seen = []
    copied.train()
    with torch.no_grad():
        for batch in subject.train.inputs.split(8):
            copied.get_submodule("stem.norm").momentum = 1.0  # pyrefly: ignore
            copied(batch)
            seen.append(copied.get_submodule("stem.norm").get_buffer("running_mean").clone())
    found = measured.network.get_submodule("stem.norm").get_buffer("running_mean")
    assert torch.allclose(found, torch.stack(seen).mean(0), atol=1e-6)


def test_networks_without_batch_norm_have_nothing_to_measure_again():
    subject = small_subject(replace(SMALL, norm="group", norm_groups=4))
    with pytest.raises(InputError, match="no batch norm"):
        lesion(subject, replace(QUICK, reestimate=True))


def made_up(left: float, *, plain: bool = False, whole: float = 0.9) -> Lesion:
    cuts = tuple(Cut(f"stage1.block{i}", False, left, 1.0) for i in range(1, 4))
    return Lesion(
        plain,
        10,
        whole,
        0.1,
        float("nan"),
        0.1,
        (*(c.name for c in cuts), "c"),
        cuts,
        (Several(1, (left,)),),
        (Swap("a", "b", left),),
        {"c": "why"},
    )


@pytest.mark.parametrize(
    ("left", "plain", "verdict"),
    [
        (0.85, False, "agrees"),
        (0.2, False, "disagrees"),
        (0.6, False, "open"),
        (0.2, True, "agrees"),
        (0.85, True, "disagrees"),
        (0.6, True, "open"),
    ],
)
def test_verdict_follows_what_the_median_cut_leaves(left, plain, verdict):
    reading = EXPERIMENT.read(made_up(left, plain=plain))
    assert reading.verdict == verdict
    assert any(f"{100 * left:.1f}%" in s for s in reading.sentences)


def test_a_network_that_knows_nothing_leaves_it_open():
    assert EXPERIMENT.read(made_up(0.1, whole=0.1)).verdict == "open"

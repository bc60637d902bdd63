"""Responses against a forward written out by hand, and against De and Smith's closed form at initialisation."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from subjects import SMALL, small_subject

import skipway
from skipway.insight.responses import EXPERIMENT, Responses, ResponsesSettings, responses
from skipway.insight.strengths import Layer, Share, measured
from skipway.network_spec import NetworkSpec, StageSpec

SPEC = replace(SMALL, stages=(StageSpec(1, 8), StageSpec(1, 16, stride=2)), stem_width=8, shortcut="projection")


def test_responses_are_those_of_a_forward_written_out():
    subject = small_subject(SPEC, steps=4)
    tensors = dict(subject.network.state_dict())

    def norm(x, name):
        return F.batch_norm(
            x,
            tensors[f"{name}.running_mean"],
            tensors[f"{name}.running_var"],
            tensors[f"{name}.weight"],
            tensors[f"{name}.bias"],
        )

    def conv(x, name, stride=1):
        weight = tensors[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.relu(norm(conv(subject.seen.inputs, "stem.conv"), "stem.norm"))
    layers, units = [], []
    for block, stride in (("stages.0.0", 1), ("stages.1.0", 2)):
        first = norm(conv(x, f"{block}.conv1", stride), f"{block}.norm1")
        branch = norm(conv(F.relu(first), f"{block}.conv2"), f"{block}.norm2")
        skip = x if stride == 1 else norm(conv(x, f"{block}.shortcut.conv", stride), f"{block}.shortcut.norm")
        x = F.relu(branch + skip)
        layers += [first.std().item(), branch.std().item()]
        share = branch.var() / (branch.var() + skip.var())
        ratio = branch.square().mean().sqrt() / skip.square().mean().sqrt()
        units.append([branch.std().item(), skip.std().item(), x.std().item(), share.item(), ratio.item()])
    result = responses(subject, ResponsesSettings(num_images=24))
    assert [x.name for x in result.layers] == [f"stage{i}.block1.norm{j}" for i in (1, 2) for j in (1, 2)]
    assert [x.std for x in result.layers] == pytest.approx(layers, rel=2e-3)  # n and n - 1
    for found, wanted in zip(result.units, units, strict=True):
        assert [found.branch, found.shortcut, found.output, found.share, found.ratio] == pytest.approx(wanted, rel=2e-3)
    assert [u.opens for u in result.units] == [False, True]


def test_batches_add_up_to_the_whole(monkeypatch):
    subject = small_subject(SPEC, steps=2)
    whole = measured(subject.network, subject.seen)
    monkeypatch.setattr("skipway.insight.strengths.BATCH", 7)
    parts = measured(subject.network, subject.seen)
    assert [x.std for x in parts[0]] == pytest.approx([x.std for x in whole[0]], rel=1e-6)
    assert [x.share for x in parts[1]] == pytest.approx([x.share for x in whole[1]], rel=1e-6)


def test_the_branch_of_a_fresh_network_shrinks_as_one_over_depth_with_norms_and_not_without():
    """De and Smith 2020, section 3: shares of 1 / (l + 1) with norms, of 1 / 2 without, in a wide network."""
    spec = NetworkSpec(stages=(StageSpec(12, 64),), stem="cifar", stem_width=64, block="preact", num_classes=3)
    subject = small_subject(spec)
    result = responses(subject, ResponsesSettings(num_images=24))
    start = (result.fresh[0].shortcut / result.fresh[0].branch) ** 2  # var S before the first block, of var F
    wanted = [1 / (1 + before + start) for before in range(12)]
    assert [u.share for u in result.fresh] == pytest.approx(wanted, rel=0.25)
    assert result.fresh[-1].share < 0.12
    late = [u.share for u in result.bare[6:]]
    assert sum(late) / len(late) == pytest.approx(0.5, abs=0.15)
    assert EXPERIMENT.read(result).verdict == "agrees"


def test_fresh_networks_are_fresh_and_use_batch_statistics():
    subject = small_subject(SPEC, steps=4)
    result = responses(subject, ResponsesSettings(num_images=24, seed=3))
    network = skipway.build(SPEC, seed=3)
    seen: list[torch.Tensor] = []
    block = network.get_submodule("stages.0.0.norm2")
    block.register_forward_hook(lambda module, x, y: seen.append(y.detach().clone()))
    network(subject.seen.inputs)  # in training mode
    assert result.fresh[0].branch == pytest.approx(seen[0].std().item(), rel=2e-3)
    other = responses(subject, ResponsesSettings(num_images=24, seed=4))
    assert other.fresh != result.fresh
    assert other.units == result.units


def test_networks_without_norms_show_what_stands_in_their_place():
    subject = small_subject(replace(SPEC, norm="none", branch_scale="skipinit"))
    result = responses(subject, ResponsesSettings(num_images=12))
    assert [x.name for x in result.layers][:2] == ["stage1.block1.norm1", "stage1.block1.norm2"]
    assert result.layers[0].std > 0
    assert result.bare == ()
    assert result.units[0].share == 0  # whose scale begins at 0
    assert EXPERIMENT.read(result).verdict == "open"


def made_up(normed: float, bare: float) -> Responses:
    def units(last: float) -> tuple[Share, ...]:
        return tuple(Share(f"stage1.block{i}", False, 1.0, 1.0, 1.0, x, 1.0) for i, x in enumerate((0.5, 0.5, last)))

    return Responses(
        False, 10, True, (Layer("stage1.block0.norm1", "stage1.block0", 1.5),), units(0.4), units(normed), units(bare)
    )


@pytest.mark.parametrize(
    ("normed", "bare", "verdict"), [(0.1, 0.5, "agrees"), (0.6, 0.5, "disagrees"), (0.45, 0.5, "open"), (0, 0, "open")]
)
def test_verdict_compares_the_last_blocks_with_and_without_norms(normed, bare, verdict):
    reading = EXPERIMENT.read(made_up(normed, bare))
    assert reading.verdict == verdict
    assert any("50.0% of the sum in the first blocks and 40.0% in the last." in s for s in reading.sentences)

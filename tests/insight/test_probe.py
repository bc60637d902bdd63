"""The probe against the networks themselves, autograd by hand, and networks rebuilt."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import skipway
from skipway.errors import InputError
from skipway.foreign_spec import ForeignSpec
from skipway.insight.edits import Edit, parse
from skipway.insight.prefix import Prefix
from skipway.insight.probe import Probe
from skipway.nn.foreign import build_foreign
from skipway.nn.network import ResNet
from skipway.nn.twin import twin

OURS = ("resnet20", "resnet20_b", "preact_resnet20", "seresnet50", "resnet50d")
THEIRS = (
    "torchvision:resnet18",
    "torchvision:vit_b_16",
    "timm:resnet18",
    "timm:seresnet50",
    "timm:resnetblur50",
    "timm:resnetv2_50",
    "timm:vit_tiny_patch16_224",
    "timm:convnext_atto",
)


def made(name: str, size: int = 32) -> nn.Module:
    if ":" in name:
        network = build_foreign(ForeignSpec(name, num_classes=10), image_size=size)
    else:
        network = skipway.build(name, num_classes=10, image_size=size)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # no branch is zero, no running statistic and no head is as it began
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=0.1, generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.bias.normal_(std=0.1, generator=generator)
                buffers = dict(module.named_buffers())
                buffers["running_mean"].normal_(std=0.1, generator=generator)
                buffers["running_var"].uniform_(0.5, 1.0, generator=generator)
    return network.eval()


def plain20() -> nn.Module:
    network = skipway.build(twin("resnet20").spec, num_classes=10).eval()
    nn.init.normal_(network.get_parameter("head.linear.weight"), std=0.1)
    return network


def images(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", OURS + THEIRS)
def test_probe_gives_the_networks_own_bits(name):
    size = 64 if "vit" in name or "deit" in name else 32
    network, x = made(name, size), images(size=size)
    with torch.no_grad():
        wanted = network(x)
        with Probe(network, x) as probe:
            scales = [Edit("branch", unit.name, 1.0) for unit in probe.units]
            found, scaled = probe.run(x), probe.run(x, edits=scales)
            parts = probe.activations(x)
        again = network(x)
    assert torch.equal(found, wanted)
    assert wanted.std() > 0
    assert torch.equal(scaled, wanted)
    assert torch.equal(again, wanted)
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    last = probe.units[-1].name
    assert {f"{last}.{part}" for part in ("input", "branch", "shortcut", "output")} <= set(parts)


def test_units_of_ours_are_named_and_openers_marked():
    probe = Probe(made("resnet20_b"), images())
    assert [u.name for u in probe.units][:4] == ["stage1.block1", "stage1.block2", "stage1.block3", "stage2.block1"]
    assert [u.name for u in probe.units if u.opens] == ["stage2.block1", "stage3.block1"]
    assert {u.skip for u in probe.units} == {"identity", "changed"}


def test_a_transformers_block_has_two_units():
    probe = Probe(made("timm:vit_tiny_patch16_224", 32), images())
    assert [u.name for u in probe.units][:3] == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn"]


def test_cut_branch_is_the_network_rebuilt_without_the_block():
    network, x = made("resnet20"), images()
    assert isinstance(network, ResNet)
    rebuilt = copy.deepcopy(network)
    del rebuilt.stages[1][1]  # pyrefly: ignore[unsupported-operation, bad-index]
    with torch.no_grad(), Probe(network, x) as probe:
        wanted = rebuilt(x)
        assert torch.equal(probe.run(x, edits=[Edit("block", "stage2.block2")]), wanted)
        assert torch.equal(probe.run(x, edits=[Edit("branch", "stage2.block2", 0)]), wanted)
        assert not torch.equal(probe.run(x, edits=[Edit("branch", "stage2.block2", 0.5)]), wanted)


def test_cut_block_of_a_plain_network_is_the_network_rebuilt_without_it():
    network, x = plain20(), images()
    rebuilt = copy.deepcopy(network)
    del rebuilt.stages[0][1]  # pyrefly: ignore[unsupported-operation, bad-index]
    with torch.no_grad(), Probe(network, x) as probe:
        assert torch.equal(probe.run(x, edits=[Edit("block", "stage1.block2")]), rebuilt(x))
        with pytest.raises(InputError, match="stage2.block1 changes .* cannot be cut out"):
            probe.run(x, edits=[Edit("block", "stage2.block1")])
        with pytest.raises(InputError, match="no shortcut to change"):
            probe.run(x, edits=[Edit("shortcut", "stage1.block2")])


def test_cut_shortcut_in_every_block_is_the_plain_twin():
    residual, x = made("resnet20"), images()
    plain = plain20()
    plain.load_state_dict(residual.state_dict())
    with torch.no_grad(), Probe(residual, x) as probe:
        cut = probe.run(x, edits=[Edit("shortcut", unit.name) for unit in probe.units])
        assert torch.equal(cut, plain(x))


def test_scales_are_those_of_the_equation():
    network, x = made("preact_resnet20"), images()
    with torch.no_grad(), Probe(network, x) as probe:
        seen = probe.activations(
            x, edits=[Edit("branch", "stage1.block2", 0.25), Edit("shortcut", "stage1.block2", 0.5)]
        )
        whole = probe.activations(x)
    name = "stage1.block2"
    wanted = 0.25 * whole[f"{name}.branch"] + 0.5 * whole[f"{name}.shortcut"]
    assert torch.equal(seen[f"{name}.output"], wanted)


def test_swapped_blocks_are_the_network_rebuilt():
    network, x = made("resnet20"), images()
    assert isinstance(network, ResNet)
    rebuilt = copy.deepcopy(network)
    stage = rebuilt.stages[0]
    assert isinstance(stage, nn.ModuleList)
    rebuilt.stages[0] = nn.ModuleList([stage[0], stage[2], stage[1]])
    with torch.no_grad(), Probe(network, x) as probe:
        edit = Edit("swap", "stage1.block2", other="stage1.block3")
        assert torch.equal(probe.run(x, edits=[edit]), rebuilt(x))
        with pytest.raises(InputError, match="shapes differ"):
            probe.run(x, edits=[Edit("swap", "stage1.block2", other="stage2.block1")])


def test_replaced_input_goes_on():
    network, x = made("resnet20"), images()
    with torch.no_grad(), Probe(network, x) as probe:
        other = probe.activations(images().flip(0))["stage3.block3.input"]
        assert torch.equal(probe.run(x, inputs={"stage3.block3": other}), network(x.flip(0)))


@pytest.mark.parametrize("name", ["resnet20", "preact_resnet20", "timm:vit_tiny_patch16_224"])
def test_gradients_are_autograds(name):
    network, x, labels = made(name), images(), torch.tensor([0, 1, 2])
    with Probe(network, x) as probe:
        slopes = probe.gradients(x, labels)
        middle = probe.units[len(probe.units) // 2].name
        start = probe.activations(x)[f"{middle}.input"].detach().requires_grad_()
        loss = F.cross_entropy(probe.run(x, inputs={middle: start}), labels)
        (by_hand,) = torch.autograd.grad(loss, start)
    assert torch.allclose(slopes[f"{middle}.input"], by_hand, rtol=1e-4, atol=1e-7)
    assert all(p.grad is None for p in network.parameters())


def test_gradient_of_the_block_by_hand():
    """Of y = relu(F(x) + S(x)): what reaches branch and shortcut is dy where the sum is above 0."""
    network, x, labels = made("resnet20"), images(), torch.tensor([0, 1, 2])
    with Probe(network, x) as probe:
        seen, slopes = probe.activations(x), probe.gradients(x, labels)
    name = "stage2.block2"
    wanted = slopes[f"{name}.output"] * (seen[f"{name}.branch"] + seen[f"{name}.shortcut"] > 0)
    assert torch.equal(slopes[f"{name}.branch"], wanted)


@pytest.mark.parametrize("budget", [1 << 30, 200_000, 0])
@pytest.mark.parametrize("name", ["resnet20", "timm:convnext_atto", "timm:vit_tiny_patch16_224"])
def test_prefix_answers_with_the_bits_of_a_whole_pass(name, budget, monkeypatch):
    monkeypatch.setattr("skipway.insight.prefix.BATCH", 4)
    network, x = made(name), images(6)
    with Probe(network, x) as probe, torch.no_grad():
        kept = Prefix(probe, x, budget=budget)
        assert torch.equal(kept.logits, torch.cat([network(x[:4]), network(x[4:])]))
        for unit in (probe.units[0], probe.units[len(probe.units) // 2], probe.units[-1]):
            edits = [Edit("branch", unit.name, 0.5)]
            wanted = torch.cat([probe.run(part, edits=edits) for part in x.split(4)])
            assert torch.equal(kept.score(edits), wanted)
        assert kept.score([Edit("branch", probe.units[0].name, 1.0)]) is kept.logits


def test_prefix_computes_only_what_comes_after():
    network, x = made("resnet20"), images(4)
    with Probe(network, x) as probe:
        kept = Prefix(probe, x)
        passed: list[str] = []
        run = probe.run
        probe.run = lambda *a, **k: run(*a, **k, visit=lambda unit, parts: passed.append(unit.name))  # pyrefly: ignore
        kept.score([Edit("block", "stage3.block2")])
    assert passed == ["stage3.block2", "stage3.block3"]


def test_unknown_blocks_are_refused_by_name():
    with pytest.raises(InputError, match="made of .*InvertedResidual"):
        Probe(made("torchvision:mobilenet_v2"), images())
    probe = Probe(made("resnet20"), images())
    with pytest.raises(InputError, match="Did you mean 'stage1.block1'"):
        probe.unit("stage1.blok1")
    with pytest.raises(InputError, match="head is a Head, no residual block"):
        probe.unit("head")
    with probe, pytest.raises(InputError, match=r"an edit is an Edit, as .*, got 'block:stage1.block2'"):
        probe.run(images(), edits=["block:stage1.block2"])  # pyrefly: ignore[bad-argument-type]


def test_a_subclass_with_its_own_forward_is_another_block():
    from torchvision.models.resnet import BasicBlock

    class Odd(BasicBlock):
        def forward(self, x):
            return -super().forward(x)

    network = made("torchvision:resnet18")
    network.get_submodule("layer2").add_module("1", Odd(128, 128))
    with pytest.raises(InputError, match="layer2.1 is a Odd, a BasicBlock with a forward of its own"):
        Probe(network, images())


def test_what_is_no_network_or_no_image_is_refused():
    with pytest.raises(InputError, match=r"takes a network .* got str"):
        Probe("resnet20", images())  # pyrefly: ignore[bad-argument-type]
    with pytest.raises(InputError, match="got none"):
        Probe(made("resnet20"), images(0))


def test_probe_ends_clean_after_an_error():
    network, x = made("resnet20"), images()

    def fail(unit, parts):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Probe(network, x) as probe:
        probe.run(x, visit=fail)
    assert not any("forward" in vars(m) for m in network.modules())
    with Probe(network, x) as probe:
        with pytest.raises(InputError, match="probed already"), Probe(network, x):
            pass
        assert torch.equal(probe.run(x), probe.run(x))
    with pytest.raises(InputError, match="within its context"):
        probe.run(x)


def test_probe_leaves_training_modes_alone():
    network, x = made("resnet20"), images()
    network.train()
    network.get_submodule("stages.0").eval()
    before = [m.training for m in network.modules()]
    Probe(network, x)
    assert [m.training for m in network.modules()] == before


@pytest.mark.parametrize("text", ["branch:stage1.block2=0.5", "shortcut:a=0", "block:blocks.3.attn", "swap:a,b"])
def test_edits_are_text(text):
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "cut:a", "branch:a=2", "branch:a=x", "branch:a=nan", "block:", "block:a=0.5", "swap:a", "branch"]
)
def test_edits_that_are_none_are_refused(text):
    with pytest.raises(InputError):
        parse(text)

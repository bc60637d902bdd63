"""What learns and how fast: parts, freezing, layer-wise rates."""

import dataclasses

import pytest
import timm
import torch
import torchvision
from torch import nn

import skipway
from skipway.errors import InputError
from skipway.spec import TrainSpec
from skipway.training.finetune import freeze, frozen_note, parts, rate_shares
from skipway.training.optim import make_optimizer, set_lr


def make(name: str) -> nn.Module:
    library, _, rest = name.partition(":")
    if library == "timm":
        return timm.create_model(rest)
    return torchvision.models.get_model(rest) if library == "torchvision" else skipway.build(name)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("resnet20", "stem", "head"),
        ("preact_resnet20", "stem", "head"),
        ("timm:test_vit", "patch_embed", "head"),
        ("timm:test_resnet", "conv1.0", "fc"),
        ("timm:test_convnext", "stem.0", "head"),
        ("torchvision:resnet18", "conv1", "fc"),
        ("torchvision:vgg11", "features.0", "classifier.6"),
    ],
)
def test_parts_hold_every_parameter_once_and_the_head_last(name, first, last):
    network = make(name)
    found = parts(network)
    assert (found[0].name, found[-1].name) == (first, last)
    held = [id(p) for part in found for p in part.parameters]
    assert sorted(held) == sorted(id(p) for p in network.parameters())
    assert all(part.parameters for part in found)


def test_head_is_last_wherever_it_is_written():
    class Upside(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)
            self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
            self.token = nn.Parameter(torch.zeros(1))

    assert [part.name for part in parts(Upside())] == ["body.0", "body.2", "fc"]
    assert len(parts(Upside())[0].parameters) == 3


@pytest.mark.parametrize(
    ("upto", "last", "learning"),
    [
        ("backbone", "stage3.block3", "head"),
        ("stem", "stem", "stage1.block1"),
        ("stage2", "stage2.block3", "stage3.block1"),
        ("stage2.block1", "stage2.block1", "stage2.block2"),
    ],
)
def test_freeze_takes_the_parts_up_to_the_named_one(upto, last, learning):
    network = skipway.build("resnet20")
    frozen = freeze(network, upto)
    assert frozen[-1].name == last
    free = next(part for part in parts(network) if all(p.requires_grad for p in part.parameters))
    assert free.name == learning
    assert not any(p.requires_grad for part in frozen for p in part.parameters)
    (note,) = frozen_note(network, frozen, fresh=False)
    assert f"frozen up to {last}: " in note
    assert "warning" not in note
    assert "warning: what is frozen has fresh weights" in frozen_note(network, frozen, fresh=True)[0]
    spec = dataclasses.replace(TrainSpec(), lr=0.1)
    held = [p for group in make_optimizer(network, spec).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in network.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("upto", "message"),
    [
        ("stage9", "unknown part to freeze .train.freeze. 'stage9'. Did you mean 'stage"),
        ("head", "leaves nothing to learn"),
    ],
)
def test_freeze_refuses_what_makes_no_sense(upto, message):
    with pytest.raises(InputError, match=message):
        freeze(skipway.build("resnet20"), upto)


def test_freeze_refuses_a_network_that_is_all_head():
    with pytest.raises(InputError, match="no parts before its head"):
        freeze(nn.Sequential(nn.Linear(2, 2)), "backbone")
    assert freeze(skipway.build("tutorial"), "") == []


def test_rates_fall_off_by_the_distance_from_the_head():
    network = skipway.build("tutorial")  # stem, four blocks, head
    shares = rate_shares(network, 0.5)
    for name, share in {
        "stem.conv": 2**-5,
        "stages.0.0.conv1": 2**-4,
        "stages.1.1.conv2": 0.5,
        "head.linear": 1,
    }.items():
        assert shares[id(network.get_parameter(f"{name}.weight"))] == share
    optimizer = make_optimizer(network, TrainSpec(lr=0.1, layer_decay=0.5))
    set_lr(optimizer, 0.4)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {key: pytest.approx(0.4 * share) for key, share in shares.items()}
    assert len(rates) == len([*network.parameters()])

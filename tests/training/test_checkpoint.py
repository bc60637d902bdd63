"""A run that was cut goes on with the same bits, whatever the optimizer remembers."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from skipway.errors import InputError
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.network import build
from skipway.run import dense_copies
from skipway.spec import RunSpec, TrainSpec
from skipway.training.checkpoint import POSITION, Position, files_of, load_newest, state_of
from skipway.training.engine import Engine
from skipway.training.loss import make_objective
from skipway.training.optim import set_lr
from skipway.training.parts import file_name
from skipway.training.step import Learner
from skipway.training.vault import Vault

NETWORK = NetworkSpec(
    stages=(StageSpec(1, 16), StageSpec(1, 24, stride=2)), stem="cifar", stem_width=8, num_classes=3, in_channels=3
)
OPTIMIZERS = ("sgd", "adamw", "adam", "lamb", "muon")


def learner(train: TrainSpec, *, seed: int, channels_last: bool) -> Learner:
    spec = RunSpec(network=NETWORK, train=train)
    device = torch.device("cpu")
    objective = make_objective(train, torch.zeros(1, dtype=torch.int64), 3, device)
    engine = Engine(device, bf16=False, channels_last=channels_last)
    return Learner(build(NETWORK, seed=seed), spec, engine, objective=objective, steps_per_epoch=4)


def step(learner: Learner, number: int) -> float:
    """One update on images of its own."""
    generator = torch.Generator().manual_seed(number)
    labels = torch.arange(12) % 3
    images = torch.randn(12, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    set_lr(learner.optimizer, learner.spec.train.lr)
    learner.optimizer.zero_grad(set_to_none=True)
    loss = learner.objective.loss(learner.network(images.contiguous(memory_format=learner.engine.layout)), labels)
    loss.backward()
    learner.optimizer.step()
    if learner.average:
        learner.average.update(learner.network, number)
    return loss.item()


def held(learner: Learner) -> dict[str, Tensor]:
    """Everything that a step changes."""
    average = learner.average.network.state_dict() if learner.average else {}
    found = learner.network.state_dict() | {f"average.{key}": value for key, value in average.items()}
    for index, state in learner.optimizer.state_dict()["state"].items():
        found |= {f"{index}.{key}": value for key, value in state.items()}
    return found


SETTINGS = [
    *({"optimizer": kind} for kind in OPTIMIZERS),
    *({"optimizer": kind, "lookahead": 3, "fixed_norm": True} for kind in OPTIMIZERS),
    {"lookahead": 3, "momentum": 0.0, "lr": 0.1},
    {"fixed_norm": True, "ema_decay": 0.9},
]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_a_cut_run_goes_on_with_the_same_bits(settings, channels_last, tmp_path):
    train = dataclasses.replace(TrainSpec(lr=0.01, batch_size=12, weight_decay=0.01), **settings)
    whole = learner(train, seed=0, channels_last=channels_last)
    for number in range(4):
        step(whole, number)
    Vault(tmp_path).write("epoch-00001", files_of(Position(1, 1), whole), keep=1)
    resumed = learner(train, seed=1, channels_last=channels_last)
    assert load_newest(tmp_path, resumed) == (Position(1, 1), [])
    for number in range(4, 9):
        assert step(whole, number) == step(resumed, number)
    want, got = held(whole), held(resumed)
    assert got.keys() == want.keys()
    assert [key for key in want if not torch.equal(want[key], got[key])] == []


def test_a_run_cut_before_its_first_step_begins_with_its_own_norms(tmp_path):
    train = TrainSpec(lr=0.01, batch_size=12, fixed_norm=True, lookahead=2)
    whole = learner(train, seed=0, channels_last=True)
    with torch.no_grad():
        for p in whole.network.parameters():
            p.mul_(2)
    Vault(tmp_path).write("epoch-00001", files_of(Position(), whole), keep=1)
    resumed = learner(train, seed=1, channels_last=True)
    load_newest(tmp_path, resumed)
    for number in range(3):
        assert step(whole, number) == step(resumed, number)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "no object"),
        ("[" * 100_000, "recursion"),
        ('{"epochs": 1}', "epochs"),
        ('{"epoch": "one"}', "epoch 'one' is no number of its kind"),
        ('{"epoch": true}', "epoch True is no number of its kind"),
        ('{"epoch": -3}', "0 batches of 4"),
        ('{"batches": 5}', "5 batches of 4"),
        ('{"batches": 2, "steps": 3, "seen": 9}', "2 batches of 4, 3 steps"),
        ('{"batches": 2, "steps": 2}', "2 batches of 4, 2 steps"),
        ('{"lr_scale": NaN}', "lr_scale nan is no number of its kind"),
    ],
)
def test_a_position_that_cannot_be_is_told(tmp_path, text, said):
    made = learner(TrainSpec(lr=0.01, batch_size=12), seed=0, channels_last=True)
    files = files_of(Position(), made) | {POSITION: lambda path: path.write_text(text)}
    Vault(tmp_path).write("epoch-00001", files, keep=1)
    with pytest.raises(InputError, match=f"position.json is damaged, or of other data: .*{said}"):
        load_newest(tmp_path, made)


@pytest.mark.parametrize(
    ("key", "tensor", "said"),
    [
        ("network.head.linear.weight", torch.zeros(3, 24, dtype=torch.int8), "holds torch.int8 in place of"),
        ("network.head.linear.weight", torch.zeros(3, 3), r"is \[3, 3\]"),
        ("optimizer.0.momentum_buffer", torch.zeros(3), "the optimizer's 0.momentum_buffer .* is of another network"),
        ("optimizer.999.momentum_buffer", torch.zeros(3), "the optimizer's 999.momentum_buffer"),
        ("optimizer.x.y", torch.zeros(()), "the optimizer's x.y"),
        ("optimizer.3", torch.zeros(()), "the optimizer's 3 "),
    ],
)
def test_tensors_of_another_network_are_told(tmp_path, key, tensor, said):
    made = learner(TrainSpec(lr=0.01, batch_size=12), seed=0, channels_last=True)
    tensors = dense_copies(state_of(made)) | {key: tensor}
    files = files_of(Position(), made) | {file_name(): lambda path: save_file(tensors, path)}
    Vault(tmp_path).write("epoch-00001", files, keep=1)
    with pytest.raises(InputError, match=said):
        load_newest(tmp_path, made)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_loss_falls(settings):
    train = dataclasses.replace(TrainSpec(lr=0.01, batch_size=12), **settings)
    made = learner(train, seed=0, channels_last=True)
    losses = [step(made, number) for number in range(30)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])

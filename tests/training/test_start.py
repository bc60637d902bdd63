"""Where training starts from, end to end on the embedded sample."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, newest
from rich.console import Console
from safetensors.torch import save_file

import skipway
from skipway.errors import InputError
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.nn.weight_files import read_safetensors, read_weights
from skipway.nn.weights import load_weights, save_weights, to_layout
from skipway.run import Run, load_model
from skipway.training.loop import Trainer
from skipway.training.progress import StopRequested

NETWORK = NetworkSpec((StageSpec(1, 8), StageSpec(1, 16, 2)), stem="cifar", stem_width=8, shortcut="zero_pad")
STAGES = ["--stages", "1x8", "1x16/2", "--stem-width", "8", "--shortcut", "zero_pad"]
SHORT = [*STAGES, "--epochs", "1", "--batch-size", "100", "--no-flip", "--workers", "0"]


@pytest.fixture(scope="session")
def colour_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for three channels and seven classes, as a file of a CIFAR repository."""
    path = tmp_path_factory.mktemp("weights") / "net.th"
    network = skipway.build(NETWORK, num_classes=7, in_channels=3, seed=5)
    network.train()(torch.randn(64, 3, 28, 28))  # batch statistics of its own
    state = {f"module.{k}": v for k, v in to_layout(network.state_dict(), network.spec, "cifar").items()}
    torch.save({"state_dict": state, "best_prec1": 91.2}, path)
    return path


def tensors(folder: str | Path, name: str = "weights.safetensors") -> dict[str, torch.Tensor]:
    return read_safetensors(Path(folder, name))[0]


def test_th_file_with_other_channels_and_classes_trains(skipway, colour_file):
    """A CIFAR repository's .th file, colour, seven classes, on grey images of ten classes."""
    result = skipway("train", "fashion-sample", *SHORT, "--weights", colour_file, "--out", "run")
    assert result.code == 0, result.err
    for words in (
        f"weights from {colour_file} (in the cifar layout)",
        "input channels 3 -> 1: filters summed",
        "a new head for 10 classes, in place of 7",
        "stem cifar: that of the given weights",
    ):
        assert words in result.out
    run = Run.open("run")
    assert run.summary["test_accuracy"] > 0.5  # chance is 0.1
    assert any("summed" in note for note in run.summary["chosen"])
    fresh = skipway("train", "fashion-sample", *SHORT, "--out", "fresh")
    assert fresh.code == 0
    assert run.steps()[0]["loss"] != Run.open("fresh").steps()[0]["loss"]


@pytest.mark.parametrize("how", ["sum", "average"])
def test_first_step_sees_the_given_weights(colour_file, how, monkeypatch):
    """What the network holds before its first step is the file's, adapted as asked."""
    held: dict[str, torch.Tensor] = {}

    def stop(self: Trainer, *_: Any) -> None:
        held.update({k: v.clone() for k, v in self.learner.network.state_dict().items()})
        raise StopRequested

    monkeypatch.setattr(Trainer, "_step", stop)
    settings = {"train": {"weights": str(colour_file), "weight_channels": how, "epochs": 1}}
    skipway.train("fashion-sample", network=NETWORK, settings=settings, console=Console(file=io.StringIO()))
    given = {name.removeprefix("module."): value for name, value in read_weights(colour_file).items()}
    torch.testing.assert_close(held["stages.1.0.conv1.weight"], given["layer2.0.conv1.weight"], rtol=0, atol=0)
    torch.testing.assert_close(held["stem.norm.running_var"], given["bn1.running_var"], rtol=0, atol=0)
    filters = given["conv1.weight"].sum(1, keepdim=True) / (3 if how == "average" else 1)
    torch.testing.assert_close(held["stem.conv.weight"], filters)


@pytest.mark.parametrize("upto", ["backbone", "stage1"])
def test_frozen_parts_keep_their_bits_and_the_rest_learns(skipway, colour_file, upto):
    flags = ["--weights", colour_file, "--freeze", upto, "--ema-decay", "0.9", "--out", "run"]
    result = skipway("train", "fashion-sample", *SHORT, *flags)
    assert result.code == 0, result.err
    assert "frozen up to stage" in result.out
    start = skipway_start(colour_file)
    end = newest("run")
    frozen = ("stem.", "stages.0.") if upto == "stage1" else ("stem.", "stages.")
    for key, value in start.items():
        same = torch.equal(value, end[f"network.{key}"])
        assert same is key.startswith(frozen), key
    assert Run.open("run").summary["test_accuracy"] > 0.13  # random features, chance is 0.1
    assert skipway("evaluate", "run").code == 0


def skipway_start(path: Path) -> dict[str, torch.Tensor]:
    network = skipway.build(NETWORK, num_classes=10, in_channels=1)
    load_weights(network, path, new_head=True)
    return network.state_dict()


def test_layer_wise_rates_move_early_layers_less(skipway, colour_file):
    moved = {}
    for decay in ("1", "0.1"):
        flags = ["--weights", colour_file, "--layer-decay", decay, "--out", f"run{decay}", "--weight-decay", "0"]
        assert skipway("train", "fashion-sample", *SHORT, *flags).code == 0
        end, start = newest(f"run{decay}"), skipway_start(colour_file)
        far = {
            key: (end[f"network.{key}"] - value).norm() / value.norm()
            for key, value in start.items()
            if value.ndim == 4
        }
        moved[decay] = [far[key].item() for key in ("stem.conv.weight", "stages.0.0.conv1.weight")]
    assert moved["0.1"][0] < 0.1 * moved["1"][0]
    assert moved["0.1"][0] < moved["0.1"][1] < moved["1"][1]


def cut_at(number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stop training before its step of that number, once; how many steps there were stands in the list."""
    steps, original = [0], Trainer._step

    def cut(self: Trainer, *arguments: Any) -> Any:
        steps[0] += 1
        if steps[0] == number:
            raise StopRequested
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", cut)
    return steps


def test_cut_run_with_frozen_parts_and_rates_goes_on_to_the_same_bits(photos, tmp_path, monkeypatch):
    fine = {"freeze": "stem", "layer_decay": 0.5, "epochs": 3, "optimizer": "adamw", "lr": 0.01}
    settings = TINY | {"train": TINY["train"] | fine}
    whole = skipway.train(photos, settings=settings, out=tmp_path / "whole", console=Console(file=io.StringIO()))
    steps = cut_at(7, monkeypatch)
    for _ in range(2):
        part = skipway.train(photos, settings=settings, out=tmp_path / "cut", console=Console(file=io.StringIO()))
    assert steps[0] > 7
    assert part.finished
    a, b = (newest(run.folder) for run in (whole, part))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("out", ["run", None])
def test_cut_run_goes_on_though_its_weights_are_gone(photos, monkeypatch, out):
    made = skipway.build(NETWORK, num_classes=2)
    save_weights(made, "gone.safetensors")
    network = replace(NETWORK, stem="auto")
    settings = {"train": {"weights": "gone.safetensors", "epochs": 2, "batch_size": 8}, "data": {"workers": 0}}
    cut_at(3, monkeypatch)
    runs = []
    for _ in range(3):
        runs.append(
            skipway.train(photos, network=network, settings=settings, out=out, console=Console(file=io.StringIO()))
        )
        Path("gone.safetensors").unlink(missing_ok=True)
        if len(runs) == 2 and out is None:
            break  # a third one would be a new run
    assert runs[1].finished
    assert runs[0].folder == runs[-1].folder
    with pytest.raises(InputError, match="no such weights file"):
        skipway.train(photos, network=network, settings=settings, out="other", console=Console(file=io.StringIO()))


def test_head_of_a_run_is_matched_by_class_name(trained, photos, tmp_path):
    (photos / "wasps").mkdir()
    for image in [*(photos / "bees").iterdir()][:12]:
        image.rename(photos / "wasps" / image.name)
    (photos / "ants").rename(photos / "zebras")
    settings = TINY | {
        "train": TINY["train"] | {"weights": str(trained.folder), "epochs": 1, "freeze": "backbone", "lr": 1e-9}
    }
    run = skipway.train(photos, settings=settings, out=tmp_path / "run", console=Console(file=io.StringIO()))
    assert run.classes == ("bees", "wasps", "zebras")
    assert "a new head: 1 of 3 classes taken over from the given weights, by name" in run.summary["chosen"]
    old, new = (
        model.network.get_parameter("head.linear.weight") for model in (load_model(trained.folder), run.model())
    )
    torch.testing.assert_close(new[0], old[trained.classes.index("bees")], atol=1e-6, rtol=0)
    assert not torch.allclose(new[2], old[0], atol=1e-3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere", "no such weights file or run folder: nowhere"),
        (
            "wide.safetensors",
            r"the weights in wide.safetensors do not fit the network: stem.conv.weight is \[9, 1, 3, 3\]",
        ),
        ("torchvision:IMAGENET1K_V9", "unknown weights of torchvision's resnet18: 'IMAGENET1K_V9'"),
        ("timm:resnet19.a1", "unknown timm weights 'resnet19.a1'"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_before_anything_is_made(skipway, photos, weights, message):
    save_file({"stem.conv.weight": torch.zeros(9, 1, 3, 3)}, "wide.safetensors")
    result = skipway("train", photos, "--network", "resnet18", "--weights", weights, "--out", "run", "--epochs", "1")
    assert result.code == 2
    with pytest.raises(InputError, match=message):
        raise InputError(" ".join(result.err.split()))
    assert not Path("run").exists()


def test_saved_weights_of_a_run_go_out_in_torchvisions_layout(trained, tmp_path):
    network = load_model(trained.folder).network
    assert isinstance(network, skipway.ResNet)
    save_weights(network, tmp_path / "w.safetensors", layout="torchvision")
    assert {"conv1.weight", "layer1.0.bn1.weight", "fc.bias"} <= tensors(tmp_path, "w.safetensors").keys()
    assert json.loads(json.dumps(trained.summary))["status"] == "finished"

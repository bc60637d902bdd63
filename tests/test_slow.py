"""The spine on real images, end to end; minutes each: `make slow`."""

import numpy as np
import pytest
import torch
from conftest import Result

import skipway as package
from skipway.nn.zoo import find
from skipway.recipes import RECIPES
from skipway.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_demo_recipe_reaches_88_percent_on_test(skipway):
    assert skipway("train", "--recipe", "demo", "--out", "demo").code == 0
    assert Run.open("demo").summary["test_accuracy"] >= 0.88


def test_resnet20_reaches_75_percent_on_cifar10_in_5_epochs(skipway, shared_data):
    flags = ["--network", "resnet20", "--epochs", "5", "--out", "cifar"]
    assert skipway("train", shared_data / "cifar10", *flags).code == 0
    assert Run.open("cifar").summary["val_accuracy"] >= 0.75


def test_photos_of_mixed_sizes_train_and_are_named(skipway, shared_data):
    data = shared_data / "hymenoptera_data"
    assert skipway("train", data, "--network", "resnet18", "--epochs", "3", "--out", "photos").code == 0
    run = Run.open("photos")
    assert run.spec.data.image_size == 224
    assert run.summary["test_accuracy"] is None
    named: Result = skipway("predict", "photos", data / "val", "--top", "1")
    assert named.code == 0
    assert "ants" in named.out
    assert "bees" in named.out


def test_plain_56_trains_worse_than_resnet56():
    """He et al. 2015, figure 6: degradation shows in training loss. The ordering, not the values."""
    last = {}
    for name in ("plain56", "resnet56"):
        settings = {"train": {"epochs": 3, "batch_size": 64, "lr": 0.05, "warmup_epochs": 1.0}}
        run = package.train("fashion-sample", network=name, settings=settings, out=name)
        last[name] = np.mean([row["loss"] for row in run.steps()][-100:])
    assert last["resnet56"] < 0.8 * last["plain56"]


# What a recipe is shortened to: data where its own is not at hand, flags. Six views of 10,000 images take minutes in
# fp32: cifar10-94 has them.
SHORT: dict[str, tuple[str, list[str]]] = {
    "default": ("fashion-sample", ["--epochs", "2"]),
    "demo": ("fashion-sample", ["--epochs", "2"]),
    "tutorial": ("fashion-sample", ["--epochs", "2"]),
    "fashion-fast": ("fashion-sample", ["--epochs", "2"]),
    "cifar10-96": ("cifar10", ["--epochs", "1", "--tta", "none"]),
    "cifar100-fast": ("cifar10", ["--epochs", "1", "--tta", "none"]),
    "photos": ("hymenoptera_data", ["--epochs", "3"]),
    "photos-finetune": ("hymenoptera_data", ["--epochs", "3", "--freeze-epochs", "1", "--weights", "given.pth"]),
    "imagenet-resnet50": ("hymenoptera_data", ["--epochs", "3", "--batch-size", "32", "--lr", "0.05"]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_end_to_end(name, skipway, shared_data):
    data, flags = SHORT.get(name, ("cifar10", ["--epochs", "1"]))
    data = data if data == "fashion-sample" else shared_data / data
    torch.save(package.build(find("resnet50")).state_dict(), "given.pth")
    done: Result = skipway("train", data, "--recipe", name, *flags, "--out", "run")
    assert done.code == 0, done.err
    run = Run.open("run")
    losses = [row["loss"] for row in run.steps()]
    quarter = len(losses) // 4
    assert np.mean(losses[-quarter:]) < np.mean(losses[:quarter])
    assert skipway("evaluate", "run").code == 0

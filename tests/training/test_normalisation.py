"""Whose mean and deviation a run normalises by."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, make_photos
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file
from torchvision import models

import skipway as package
from skipway.data.loader import make_loader
from skipway.data.preprocess import IMAGENET, Normalisation, measure, normalised, plain
from skipway.data.source import ArraySource
from skipway.data_spec import DataSpec
from skipway.errors import InputError
from skipway.nn.download import normalisation_of
from skipway.nn.weight_files import read_weights
from skipway.run import Run
from skipway.training import start as starting
from skipway.training.loop import Trainer
from skipway.training.progress import StopRequested

GIVEN = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "that of w")


def settled(way: str, channels: int = 3, *, deep: bool = False, given: Normalisation | None = GIVEN):
    images = torch.rand(6, channels, 4, 4) if deep else torch.randint(0, 256, (6, channels, 4, 4), dtype=torch.uint8)
    source = ArraySource(images, torch.arange(6) % 2, ("a", "b"), {}, "set")
    spec = DataSpec("set", normalisation=way)  # pyrefly: ignore
    loader = make_loader(source, plain(source, spec, 4), spec)
    return normalised(loader, torch.arange(6), spec, given), measure(loader, torch.arange(6))


def test_auto_takes_the_given_weights_own_else_trains():
    (made, said), _ = settled("auto")
    assert (made.mean, made.std) == (GIVEN.mean, GIVEN.std)
    assert said == "normalised by that of w: mean 0.1 0.2 0.3 and deviation 0.4 0.5 0.6"
    (made, said), measured = settled("auto", given=None)
    assert made == measured
    assert said == ""


def test_train_and_imagenet_are_as_asked():
    (made, _), measured = settled("train")
    assert made == measured
    (made, said), _ = settled("imagenet")
    assert (made.mean, made.std) == (IMAGENET.mean, IMAGENET.std)
    assert "ImageNet's" in said


def test_one_channel_takes_the_mean_over_channels():
    (made, said), _ = settled("auto", 1)
    assert made.mean == pytest.approx((0.2,))
    assert made.std == pytest.approx((0.5,))
    assert "the mean over channels" in said


def test_deep_images_are_measured():
    (made, _), measured = settled("auto", deep=True)
    assert made == measured
    with pytest.raises(InputError, match="for 8-bit images"):
        settled("imagenet", deep=True)


def test_published_weights_say_what_they_were_trained_on():
    preset = models.ResNet50_Weights.IMAGENET1K_V2.transforms()
    assert normalisation_of("torchvision:IMAGENET1K_V2", "resnet50") == (tuple(preset.mean), tuple(preset.std))
    assert normalisation_of("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", "x") == ((0.5,) * 3, (0.5,) * 3)


def test_a_run_that_starts_from_another_is_normalised_alike(tmp_path):
    first = package.train(make_photos(tmp_path / "p"), settings=TINY, out=tmp_path / "a")
    brighter = make_photos(tmp_path / "q", classes=("x", "ants", "y"))
    settings = TINY | {"train": TINY["train"] | {"weights": str(tmp_path / "a")}}
    second = package.train(brighter, settings=settings, out=tmp_path / "b")
    assert second.preprocess == first.preprocess
    assert any("normalised by that of" in note for note in second.summary["chosen"])
    own = package.train(brighter, settings=settings | {"data": {"normalisation": "train"}}, out=tmp_path / "c")
    assert own.preprocess.mean != first.preprocess.mean
    assert Run.open(tmp_path / "b").model().preprocess == first.preprocess


def save_deep(root: Path) -> Path:
    """Two classes of 16-bit PNGs."""
    for level, name in enumerate(("ants", "bees")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng(i).integers(0, 9000, (16, 16)) + 30000 * level
            Image.fromarray(pixels.astype(np.uint16)).save(root / name / f"{i}.png")
    return root


def start(data: Path, weights: Path, out: Path, **changes: str) -> Run:
    train = TINY["train"] | {"weights": str(weights), "epochs": 1}
    settings = TINY | {"train": train, "data": TINY["data"] | changes}
    return package.train(data, settings=settings, out=out, console=Console(file=io.StringIO()))


def normalisation_notes(run: Run) -> list[str]:
    return [note for note in run.summary["chosen"] if "deviation" in note]


def test_plain_file_is_measured_and_says_what_published_ones_want(trained, photos, tmp_path):
    file = tmp_path / "plain.safetensors"
    save_file(read_weights(trained.folder / "weights.safetensors"), file)
    run = start(photos, file, tmp_path / "run")
    assert run.preprocess.mean != trained.preprocess.mean
    (note,) = normalisation_notes(run)
    assert note.startswith(f"mean and deviation measured on train, not those of {file}, which does not say them")
    assert "--normalisation imagenet" in note
    asked = start(photos, file, tmp_path / "asked", normalisation="imagenet")
    assert (asked.preprocess.mean, asked.preprocess.std) == (IMAGENET.mean, IMAGENET.std)
    (note,) = normalisation_notes(asked)
    assert "ImageNet's" in note
    assert normalisation_notes(start(photos, file, tmp_path / "own", normalisation="train")) == []


def test_other_depth_than_the_given_runs_is_measured_and_said(trained, photos, tmp_path):
    deep = start(save_deep(tmp_path / "scans"), trained.folder, tmp_path / "deep")
    assert deep.preprocess.reading.deep
    pixels = [np.array(Image.open(path)) for path in (tmp_path / "scans").rglob("*.png")]
    assert deep.preprocess.mean[0] == pytest.approx(np.mean(pixels) / 65535, abs=0.01)  # train is nine tenths of it
    (note,) = normalisation_notes(deep)
    assert note.endswith(f"not those of {trained.folder}: those are of images of another depth or window")
    back = start(photos, deep.folder, tmp_path / "back")
    (note,) = normalisation_notes(back)
    assert note.endswith(f"not those of {deep.folder}: those are of images of another depth or window")
    assert back.preprocess.channels == 3
    same = start(save_deep(tmp_path / "more scans"), deep.folder, tmp_path / "same")
    assert same.preprocess == deep.preprocess
    (note,) = normalisation_notes(same)
    assert note.startswith(f"normalised by that of {deep.folder}")


@pytest.mark.parametrize(
    ("weights", "mean", "std"),
    [
        ("timm:resnet10t.c3_in1k", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("timm:resnetv2_50x1_bit.goog_in21k_ft_in1k", (0.5,) * 3, (0.5,) * 3),
        ("torchvision:IMAGENET1K_V1", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_runs_from_published_weights_carry_their_numbers(photos, tmp_path, monkeypatch, weights, mean, std):
    """The download is a stand-in; the numbers are the library's own."""
    state = models.resnet18().state_dict()
    monkeypatch.setattr(starting, "fetch", lambda *_: state)
    settings = {
        "data": TINY["data"] | {"image_size": 32},
        "train": TINY["train"] | {"weights": weights, "epochs": 1, "freeze": "backbone"},
    }
    console = Console(file=io.StringIO())
    run = package.train(photos, network="resnet18", settings=settings, out=tmp_path / "run", console=console)
    assert (run.preprocess.mean, run.preprocess.std) == (mean, std)
    assert run.model().preprocess == run.preprocess
    (note,) = normalisation_notes(run)
    assert note.startswith(f"normalised by that of {weights}: mean {mean[0]}")


def test_torchvisions_weights_that_were_trained_on_another_scale_say_so():
    assert normalisation_of("torchvision:IMAGENET1K_V1", "torchvision:efficientnet_v2_l") == ((0.5,) * 3, (0.5,) * 3)


def test_resumed_run_keeps_its_numbers(trained, tmp_path, monkeypatch):
    """Cut in its second epoch; meanwhile the weights that it began from are gone, so that train's would differ."""
    weights = tmp_path / "given.safetensors"
    shutil.copy(trained.folder / "weights.safetensors", weights)
    others = make_photos(tmp_path / "others", classes=("x", "ants", "y"))
    settings = TINY | {"train": TINY["train"] | {"weights": str(weights)}}
    used: list[tuple[float, ...]] = []
    original = Trainer._step

    def cut(self: Trainer, *arguments: Any) -> Any:
        used.append(self.preprocess.mean)
        if len(used) == 9:
            raise StopRequested
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", cut)
    stopped = package.train(others, settings=settings, out=tmp_path / "run", console=Console(file=io.StringIO()))
    assert not stopped.finished
    weights.unlink()
    run = package.train(others, settings=settings, out=tmp_path / "run", console=Console(file=io.StringIO()))
    assert run.finished
    assert len(used) > 9
    assert {*used, run.preprocess.mean} == {trained.preprocess.mean}

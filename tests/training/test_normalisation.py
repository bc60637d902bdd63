"""Whose mean and deviation a run normalises by."""

import pytest
import torch
from conftest import TINY, make_photos
from torchvision import models

import skipway as package
from skipway.data.loader import make_loader
from skipway.data.preprocess import IMAGENET, Normalisation, measure, normalised, plain
from skipway.data.source import ArraySource
from skipway.data_spec import DataSpec
from skipway.errors import InputError
from skipway.nn.download import normalisation_of
from skipway.run import Run

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

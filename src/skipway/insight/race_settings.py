"""What a race is made from: settings that a person can choose, the networks and the training they stand for, digits."""

from dataclasses import dataclass
from typing import Literal

from skipway.data.builtin import digits
from skipway.data.loader import make_loader
from skipway.data.preprocess import measure, plain
from skipway.errors import InputError
from skipway.fields import check, option
from skipway.insight.subject import Images, images_of
from skipway.network_spec import NetworkSpec, StageSpec
from skipway.spec import DataSpec, TrainSpec


@dataclass(frozen=True)
class RaceSettings:
    """What a race between a residual network and its plain twin is made from."""

    depth: int = option(20, "layers, 6n + 2: 8, 14, 20 ... 110", low=8, high=110)
    width: int = option(8, "channels of the first stage; the others have two and four times as many", low=4, high=32)
    norm: Literal["batch", "group", "none"] = option("batch", "normalisation")
    init: Literal["he", "fixup", "dirac"] = option("he", "initial weights; fixup wants norm none; the twin has he then")
    shortcut: Literal["zero_pad", "projection", "project_all", "avg_pool", "avg_zero_pad"] = option(
        "zero_pad", "the skips, where the shape changes"
    )
    lr: float = option(0.1, "peak learning rate", low=1e-6, high=100)
    batch_size: int = option(64, "images a step; all of them where there are fewer", low=2, high=4096)
    epochs: int = option(12, "times through the training images", low=1, high=1000)
    optimizer: Literal["sgd", "adamw", "adam", "lamb", "muon"] = option("sgd", "update rule; sgd has momentum")
    seed: int = option(0, "of weights and order", low=0, high=2**62)

    def __post_init__(self) -> None:
        check(self, "race")
        if self.depth % 6 != 2:
            raise InputError(f"race.depth must be 6n + 2 (8, 14, 20, ..., 110), got {self.depth}")


def race_spec(settings: RaceSettings, *, channels: int, classes: int) -> NetworkSpec:
    """The residual network of a race: three stages of n blocks (He et al. 2015, section 4.2), at any width.

    Args:
        settings: depth 6n + 2, width, norm, init and shortcut.
        channels: of an image.
        classes: number of logits.
    """
    n, width = (settings.depth - 2) // 6, settings.width
    return NetworkSpec(
        (StageSpec(n, width), StageSpec(n, 2 * width, 2), StageSpec(n, 4 * width, 2)),
        name=f"resnet{settings.depth}",
        shortcut=settings.shortcut,
        stem="cifar",
        stem_width=width,
        norm=settings.norm,
        norm_groups=next(g for g in (4, 3, 2, 1) if width % g == 0),
        init=settings.init,
        in_channels=channels,
        num_classes=classes,
    )


def train_spec(settings: RaceSettings) -> TrainSpec:
    """How the networks of a race learn: as `skipway train` does by default, in fp32."""
    return TrainSpec(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer=settings.optimizer,
        lr=settings.lr,
        warmup_epochs=0.05 * settings.epochs,
        precision="fp32",
        seed=settings.seed,
    )


def digits_images(image_size: int = 16) -> tuple[Images, Images]:
    """scikit-learn's digits for a race: 1,438 images to learn from, and 359 to score on.

    Raises:
        InputError: scikit-learn is not installed.
    """
    source, spec = digits(), DataSpec(path="digits")
    loader = make_loader(source, plain(source, spec, image_size), spec)
    preprocess = measure(loader, source.splits["train"])
    train, test = (images_of(loader, preprocess, source.splits[name]) for name in ("train", "test"))
    return train, test

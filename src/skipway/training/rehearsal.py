"""A run for measuring: a network's own engine, step and forward pass on random images, in a folder that goes away."""

import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from skipway.compose import Settings
from skipway.data.loader import Batch
from skipway.data.memory import memory
from skipway.data_spec import DataSpec
from skipway.errors import InputError
from skipway.nn.describe import describe
from skipway.recipes import default
from skipway.run import read_spec
from skipway.spec import RunSpec
from skipway.training.asked import asked_spec
from skipway.training.loop import Trainer
from skipway.training.plan import make_plan

BATCH = 128  # what a run takes that has images enough
BATCHES = 2
EPOCHS = 100_000  # the engine is to choose as for a long run
OPEN = {"data": {"image_size"}}  # fields of a section that apply, where not all do
CLOSED = {"train": {"epochs", "weights", "freeze", "track"}, "speed": {"start_size", "keep_hard"}}


def asked_of(network: str, settings: Settings, *, trust_code: bool) -> RunSpec:
    """The settings of a run of this network on data of bench's own making (its path is still open)."""
    for section, values in settings.items():
        for field in values if isinstance(values, Mapping) else ():
            if field in CLOSED.get(section, ()) or (section in OPEN and field not in OPEN[section]):
                raise InputError(
                    f"{section}.{field} does not apply to bench, which trains on all of some random images for a few "
                    "steps; leave it out"
                )
    is_run = Path(network, "spec.toml").is_file() or network.endswith(".safetensors")
    own = read_spec(network) if is_run else default()
    own = dataclasses.replace(own, data=DataSpec(image_size=own.data.image_size))
    asked = asked_spec(own, network="" if is_run else network, settings=settings, trust_code=trust_code)
    size = asked.data.image_size or describe(asked.network if is_run else network, trust_code=True).input[1]
    train = dataclasses.replace(
        asked.train, epochs=EPOCHS, weights="", freeze="", track=(), batch_size=asked.train.batch_size or BATCH
    )
    speed = dataclasses.replace(asked.speed, start_size=0, keep_hard=1.0)
    return dataclasses.replace(asked, data=DataSpec(image_size=size), train=train, speed=speed)


def trainer_of(asked: RunSpec, folder: Path) -> Trainer:
    """A run's trainer over random images, in a folder that goes away."""
    rng = np.random.default_rng(0)
    size, classes = asked.data.image_size, max(asked.network.num_classes, 2)
    channels = 1 if asked.network.in_channels == 1 else 3
    needed = BATCHES * asked.train.batch_size * size * size * channels
    if needed > memory() // 8:
        raise InputError(
            f"train.batch_size {asked.train.batch_size} at {size} pixels wants {needed / 1e9:,.1f} GB for raw images "
            "alone, more than an eighth of this machine's memory; choose a smaller one"
        )
    arrays: dict[str, np.ndarray] = {"classes": np.array([f"class {i}" for i in range(classes)])}
    for split, count in (("train", BATCHES * asked.train.batch_size), ("val", 2)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % classes
    path = folder / "random.npz"
    np.savez(path, **arrays)  # pyrefly: ignore[bad-argument-type]
    data = dataclasses.replace(asked.data, path=str(path))
    plan = make_plan(dataclasses.replace(asked, data=data))
    return Trainer(plan, folder / "run", Console(file=io.StringIO()))


def batches_of(trainer: Trainer) -> Iterator[Batch]:
    """The training images over and over."""
    while True:
        yield from trainer.train_loader.batches(trainer.plan.splits.train, trainer.spec.train.batch_size)


def stepper(trainer: Trainer, batches: Iterator[Batch]) -> Callable[[], None]:
    """One training step a call."""
    numbers = itertools.cycle(range(trainer.learner.total_steps))

    def step() -> None:
        batch, preprocess = next(batches), trainer.preprocess
        trainer.learner.update(batch, 1, next(numbers), augment=trainer.augment, preprocess=preprocess)

    return step


def answerer(trainer: Trainer, batch: Batch) -> Callable[[], torch.Tensor]:
    """One forward pass a call, in evaluation mode."""
    network, engine = trainer.learner.kept.eval(), trainer.learner.engine
    inputs = trainer.preprocess.normalise(batch.images.to(engine.device)).contiguous(memory_format=engine.layout)

    @torch.inference_mode()
    def answer() -> torch.Tensor:
        with engine.computing():
            return network(inputs)

    return answer

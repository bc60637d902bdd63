"""How fast a network trains and answers on this machine, and what share of the machine's peak that is.

The run's own engine and step on random images in memory, as in a long run; nothing is kept. The share (MFU) is of the
fastest arithmetic that was measured a moment before, or of a peak that is given.
"""

import dataclasses
import io
import itertools
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from skipway.compose import Settings
from skipway.data.keep import memory
from skipway.data.loader import Batch
from skipway.data_spec import DataSpec
from skipway.errors import InputError
from skipway.nn.describe import describe
from skipway.recipes import default
from skipway.run import read_spec
from skipway.spec import RunSpec
from skipway.training.asked import asked_spec
from skipway.training.loop import Trainer
from skipway.training.plan import make_plan
from skipway.training.roofline import Roofline, measure_roofline
from skipway.training.stopwatch import Timed, device_name, parts_of, timed

BATCH = 128  # what a run takes that has images enough
BATCHES = 2
EPOCHS = 3000  # the engine is to choose as for a run of 6,000 steps
FORWARDS = 3  # a training step is forward, the gradient of the inputs, and that of the filters
OPEN = {"data": {"image_size"}}  # fields of a section that apply, where not all do
CLOSED = {"train": {"epochs", "weights", "freeze", "track"}, "speed": {"start_size", "keep_hard"}}


@dataclass(frozen=True)
class Speed:
    """Images a second: from the median step, and from the slowest and the fastest one.

    Args:
        images_per_s, low, high: images a second.
        steps: how many were measured.
        step_ms: the median.
        warm_up_s: of the steps before them, which compile where the network is compiled.
        tflops: of convolutions and linear layers, TFLOP/s.
        mfu: that as a share of the peak.
    """

    images_per_s: float
    low: float
    high: float
    steps: int
    step_ms: float
    warm_up_s: float
    tflops: float
    mfu: float


@dataclass(frozen=True)
class Bench:
    """A network on a machine.

    Args:
        network, image_size, batch_size, parameters: what ran.
        flops: of one image forward, 2 x multiply-accumulates; training counts three times as many.
        machine: device, cores, threads, versions.
        engine: precision, memory format, compiled or not, whose kernels, micro-batch.
        roofline: what the machine reaches.
        peak_tflops: that `mfu` is a share of.
        peak: where it comes from.
        training: whole steps, from raw pixels to new weights.
        parts_ms: medians of a step's parts: input, forward, backward (with the loss), update.
        inference: forward passes in evaluation mode, of inputs at hand, as a run validates.
    """

    network: str
    image_size: int
    batch_size: int
    parameters: int
    flops: int
    machine: dict[str, Any]
    engine: dict[str, Any]
    roofline: Roofline
    peak_tflops: float
    peak: str
    training: Speed
    parts_ms: dict[str, float]
    inference: Speed


def bench(
    network: str,
    *,
    seconds: float = 10.0,
    peak_tflops: float = 0.0,
    settings: Settings | None = None,
    roofline: Roofline | None = None,
    trust_code: bool = False,
) -> Bench:
    """Measure the machine, then a network's training and inference on it.

    Args:
        network: a zoo name, timm:NAME, torchvision:NAME, python:module:function, or a run folder.
        seconds: for training, and again for inference; three steps at the least.
        peak_tflops: hold speeds against this peak; 0: the fastest that the roofline has.
        settings: section -> field -> value, as a run's: {"data": {"image_size": 32}, "train": {"batch_size": 256}}.
        roofline: measured before; default: it is measured now.
        trust_code: run a python: network's code where a run names it and nobody named it here before.

    Raises:
        InputError: an unknown network, a setting that does not apply, or a value out of bounds.

    Example:
        >>> bench("resnet18", settings={"data": {"image_size": 32}}).training.mfu  # doctest: +SKIP
    """
    for name, value, low in (("seconds", seconds, 0.01), ("peak_tflops", peak_tflops, 0.0)):
        if not isinstance(value, (int, float)) or not low <= value <= 1e6:
            raise InputError(f"{name} must be between {low:g} and 1000000, got {value!r}")
    asked = _asked(network, settings or {}, trust_code=trust_code)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(asked, Path(folder))
        return _measured(trainer, seconds, peak_tflops, roofline)


def _asked(network: str, settings: Settings, *, trust_code: bool) -> RunSpec:
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


def _trainer(asked: RunSpec, folder: Path) -> Trainer:
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
    return Trainer(plan, folder / "run", Console(file=io.StringIO()), resume=False)


def _measured(trainer: Trainer, seconds: float, peak_tflops: float, roofline: Roofline | None) -> Bench:
    """Everything, one after the other."""
    spec, engine, learner = trainer.spec, trainer.learner.engine, trainer.learner
    size, batch_size = spec.data.image_size, spec.train.batch_size
    roofline = roofline or measure_roofline(engine.device, precision=spec.train.precision)
    peak = peak_tflops or roofline.peak.value
    described = describe(spec.network, image_size=size, trust_code=True)
    batches = _batches(trainer)
    step = _stepper(trainer, batches)
    training = timed(step, engine.device, seconds)
    parts = parts_of(learner, step, seconds / 4)
    inference = timed(_answerer(trainer, next(batches)), engine.device, seconds)
    work = batch_size * described.flops
    return Bench(
        network=spec.network.name,
        image_size=size,
        batch_size=batch_size,
        parameters=sum(p.numel() for p in learner.network.parameters()),
        flops=described.flops,
        machine={
            "device": device_name(engine.device),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        engine={
            "precision": spec.train.precision,
            "channels_last": engine.channels_last,
            "compiled": engine.compiled,
            "kernels": engine.kernels,
            "micro_batch": engine.micro_batch,
        },
        roofline=roofline,
        peak_tflops=peak,
        peak="given" if peak_tflops else roofline.peak.work,
        training=speed_of(training, batch_size=batch_size, flops=FORWARDS * work, peak_tflops=peak),
        parts_ms=parts,
        inference=speed_of(inference, batch_size=batch_size, flops=work, peak_tflops=peak),
    )


def speed_of(steps: Timed, *, batch_size: int, flops: int, peak_tflops: float) -> Speed:
    """From seconds to rates.

    Args:
        steps: their seconds.
        batch_size: images of a step.
        flops: of a step.
        peak_tflops: the peak, TFLOP/s.
    """
    middle = statistics.median(steps.steps)
    tflops = flops / middle / 1e12
    return Speed(
        images_per_s=batch_size / middle,
        low=batch_size / max(steps.steps),
        high=batch_size / min(steps.steps),
        steps=len(steps.steps),
        step_ms=1000 * middle,
        warm_up_s=steps.warm_up,
        tflops=tflops,
        mfu=tflops / peak_tflops,
    )


def _batches(trainer: Trainer) -> Iterator[Batch]:
    """The training images over and over."""
    while True:
        yield from trainer.train_loader.batches(trainer.plan.splits.train, trainer.spec.train.batch_size)


def _stepper(trainer: Trainer, batches: Iterator[Batch]) -> Callable[[], None]:
    """One training step a call."""
    numbers = itertools.cycle(range(trainer.learner.total_steps))

    def step() -> None:
        batch, preprocess = next(batches), trainer.preprocess
        trainer.learner.update(batch, 1, next(numbers), augment=trainer.augment, preprocess=preprocess)

    return step


def _answerer(trainer: Trainer, batch: Batch) -> Callable[[], torch.Tensor]:
    """One forward pass a call, in evaluation mode."""
    network, engine = trainer.learner.kept.eval(), trainer.learner.engine
    inputs = trainer.preprocess.normalise(batch.images.to(engine.device)).contiguous(memory_format=engine.layout)

    @torch.inference_mode()
    def answer() -> torch.Tensor:
        with engine.computing():
            return network(inputs)

    return answer

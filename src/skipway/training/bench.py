"""How fast a network trains and answers on this machine, and what share of the machine's peak that is.

The run's own engine and step on random images in memory, as in a long run; nothing is kept. The share (MFU) is of the
fastest arithmetic that was measured a moment before, or of a peak that is given.
"""

import dataclasses
import os
import platform
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skipway.compose import Settings, apply
from skipway.device import choose_device
from skipway.errors import InputError
from skipway.nn.describe import describe
from skipway.spec import RunSpec
from skipway.training.guard import BadNumbers
from skipway.training.loop import Trainer
from skipway.training.machine import device_name, threads_put_back
from skipway.training.rehearsal import answerer, asked_of, batches_of, stepper, trainer_of
from skipway.training.roofline import Roofline, measure_roofline
from skipway.training.stopwatch import Timed, parts_of, timed
from skipway.training.ways import Way, keep, way_name, ways_of

FORWARDS = 3  # a training step is forward, the gradient of the inputs, and that of the filters


@dataclass(frozen=True)
class Speed:
    """Images a second: from the median step, and from the slowest and the fastest one.

    On an accelerator a step is the mean of ten in a row, since in a run nothing waits for each.

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
        ways: where ways to compute were compared, what each took; the rest is of the fastest.
        failed: those that failed, and why.
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
    ways: tuple[Way, ...] = ()
    failed: tuple[str, ...] = ()


def bench(
    network: str,
    *,
    seconds: float = 10.0,
    peak_tflops: float = 0.0,
    settings: Settings | None = None,
    roofline: Roofline | None = None,
    keep_fastest: bool = False,
    trust_code: bool = False,
) -> Bench:
    """Measure the machine, then a network's training and inference on it.

    Args:
        network: a zoo name, timm:NAME, torchvision:NAME, python:module:function, or a run folder.
        seconds: for training, and again for inference; three steps at the least, on an accelerator ten.
        peak_tflops: hold speeds against this peak; 0: the fastest that the roofline has.
        settings: section -> field -> value, as a run's: {"data": {"image_size": 32}, "train": {"batch_size": 256}}.
        roofline: measured before; default: it is measured now.
        keep_fastest: compare the ways to compute first, and keep what was found in the cache: runs like this one, on
            this machine with these versions, take the way that comes to their end first.
        trust_code: run a python: network's code where a run names it and nobody named it here before.

    Raises:
        InputError: an unknown network, a setting that does not apply, or a value out of bounds.

    Example:
        >>> bench("resnet18", settings={"data": {"image_size": 32}}).training.mfu  # doctest: +SKIP
    """
    for name, value, low in (("seconds", seconds, 0.01), ("peak_tflops", peak_tflops, 0.0)):
        if not isinstance(value, (int, float)) or not low <= value <= 1e6:
            raise InputError(f"{name} must be between {low:g} and 1000000, got {value!r}")
    asked = asked_of(network, settings or {}, trust_code=trust_code)
    try:
        with threads_put_back(), tempfile.TemporaryDirectory() as folder:
            ways, failed = _compared(asked, seconds) if keep_fastest else ((), ())
            found = _measured(trainer_of(asked, Path(folder)), seconds, peak_tflops, roofline)
    except BadNumbers as bad:
        raise InputError(f"{network} does not get through a few steps of training on random images: {bad}") from bad
    return dataclasses.replace(found, ways=ways, failed=failed)


def _compared(asked: RunSpec, seconds: float) -> tuple[tuple[Way, ...], tuple[str, ...]]:
    """Each way to compute, one after the other; kept in the cache."""
    ways, failed, plan = [], [], None
    for settings in ways_of(choose_device(asked.train.device)):
        with tempfile.TemporaryDirectory() as folder:
            compiled, kernels = settings["compile"] == "on", settings["kernels"] == "on"
            try:
                trainer = trainer_of(apply(asked, {"speed": settings}), Path(folder))
                try:
                    took = timed(stepper(trainer, batches_of(trainer)), trainer.learner.engine.device, seconds)
                finally:
                    trainer.learner.done()
            except RuntimeError as error:  # what the compiler raises
                why = (str(error).strip() or repr(error)).splitlines()[0]
                failed.append(f"{way_name(compiled=compiled, kernels=kernels)}: {why}")
                continue
        ways.append(Way(compiled, kernels, statistics.median(took.steps), took.warm_up))
        plan = plan or dataclasses.replace(trainer.plan, spec=dataclasses.replace(trainer.spec, speed=asked.speed))
    if plan is None:
        raise InputError(f"no way to compute works here: {'; '.join(failed)}")
    keep(plan, ways)
    return tuple(ways), tuple(failed)


def _measured(trainer: Trainer, seconds: float, peak_tflops: float, roofline: Roofline | None) -> Bench:
    """Everything, one after the other."""
    spec, engine, learner = trainer.spec, trainer.learner.engine, trainer.learner
    size, batch_size = spec.data.image_size, spec.train.batch_size
    roofline = roofline or measure_roofline(engine.device, precision=spec.train.precision)
    peak = peak_tflops or roofline.peak.value
    described = describe(spec.network, image_size=size, trust_code=True)
    batches = batches_of(trainer)
    step = stepper(trainer, batches)
    training = timed(step, engine.device, seconds)
    parts = parts_of(learner, step, seconds / 4)
    inference = timed(answerer(trainer, next(batches)), engine.device, seconds)
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

"""Stop-watches: seconds of repeats and of steps, and of the parts of a training step."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from skipway.training.step import Learner

WARM_UP = 3  # steps
REPEATS = 7
LEAST = 3  # repeats or steps, however long they take
PATIENCE = 2.0  # seconds, after which the least of the repeats will do
TOGETHER = 10  # steps of an accelerator that are timed as one, since in a run nothing waits for each


@dataclass(frozen=True)
class Timed:
    """Seconds of the warm-up together, and of each step after it."""

    warm_up: float
    steps: tuple[float, ...]


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given; the CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def repeated(run: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of each repeat, after one that is not counted."""
    seconds: list[float] = []
    run()
    synchronise(device)
    while len(seconds) < REPEATS and (len(seconds) < LEAST or sum(seconds) < PATIENCE):
        started = time.perf_counter()
        run()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return seconds


def timed(run: Callable[[], object], device: torch.device, seconds: float) -> Timed:
    """Warm-up steps, then steps for so long; on an accelerator ten at a time, each counted as their mean."""
    together = 1 if device.type == "cpu" else TOGETHER
    started = time.perf_counter()
    for _ in range(WARM_UP):
        run()
    synchronise(device)
    begun = last = time.perf_counter()
    warm_up, steps = begun - started, []
    while len(steps) < LEAST or last - begun < seconds:
        for _ in range(together):
            run()
        synchronise(device)
        now = time.perf_counter()
        steps += [(now - last) / together] * together
        last = now
    return Timed(warm_up, tuple(steps))


def parts_of(learner: Learner, step: Callable[[], object], seconds: float) -> dict[str, float]:
    """Medians of the parts of a training step, in milliseconds, watched at the network's calls and the optimizer's.

    Args:
        learner: what learns.
        step: one update of it a call.
        seconds: for so long, three steps at the least.

    Returns:
        input (augmentation, normalisation), forward (and the loss), backward, update.
    """
    device = learner.engine.device
    judged, marks, rows = learner.judged, {"first": 0.0, "forward": 0.0, "optimizer": 0.0}, []

    def now() -> float:
        synchronise(device)
        return time.perf_counter()

    def watched(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        started = now()
        marks["first"] = marks["first"] or started
        outputs = judged(inputs, targets)
        marks["forward"] += now() - started
        return outputs

    hook = learner.optimizer.register_step_pre_hook(lambda *_: marks.update(optimizer=now()))
    learner.judged = watched
    begun = now()
    while len(rows) < LEAST or now() - begun < seconds:
        marks.update(first=0.0, forward=0.0)
        started = now()
        step()
        end, first, optimizer = now(), marks["first"], marks["optimizer"]
        rows.append((first - started, marks["forward"], optimizer - first - marks["forward"], end - optimizer))
    learner.judged = judged
    hook.remove()
    names = ("input", "forward", "backward", "update")
    return {name: 1000 * statistics.median(part) for name, part in zip(names, zip(*rows, strict=True), strict=True)}

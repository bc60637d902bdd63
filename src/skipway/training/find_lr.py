"""The learning-rate finder: the rate rises exponentially over some steps of the run's own training, until the loss
diverges (the range test of Smith 2015, arXiv:1506.01186, section 3.3, there along a line).

Data, order, augmentation, loss, optimizer and precision are those of the run's first epochs. No run is touched.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from skipway.compose import Settings
from skipway.data.loader import Batch, Loader
from skipway.data.sampler import make_sampler
from skipway.errors import InputError, for_example
from skipway.figures import png
from skipway.spec import RunSpec
from skipway.training.asked import asked_spec
from skipway.training.assemble import assemble
from skipway.training.machine import threads_put_back
from skipway.training.place import run_stem
from skipway.training.plan import Plan, make_plan

STEPS, FEWEST = 150, 20
BELOW, ABOVE = 1e-3, 1e2  # the rates tried, as multiples of the optimizer's usual one
MEMORY = 0.9  # of the running mean that says when to stop
DIVERGED = 4.0  # times the smallest running mean
WINDOW = 0.05  # half the width of the mean that the rates are read from, as a share of the steps
LOSS, SUGGESTED, QUIET = "#0072b2", "#d55e00", "#777777"  # told apart by the colour-blind too

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class LrSweep:
    """How the loss went while the rate rose.

    Args:
        title: what was trained.
        rates: of the steps that were taken.
        losses: of the batches, before each step at that rate; in nats.
        smoothed: their mean over neighbouring steps, on both sides alike.
        diverged: whether the loss went up to 4 times its smallest, or out of all bounds; else the rates ended.
        steepest: where the smoothed loss falls fastest against the logarithm of the rate.
        minimum: where it is smallest.
        suggestion: a peak rate for a run, to two digits.
        why: in words.
    """

    title: str
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged: bool
    steepest: float
    minimum: float
    suggestion: float
    why: str

    def save(self, out: str | Path | None = None) -> tuple[Path, Path]:
        """Write the picture and, beside it, the numbers as JSON.

        Args:
            out: a .png file; default: find-lr-DATA-NETWORK.png in this folder. Where it or its .json exists, the
                next free name is taken (-2, -3, ...): nothing is written over.

        Returns:
            The .png and the .json that were written.

        Raises:
            InputError: not a .png, or it cannot be written.
        """
        wanted = check_out(out) if out else Path(f"find-lr-{run_stem(*self.title.split(' on ', 1)[::-1])}.png")
        picture, numbers = draw(self), json.dumps(asdict(self), indent=1).encode()
        number = 1
        while True:
            place = wanted if number == 1 else wanted.with_stem(f"{wanted.stem}-{number}")
            beside, number = place.with_suffix(".json"), number + 1
            if place.exists() or beside.exists():
                continue
            try:
                for file, content in ((place, picture), (beside, numbers)):
                    with file.open("xb") as opened:
                        opened.write(content)
                return place, beside
            except FileExistsError:
                continue
            except OSError as error:
                raise InputError(f"{place} cannot be written: {error.strerror or error}") from error


def check_out(out: str | Path) -> Path:
    """A place for the picture. Raises InputError where it cannot be one."""
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise InputError(f"the picture is a PNG: --out must end in .png, got {out}")
    if not out.parent.is_dir():
        raise InputError(f"no such folder: {out.parent}")
    return out


def find_lr(
    data: str | Path | RunSpec,
    *,
    network: str | None = None,
    settings: Settings | None = None,
    steps: int = STEPS,
    low: float = 0.0,
    high: float = 0.0,
    progress: Progress | None = None,
) -> LrSweep:
    """Look for a learning rate by letting it rise until the loss diverges.

    Args:
        data: whatever `train` takes, or a complete RunSpec.
        network: a zoo name or another library's; default: the default recipe's.
        settings: section -> field -> value: {"train": {"optimizer": "adamw"}}.
        steps: of training, at most; 20 or more.
        low, high: the first and the last rate; 0: a thousandth and 100 times the optimizer's usual rate.
        progress: called with (steps done, steps in all, loss).

    Returns:
        The sweep; `suggestion` is the rate, `save()` writes the picture. The same seed gives the same answer.

    Raises:
        InputError: data, network and settings do not go together, or no rate can be read from these.

    Example:
        >>> skipway.find_lr("photos", network="resnet18").suggestion  # doctest: +SKIP
    """
    if steps < FEWEST:
        raise InputError(f"a sweep takes at least {FEWEST} steps, got --steps {steps}")
    asked = asked_spec(data, network=network, settings=settings)
    plan = make_plan(replace(asked, train=replace(asked.train, lr=0.0)))  # so that the usual rate is filled in
    usual = plan.spec.train.lr
    first, last = low or BELOW * usual, high or ABOVE * usual
    if not 0 < first < last < math.inf:
        raise InputError(f"rates rise from --low to --high, which must be larger: got {first:g} and {last:g}")
    rates = np.geomspace(first, last, steps).tolist()
    spec = plan.spec
    title = f"{spec.network.name} on {spec.data.path}"
    return read(title, *_train(plan, rates, progress or (lambda *_: None)), rates=rates)


def _train(plan: Plan, rates: Sequence[float], progress: Progress) -> tuple[list[float], bool]:
    """The losses at the rates, until they diverge; and whether they did."""
    epochs = -(-len(rates) // plan.steps_per_epoch)
    train = replace(plan.spec.train, lr=1.0, epochs=epochs, ema_decay=0.0, warmup_epochs=0.0)
    speed = replace(plan.spec.speed, compile="off", start_size=0, freeze_norms=1.0, rest_stem=1.0)
    spec = replace(plan.spec, train=train, speed=speed)
    plan = replace(plan, spec=spec)
    with threads_put_back(), ExitStack() as stack:
        parts = assemble(plan, Console(stderr=True))
        learner, loader = parts.learner, stack.enter_context(closing(parts.train_loader))
        stack.enter_context(closing(parts.loader))
        for swept in (learner, learner.proxy):
            if swept:
                swept.factor = lambda step: rates[step]
        batches = _batches(plan, loader, epochs)

        def step(number: int) -> float:
            epoch, batch = next(batches)
            made = learner.update(batch, epoch, number, augment=parts.augment, preprocess=parts.preprocess)
            return made.loss.item()

        return sweep(step, len(rates), progress)


def _batches(plan: Plan, loader: Loader, epochs: int) -> Iterator[tuple[int, Batch]]:
    """The run's batches with their epochs, on and on (the last epoch over again where batches were lost)."""
    train, size = plan.spec.train, plan.spec.train.batch_size
    sampler = make_sampler(plan.splits.train, plan.source.labels, train.sampler, seed=train.seed)
    epoch = 0
    while True:
        epoch, found = min(epoch + 1, epochs), False
        order = sampler.epoch(epoch)[: plan.steps_per_epoch * size]
        for batch in loader.batches(order, size):
            if len(batch.labels) > 1 or size == 1:
                found = True
                yield epoch, batch
        if not found:
            raise InputError(f"none of the training images can be read{for_example(loader.bad)}")


def sweep(step: Callable[[int], float], steps: int, progress: Progress) -> tuple[list[float], bool]:
    """Take steps until the running mean of the losses is 4 times its smallest, or a loss is no number.

    Args:
        step: number from 0 -> the loss before that step is taken.
        steps: at most so many.
        progress: called after each one.

    Returns:
        The losses (finite ones), and whether they diverged.
    """
    losses: list[float] = []
    total = weight = 0.0
    smallest = math.inf
    for number in range(steps):
        loss = step(number)
        if not math.isfinite(loss):
            return losses, True
        losses.append(loss)
        total, weight = MEMORY * total + loss, MEMORY * weight + 1
        smallest = min(smallest, total / weight)
        progress(number + 1, steps, loss)
        if total / weight > DIVERGED * smallest:
            return losses, True
    return losses, False


def read(title: str, losses: Sequence[float], diverged: bool, *, rates: Sequence[float]) -> LrSweep:
    """A rate out of losses.

    The steepest descent is where a step gains most, and it is suggested: the smallest loss lies just below the rates
    that harm, too near for a whole run. But noise moves the steepest point, so it counts only between a tenth and a
    third of the rate with the smallest loss; beyond them, these do. What comes after the loss has risen by half of its
    fall does not count: it may fall once more there, at rates that had thrown the network back.

    Args:
        title: what was trained.
        losses: of the steps that were taken.
        diverged: whether the last one was the last because of it.
        rates: of all steps, rising.

    Raises:
        InputError: the loss diverged at once, or never fell.
    """
    if len(losses) < FEWEST // 2:
        raise InputError(f"the loss diverges from the first steps on, at a rate of {rates[0]:.2g}: try a lower --low")
    taken = tuple(rates[: len(losses)])
    half = max(1, round(WINDOW * len(rates)))
    smoothed = centred(losses, half)
    lowest = int(smoothed[: first_rise(smoothed, half)].argmin())
    noise = float(np.std((np.asarray(losses) - smoothed)[: lowest + 1])) / math.sqrt(2 * half + 1)
    if lowest < half or smoothed[half] - smoothed[lowest] < 4 * noise:  # the least of many means lies 2 to 3 below
        raise InputError(
            f"the loss never fell between the rates {taken[0]:.2g} and {taken[-1]:.2g}: try a lower --low, or check "
            "data and settings"
        )
    slopes = smoothed[2 * half :] - smoothed[: -2 * half]  # in the middle of each, one step being one share of a decade
    steepest, minimum = taken[half + int(slopes[: max(lowest - half, 1)].argmin())], taken[lowest]
    suggestion, why = steepest, "where the loss falls fastest"
    if steepest < minimum / 10:
        suggestion, why = (
            minimum / 10,
            "a tenth of the rate with the smallest loss; where it falls fastest is far below",
        )
    elif steepest > minimum / 3:
        suggestion, why = minimum / 3, "a third of the rate with the smallest loss; where it falls fastest is too near"
    two_digits = float(f"{suggestion:.1e}")
    return LrSweep(title, taken, tuple(losses), tuple(smoothed.tolist()), diverged, steepest, minimum, two_digits, why)


def first_rise(smoothed: np.ndarray, start: int) -> int:
    """Where a loss that had fallen by a tenth has gone up again by half of its fall; the end where it has not."""
    least = np.minimum.accumulate(smoothed)
    fall = smoothed[start] - least
    risen = (fall > 0.1 * abs(smoothed[start])) & (smoothed - least > fall / 2)
    return int(risen.argmax()) if risen.any() else len(smoothed)


def centred(values: Sequence[float], half: int) -> np.ndarray:
    """The mean over `half` neighbours on both sides; fewer, but as many on both, towards the ends. -> (N,) float64."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    at = np.arange(len(values))
    reach = np.minimum(np.minimum(at, at[::-1]), half)
    return (sums[at + reach + 1] - sums[at - reach]) / (2 * reach + 1)


def draw(found: LrSweep) -> bytes:
    """The loss against the rate, as a PNG."""
    figure = Figure(figsize=(7, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"learning rates tried: {found.title}", fontsize=11, parse_math=False)
    axes.plot(found.rates, found.losses, color=LOSS, alpha=0.3, linewidth=0.8, label="a step")
    axes.plot(found.rates, found.smoothed, color=LOSS, label="smoothed")
    for rate, name, style in ((found.steepest, "steepest", ":"), (found.minimum, "smallest loss", "--")):
        axes.axvline(rate, color=QUIET, linestyle=style, label=f"{name} {rate:.2g}")
    axes.axvline(found.suggestion, color=SUGGESTED, label=f"suggestion {found.suggestion:g}")
    top, bottom = max(found.smoothed[: found.rates.index(found.minimum) + 1]), min(found.losses)
    axes.set_ylim(bottom - 0.05 * (top - bottom), top + 0.5 * (top - bottom))  # what diverges leaves the picture
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (nats)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, fontsize=8)
    return png(figure)

"""Twins: a network and its plain twin, trained from the same initial weights on the same batches, over several seeds.

Network, data, optimizer and loss are the run's; augmentation, fine-tuning and averaging are left out.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from skipway.errors import InputError
from skipway.fields import check, option
from skipway.insight import style
from skipway.insight.experiment import Experiment, Pace, Reading
from skipway.insight.race import BATCH, PLAIN, RESIDUAL, Race
from skipway.insight.subject import Subject
from skipway.insight.watch import QUIET, Watch
from skipway.nn.twin import Twin, twin
from skipway.training.plan import BASE_LR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLEAR = 0.1  # of the lower training loss: from here on the gap counts
LEAST = 50  # steps of a race that says where training ends


@dataclass(frozen=True)
class TwinsSettings:
    """How long the twins are trained, and how often."""

    seeds: int = option(3, "races, each with weights and an order of its own", low=1, high=100)
    epochs: int = option(4, "times through the training images", low=1, high=1000)
    batch_size: int = option(64, "images a step; all of them where there are fewer", low=2, high=4096)
    lr: float = option(0.0, "peak learning rate; 0: the run's, in proportion to the batch size", low=0, high=100)
    images: int = option(0, "training images that are used; 0: all", low=0)
    marks: int = option(6, "how often both are scored on held-out images", low=1, high=1000)
    with_norm: bool = option(True, "the network's own normalisation; off: none, in both")

    def __post_init__(self) -> None:
        check(self, "twins")


@dataclass(frozen=True)
class Curves:
    """How one network learned; each (races, marks), NaN or infinite once it diverged.

    Args:
        train_loss: mean loss of the batches since the last mark, in nats.
        train_accuracy: share of their images that was right.
        loss, accuracy: on held-out images, in evaluation mode.
    """

    train_loss: tuple[tuple[float, ...], ...]
    train_accuracy: tuple[tuple[float, ...], ...]
    loss: tuple[tuple[float, ...], ...]
    accuracy: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Twins:
    """What became of the twins.

    Args:
        network: the residual one's name.
        norm: of both: batch, group or none.
        dropped: what the plain twin had to go without beside its skips, in words.
        images, seen: how many were trained on, and scored on.
        batch_size, lr: of the training.
        steps, races: how many were to be made: steps a race, races.
        at: (races, marks), the steps after which both were scored.
        residual, plain: their curves.
        own: share of held-out images that the run itself gets right, after all its training; NaN without one.
    """

    network: str
    norm: str
    dropped: tuple[str, ...]
    images: int
    seen: int
    batch_size: int
    lr: float
    steps: int
    races: int
    at: tuple[tuple[int, ...], ...]
    residual: Curves
    plain: Curves
    own: float


def twins(subject: Subject, settings: TwinsSettings = TwinsSettings(), *, watch: Watch = QUIET) -> Twins:
    """Train the subject's network and its plain twin side by side (He et al. 2015, arXiv:1512.03385, fig. 1 and 6).

    The paper compares depths of each kind on CIFAR-10 and ImageNet for 64,000 and 600,000 steps; here one depth of both
    kinds is compared, for as long as the settings say. A plain subject is compared with itself given skips.

    Args:
        subject: whose network, data, optimizer and loss; its weights are only scored, to compare with.
        settings: the budget.
        watch: gets the curves at each mark; once it is late the race under way ends with a last score.

    Raises:
        InputError: the network is not skipway's own, or has no logits.
    """
    pair = _pair(subject, with_norm=settings.with_norm)
    races, own = [], _own(subject)
    for number in range(settings.seeds):
        race = _race(subject, pair, settings, number)
        races.append(race)
        marks = {math.ceil(race.total_steps * i / settings.marks) for i in range(1, settings.marks + 1)}
        while not race.done and not (watch.late and race.taken):
            race.step()
            watch.tell((number + race.taken / race.total_steps) / settings.seeds)
            if race.taken in marks:
                race.scores()
                watch.partial(_result(pair, races, settings.seeds, own))
        if not race.told or race.told[-1][0] != race.taken:
            race.scores()
        if watch.late:
            break
    return _result(pair, races, settings.seeds, own)


def _pair(subject: Subject, *, with_norm: bool) -> Twin:
    """The residual network and its twin."""
    own = subject.own
    if own is None:
        raise InputError(f"{subject.title} is not one of skipway's own networks, so it has no plain twin to train")
    if own.head != "linear":
        raise InputError(f"{subject.title} ends in features, without logits to train; twins want head linear")
    if own.shortcut == "none":
        own = replace(own, shortcut="projection", name=f"{own.name} with skips")
    return twin(own if with_norm else replace(own, norm="none"))


def _race(subject: Subject, pair: Twin, settings: TwinsSettings, number: int) -> Race:
    """One race: with the run's optimizer and loss, for another time."""
    own, train = subject.spec.train, subject.train.first(settings.images or len(subject.train))
    size = min(settings.batch_size, len(train))
    share = 1.0 if own.optimizer == "muon" else size / (own.batch_size or 128)
    lr = settings.lr or (own.lr or BASE_LR[own.optimizer]) * share
    alone = {"weights": "", "freeze": "", "freeze_epochs": 0, "layer_decay": 1.0, "ema_decay": 0.0, "track": ()}
    budget = {"epochs": settings.epochs, "warmup_epochs": 0.05 * settings.epochs, "seed": own.seed + number}
    spec = replace(own, batch_size=size, lr=lr, precision="fp32", **budget, **alone)
    return Race({RESIDUAL: pair.residual, PLAIN: pair.spec}, spec, train, subject.seen)


@torch.no_grad()
def _own(subject: Subject) -> float:
    if not subject.trained:
        return math.nan
    logits = torch.cat([subject.network(x) for x in subject.seen.inputs.split(BATCH)])
    return float(subject.right(logits, subject.seen.labels).mean())


def _result(pair: Twin, races: list[Race], wanted: int, own: float) -> Twins:
    """What there is so far; races that were not scored yet do not count."""
    first, scored = races[0], [race for race in races if race.told]
    return Twins(
        pair.residual.name,
        pair.residual.norm,
        pair.dropped,
        len(first.train),
        len(first.seen),
        first.batch_size,
        first.spec.lr,
        first.total_steps,
        wanted,
        tuple(tuple(step for step, _ in race.told) for race in scored),
        _curves(RESIDUAL, scored),
        _curves(PLAIN, scored),
        own,
    )


def _curves(name: str, races: list[Race]) -> Curves:
    rows = []
    for race in races:
        laps, scores = [step.networks[name] for step in race.steps], [score[name] for _, score in race.told]
        ends = [step for step, _ in race.told]
        parts = [laps[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        losses = tuple(sum(lap.loss for lap in part) / len(part) for part in parts)
        right = tuple(sum(lap.right for lap in part) / len(part) for part in parts)
        rows.append((losses, right, tuple(s.loss for s in scores), tuple(s.accuracy for s in scores)))
    return Curves(*zip(*rows, strict=True))


def _draw(result: Twins) -> "Figure":
    made, (loss, accuracy) = style.figure(2, width=9.0)
    for name, curves, colour in (("with skips", result.residual, style.RESIDUAL), ("plain", result.plain, style.PLAIN)):
        for axes, key in ((loss, "loss"), (accuracy, "accuracy")):
            _band(axes, result, getattr(curves, f"train_{key}"), colour, f"{name}, training", "-")
            _band(axes, result, getattr(curves, key), colour, f"{name}, held out", "--")
    races = f"{len(result.at)} seeds: mean and range" if len(result.at) > 1 else "one seed"
    losses = [*result.residual.train_loss, *result.residual.loss, *result.plain.train_loss, *result.plain.loss]
    loss.set_yscale("linear" if any(value <= 0 for row in losses for value in row) else "log")
    if math.isfinite(result.own):
        accuracy.axhline(result.own, color=style.QUIET_GREY, linestyle=":", label="the run itself, held out")
    for axes, what in ((loss, "loss in nats"), (accuracy, "share of right answers")):
        axes.set_title(f"{what}, {races}", fontsize=10)
        axes.set_xlabel("epochs", fontsize=8)
    accuracy.legend(fontsize=8, frameon=False)
    return made


def _band(axes: "Axes", result: Twins, rows: tuple[tuple[float, ...], ...], colour: str, label: str, line: str) -> None:
    """Mean and range over races at each mark that a race has reached."""
    longest = max(result.at, key=len, default=())
    at = [step * result.batch_size / result.images for step in longest]
    reached = [[row[i] for row in rows if len(row) > i and math.isfinite(row[i])] for i in range(len(longest))]
    known = [(x, values) for x, values in zip(at, reached, strict=True) if values]
    xs = [x for x, _ in known]
    axes.fill_between(xs, [min(v) for _, v in known], [max(v) for _, v in known], color=colour, alpha=0.2, linewidth=0)
    axes.plot(xs, [sum(v) / len(v) for _, v in known], line, color=colour, label=label, marker=".", markersize=3)


def _read(result: Twins) -> Reading:
    """The plain network ends at the clearly higher training loss with every seed (agrees), at the lower (disagrees)."""
    farthest = max(row[-1] for row in result.at)
    whole = [i for i, row in enumerate(result.at) if row[-1] == farthest]  # a race under way is no match for these
    last = [[curves.train_loss[i][-1] for i in whole] for curves in (result.residual, result.plain)]
    ours, plains = ([math.inf if math.isnan(v) else v for v in row] for row in last)
    ends = list(zip(ours, plains, strict=True))
    higher, lower = sum(b > a for a, b in ends), sum(b < a for a, b in ends)
    norm = "without normalisation" if result.norm == "none" else f"with {result.norm} norm"
    said = [
        f"{result.network} ends at a training loss of {_spread(ours)}, its plain twin at {_spread(plains)}: "
        f"the plain one is higher with {higher} of {len(ends)} seeds.",
        f"Of {result.seen:,} held-out images {_percent(result.residual, whole)} are right with skips, "
        f"{_percent(result.plain, whole)} without.",
        f"Each learned for {result.steps:,} steps of {result.batch_size} images (of {result.images:,}), {norm}, at a "
        f"rate of {result.lr:.2g} at most; both from the same initial weights, on the same batches.",
    ]
    if math.isfinite(result.own):
        said.append(f"The run itself, after all its training, has {result.own:.1%} of them right.")
    if result.dropped:
        said.append(f"Beside its skips the twin goes without {'; '.join(result.dropped[:3])}.")
    if result.steps < LEAST:
        said.append(f"Fewer than {LEAST} steps are a beginning: they do not show where training ends.")
    done, planned = sum(row[-1] for row in result.at), result.steps * result.races
    if done < planned:
        said.append(f"The time was over after {done:,} of {planned:,} steps.")
    ended = farthest >= max(result.steps, LEAST)
    clear = ended and all(abs(b - a) > CLEAR * min(a, b) for a, b in ends if a != b)
    verdict = "agrees" if clear and higher == len(ends) else "disagrees" if clear and lower == len(ends) else "open"
    return Reading(tuple(said), verdict)


def _spread(losses: list[float]) -> str:
    """'0.38 (0.36 to 0.4)'; how many diverged where some did."""
    good = [v for v in losses if math.isfinite(v)]
    if not good:
        return "no finite number (it diverged)"
    lost = f", {len(losses) - len(good)} diverged" if len(good) < len(losses) else ""
    between = f" ({min(good):.3g} to {max(good):.3g}{lost})" if len(losses) > 1 else ""
    return f"{sum(good) / len(good):.3g}{between}"


def _percent(curves: Curves, races: list[int]) -> str:
    last = [curves.accuracy[i][-1] for i in races]
    between = f" ({min(last):.1%} to {max(last):.1%})" if len(last) > 1 else ""
    return f"{sum(last) / len(last):.1%}{between}"


def _fit(pace: Pace, seconds: float) -> TwinsSettings | None:
    """Three seeds where each can go through the images three times, else fewer; LEAST steps at the least."""
    subject = pace.subject
    try:
        race = _race(subject, _pair(subject, with_norm=True), TwinsSettings(epochs=1), 0)
    except InputError:
        return None
    count, marks = len(subject.train), 4
    try_s = 4 * pace.step_s * race.batch_size
    epoch_s = race.estimate_s() if try_s < seconds / 4 else 2 * pace.step_s * count
    epoch_s = 2.0 ** math.ceil(math.log2(epoch_s))  # as Pace rounds: the same settings the next time
    room, scores_s = 0.7 * seconds, marks * epoch_s / 3 * len(subject.seen) / count
    for seeds, least in ((3, 3), (2, 3), (1, 1)):
        epochs = min(int((room / seeds - scores_s) / epoch_s), 30)
        if epochs >= least and epochs * count >= LEAST * 32:
            return TwinsSettings(seeds=seeds, epochs=epochs, batch_size=32, marks=marks)
    return None


EXPERIMENT = Experiment(
    name="twins",
    title="Twins: trained with skips and without",
    paper="He et al. 2015, fig. 1 and 6",
    claim="A deep plain network ends at a higher training error than the same network with skips: degradation.",
    settings=TwinsSettings(),
    result=Twins,
    run=twins,
    draw=_draw,
    read=_read,
    fit=_fit,
)

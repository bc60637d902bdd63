"""Twins: a network and its plain twin, trained from the same initial weights on the same batches, over several seeds.

The network is the subject's own, with fresh weights; data, optimizer and loss are its run's too. What augmentation,
fine-tuning and averaging a run has is left out: a short race of two, in fp32.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from skipway.errors import InputError
from skipway.fields import check, option
from skipway.insight import style
from skipway.insight.experiment import Experiment, Pace, Reading
from skipway.insight.race import PLAIN, RESIDUAL, Race
from skipway.insight.subject import Images, Subject
from skipway.insight.watch import QUIET, Watch
from skipway.nn.twin import Twin, twin
from skipway.spec import TrainSpec
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


def twins(subject: Subject, settings: TwinsSettings = TwinsSettings(), *, watch: Watch = QUIET) -> Twins:
    """Train the subject's network and its plain twin side by side (He et al. 2015, arXiv:1512.03385, fig. 1 and 6).

    The paper compares depths of each kind on CIFAR-10 and ImageNet for 64,000 and 600,000 steps; here one depth of both
    kinds is compared, for as long as the settings say. A plain subject is compared with itself given skips.

    Args:
        subject: whose network, data, optimizer and loss; its weights are not used.
        settings: the budget.
        watch: gets the curves at each mark; once it is late the race under way ends with a last score.

    Raises:
        InputError: the network is not skipway's own, or has no logits.
    """
    pair = _pair(subject, with_norm=settings.with_norm)
    train = subject.train.first(settings.images or len(subject.train))
    races: list[Race] = []
    for number in range(settings.seeds):
        race = _race(pair, _budget(subject, settings, number), train, subject.seen)
        races.append(race)
        marks = {math.ceil(race.total_steps * i / settings.marks) for i in range(1, settings.marks + 1)}
        while not race.done and not (watch.late and race.taken):
            race.step()
            watch.tell((number + race.taken / race.total_steps) / settings.seeds)
            if race.taken in marks:
                race.scores()
                watch.partial(_result(pair, races, settings.seeds))
        if not race.told or race.told[-1][0] != race.taken:
            race.scores()
        if watch.late:
            break
    return _result(pair, races, settings.seeds)


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


def _budget(subject: Subject, settings: TwinsSettings, number: int) -> TrainSpec:
    """How both learn: the run's optimizer and loss, for another time."""
    own = subject.spec.train
    batch_size = min(settings.batch_size, settings.images or len(subject.train), len(subject.train))
    share = 1.0 if own.optimizer == "muon" else batch_size / (own.batch_size or 128)
    lr = settings.lr or (own.lr or BASE_LR[own.optimizer]) * share
    alone = {"weights": "", "freeze": "", "freeze_epochs": 0, "layer_decay": 1.0, "ema_decay": 0.0, "track": ()}
    return replace(
        own,
        epochs=settings.epochs,
        batch_size=max(batch_size, 1),
        lr=lr,
        warmup_epochs=0.05 * settings.epochs,
        precision="fp32",
        seed=own.seed + number,
        **alone,
    )


def _race(pair: Twin, spec: TrainSpec, train: Images, seen: Images) -> Race:
    return Race({RESIDUAL: pair.residual, PLAIN: pair.spec}, spec, train, seen)


def _result(pair: Twin, races: list[Race], wanted: int) -> Twins:
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
    )


def _curves(name: str, races: list[Race]) -> Curves:
    rows: dict[str, list[tuple[float, ...]]] = {key: [] for key in Curves.__dataclass_fields__}
    for race in races:
        laps = [step.networks[name] for step in race.steps]
        ends = [step for step, _ in race.told]
        parts = [laps[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        rows["train_loss"].append(tuple(sum(lap.loss for lap in part) / len(part) for part in parts))
        rows["train_accuracy"].append(tuple(sum(lap.right for lap in part) / len(part) for part in parts))
        rows["loss"].append(tuple(scores[name].loss for _, scores in race.told))
        rows["accuracy"].append(tuple(scores[name].accuracy for _, scores in race.told))
    return Curves(**{key: tuple(value) for key, value in rows.items()})


def _draw(result: Twins) -> "Figure":
    made, (loss, accuracy) = style.figure(2, width=9.0)
    for name, curves, colour in (("with skips", result.residual, style.RESIDUAL), ("plain", result.plain, style.PLAIN)):
        _band(loss, result, curves.train_loss, colour, f"{name}, training", "-")
        _band(loss, result, curves.loss, colour, f"{name}, held out", "--")
        _band(accuracy, result, curves.train_accuracy, colour, f"{name}, training", "-")
        _band(accuracy, result, curves.accuracy, colour, f"{name}, held out", "--")
    races = f"{len(result.at)} seeds: mean and range" if len(result.at) > 1 else "one seed"
    loss.set_title(f"loss in nats, {races}", fontsize=10)
    loss.set_yscale("log")
    accuracy.set_title(f"share of right answers, {races}", fontsize=10)
    for axes in (loss, accuracy):
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
    ours, plains = ([row[-1] for row in curves.train_loss] for curves in (result.residual, result.plain))
    if not ours:
        return Reading(("Nothing was trained yet.",), "open")
    ends = [
        (a if math.isfinite(a) else math.inf, b if math.isfinite(b) else math.inf)
        for a, b in zip(ours, plains, strict=True)
    ]
    higher, lower = sum(b > a for a, b in ends), sum(b < a for a, b in ends)
    norm = "without normalisation" if result.norm == "none" else f"with {result.norm} norm"
    said = [
        f"{result.network} ends at a training loss of {_spread(ours)}, its plain twin at {_spread(plains)}: "
        f"the plain one is higher with {higher} of {len(ends)} seeds.",
        f"Of {result.seen:,} held-out images {_percent(result.residual)} are right with skips, "
        f"{_percent(result.plain)} without.",
        f"Each learned for {result.steps:,} steps of {result.batch_size} images (of {result.images:,}), {norm}, at a "
        f"rate of {result.lr:.2g} at most; both from the same initial weights, on the same batches.",
    ]
    if result.dropped:
        said.append(f"Beside its skips the twin goes without {'; '.join(result.dropped[:3])}.")
    short = result.steps < LEAST
    if short:
        said.append(f"Fewer than {LEAST} steps are a beginning: they do not show where training ends.")
    if (done := sum(row[-1] for row in result.at)) < result.steps * result.races:
        said.append(f"The time was over after {done:,} of {result.steps * result.races:,} steps.")
        short = short or result.at[0][-1] < result.steps
    clear = not short and all(abs(b - a) > CLEAR * min(a, b) for a, b in ends if a != b)
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


def _percent(curves: Curves) -> str:
    last = [row[-1] for row in curves.accuracy]
    between = f" ({min(last):.1%} to {max(last):.1%})" if len(last) > 1 else ""
    return f"{sum(last) / len(last):.1%}{between}"


def _fit(pace: Pace, seconds: float) -> TwinsSettings | None:
    """Three seeds where each can go through the images three times, else fewer; else fewer images."""
    subject = pace.subject
    try:
        pair = _pair(subject, with_norm=True)
    except InputError:
        return None
    count, marks = len(subject.train), 4
    a_try = TwinsSettings(epochs=1)
    epoch_s = 2 * pace.step_s * count
    if 4 * pace.step_s * min(a_try.batch_size, count) < seconds / 4:  # then there is time to try some steps
        epoch_s = _race(pair, _budget(subject, a_try, 0), subject.train, subject.seen).estimate_s()
    room, scores_s = 0.7 * seconds, marks * epoch_s / 3 * len(subject.seen) / count
    for seeds, least in ((3, 3), (2, 3), (1, 1)):
        epochs = min(int((room / seeds - scores_s) / epoch_s), 30)
        if epochs >= least:
            return TwinsSettings(seeds=seeds, epochs=epochs, marks=marks)
    images = int((room - scores_s) / epoch_s * count)
    return TwinsSettings(seeds=1, epochs=1, batch_size=32, images=images, marks=marks) if images >= 128 else None


EXPERIMENT = Experiment(
    name="twins",
    title="Twins: trained with skips and without",
    paper="He et al. 2015, fig. 1 and 6",
    claim="A deep plain network ends at a higher training error than the same network with skips: degradation.",
    settings=TwinsSettings(),
    result=Twins,
    run=lambda subject, settings, watch: twins(subject, settings, watch=watch),
    draw=_draw,
    read=_read,
    fit=_fit,
)

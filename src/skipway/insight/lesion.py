"""Lesions: what is left of the accuracy when blocks are cut out of a trained network, or change places.

Veit et al. 2016 (Residual Networks Behave Like Ensembles of Relatively Shallow Networks, arXiv:1605.06431, fig. 3 and
5); Greff et al. 2016 (Highway and Residual Networks learn Unrolled Iterative Estimation, arXiv:1612.07771, fig. 4).
No block is trained again. Each cut starts at the cut (prefix.py), so that all of them take about half a pass each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median, pstdev
from typing import TYPE_CHECKING

from skipway.insight.cuts import COUNTS, Cut, accuracy, choices, single_cuts, swaps, why_not
from skipway.insight.depth import constant, depth_axis, percent, units_of
from skipway.insight.edits import Edit
from skipway.insight.experiment import Experiment, Pace, Reading
from skipway.insight.prefix import Prefix
from skipway.insight.probe import Probe
from skipway.insight.remeasure import Remeasured
from skipway.insight.style import PLAIN, QUIET_GREY, RESIDUAL, THIRD, figure
from skipway.insight.subject import Images, Subject
from skipway.insight.watch import QUIET, Watch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LesionSettings:
    """How much is cut.

    Args:
        num_images: validation images that are scored.
        num_draws: random choices of blocks, for each number of blocks cut at a time.
        num_swaps: random pairs of blocks that change places.
        reestimate: measure batch norms' statistics again, on train images, after each single cut.
        seed: of the choices.
    """

    num_images: int = 1000
    num_draws: int = 6
    num_swaps: int = 12
    reestimate: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Several:
    """So many random blocks cut out at once; none that opens a stage.

    Args:
        count: of blocks.
        accuracies: one for each choice of blocks.
    """

    count: int
    accuracies: tuple[float, ...]


@dataclass(frozen=True)
class Swap:
    """Two blocks of equal shapes in each other's place."""

    first: str
    second: str
    accuracy: float


@dataclass(frozen=True)
class Lesion:
    """What is left after each lesion.

    Args:
        plain: whether the network has no skips.
        num_images: that were scored.
        accuracy, loss: of the whole network.
        reestimated: its accuracy with batch norms' statistics measured again; NaN where that was not asked for.
        constant: what always giving the same answer would score.
        units: all blocks by name, in order.
        cuts, several, swaps: the lesions.
        uncut: blocks that cannot be cut out, with the reason.
    """

    plain: bool
    num_images: int
    accuracy: float
    loss: float
    reestimated: float
    constant: float
    units: tuple[str, ...]
    cuts: tuple[Cut, ...] = ()
    several: tuple[Several, ...] = ()
    swaps: tuple[Swap, ...] = ()
    uncut: dict[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[float, ...]:
        """What each cut of a block that opens no stage leaves of the accuracy above `constant`: 1 all, 0 nothing."""
        margin = self.accuracy - self.constant
        return tuple((c.accuracy - self.constant) / margin for c in self.cuts if not c.opens) if margin > 0 else ()


def lesion(subject: Subject, settings: LesionSettings = LesionSettings(), *, watch: Watch = QUIET) -> Lesion:
    """Accuracy after cutting each block alone, after cutting some at random, after swapping two.

    A cut block is y = finish(S(x)): its branch gives nothing, the activation behind the addition stays; in a plain
    network it is y = x. Veit et al. cut blocks likewise, openers of stages included. Several blocks at once are drawn
    here from those that open no stage; swaps are of one pair at a time, where Veit et al. shuffle more and more.

    Args:
        subject: the network with its images.
        settings: how much is cut.
        watch: told of each lesion; gets partial results after each block.

    Raises:
        InputError: no block is known; or statistics are to be measured again where there are none.
    """
    images = subject.seen.first(settings.num_images)
    measured = Remeasured(subject, num_images=settings.num_images) if settings.reestimate else None
    with Probe(subject.network, images.inputs) as probe:
        prefix = Prefix(probe, images.inputs, watch=watch.part(0, 0.1))
        result = Lesion(
            plain=all(u.skip == "none" for u in probe.units),
            num_images=len(images),
            accuracy=accuracy(subject, prefix.logits, images.labels),
            loss=subject.loss(prefix.logits, images.labels).item(),
            reestimated=_remeasured(subject, measured, images, (), watch) if measured else float("nan"),
            constant=constant(images.labels),
            units=tuple(u.name for u in probe.units),
            uncut={u.name: reason for u in probe.units if (reason := why_not(u, probe.units))},
        )
        for cut in single_cuts(subject, prefix, images.labels, watch=watch.part(0.1, 0.5)):
            if measured:
                again = _remeasured(subject, measured, images, [Edit("block", cut.name)], watch)
                cut = replace(cut, reestimated=again)
            result = replace(result, cuts=(*result.cuts, cut))
            watch.partial(result)
        rest = [
            *choices(probe.units, num_draws=settings.num_draws, seed=settings.seed),
            *swaps(probe.units, num_swaps=settings.num_swaps, seed=settings.seed),
        ]
        for number, edits in enumerate(rest):
            if watch.late:
                break
            part = watch.part(0.5 + 0.5 * number / len(rest), 0.5 + 0.5 * (number + 1) / len(rest))
            left = accuracy(subject, prefix.score(edits, watch=part), images.labels)
            result = _with(result, edits, left)
            watch.partial(result)
    watch.tell(1.0)
    return result


def _remeasured(subject: Subject, measured: Remeasured, images: Images, edits: Sequence[Edit], watch: Watch) -> float:
    silent = replace(watch, on_progress=lambda share: None)  # which may still cancel
    return accuracy(subject, measured.logits(images, edits, watch=silent), images.labels)


def _with(result: Lesion, edits: Sequence[Edit], left: float) -> Lesion:
    """The result with one more lesion."""
    if edits[0].kind == "swap":
        return replace(result, swaps=(*result.swaps, Swap(edits[0].unit, edits[0].other, left)))
    before, count = result.several, len(edits)
    if before and before[-1].count == count:
        more = Several(count, (*before[-1].accuracies, left))
        return replace(result, several=(*before[:-1], more))
    return replace(result, several=(*before, Several(count, (left,))))


def _draw(result: Lesion) -> "Figure":
    made, (single, many) = figure(2, width=10.0, height=3.9)
    _draw_single(single, result)
    colour = PLAIN if result.plain else RESIDUAL
    counts = [s.count for s in result.several]
    means = [fmean(s.accuracies) for s in result.several]
    spread = [pstdev(s.accuracies) for s in result.several]
    for each in result.several:
        many.plot([each.count] * len(each.accuracies), each.accuracies, ".", color=colour, alpha=0.35, ms=4)
    swap = -max(counts, default=1) / 12
    many.errorbar(counts, means, yerr=spread, color=colour, marker="o", ms=4, capsize=2, label="some cut, mean ± s.d.")
    if result.swaps:
        left = [s.accuracy for s in result.swaps]
        many.plot([swap] * len(left), left, "x", color=THIRD, ms=5, label="two swapped")
    many.set_xticks([swap, *counts], ["swap", *map(str, counts)])
    _lines(many, result)
    many.set(title="Several blocks cut at random", ylim=(-0.02, 1.03))
    many.set_xlabel("blocks cut", fontsize=8)
    many.legend(fontsize=7, frameon=False)
    return made


def _draw_single(axes: "Axes", result: Lesion) -> None:
    places, uncut = [result.units.index(c.name) for c in result.cuts], result.uncut
    left = [c.accuracy for c in result.cuts]
    colour = PLAIN if result.plain else RESIDUAL
    axes.vlines(places, left, result.accuracy, color=colour, lw=1, alpha=0.5)
    axes.plot(places, left, "o", color=colour, ms=5, label="block cut")
    if any(c.reestimated == c.reestimated for c in result.cuts):
        axes.plot(places, [c.reestimated for c in result.cuts], "D", color=THIRD, ms=3.5, label="and statistics again")
    _lines(axes, result)
    opens = {c.name for c in result.cuts if c.opens} | set(uncut)
    depth_axis(axes, result.units, [name in opens for name in result.units])
    for name in uncut:
        axes.text(result.units.index(name), 0.5, "cannot be cut", rotation=90, ha="center", va="center", fontsize=7)
    axes.set(title="Each block cut alone", ylim=(-0.02, 1.03))
    axes.set_ylabel(f"accuracy, {result.num_images:,} images", fontsize=8)
    axes.legend(fontsize=7, frameon=False)


def _lines(axes: "Axes", result: Lesion) -> None:
    axes.axhline(result.accuracy, color=QUIET_GREY, lw=1, label="whole network")
    axes.axhline(result.constant, color=QUIET_GREY, lw=1, ls=":", label="always one answer")


def _read(result: Lesion) -> Reading:
    kind = "plain" if result.plain else "residual"
    says = [f"The whole {kind} network answers {percent(result.accuracy)} of {result.num_images:,} images right."]
    closed, openers = [c for c in result.cuts if not c.opens], [c for c in result.cuts if c.opens]
    if closed:
        worst = min(closed, key=lambda c: c.accuracy)
        middle = median(c.accuracy for c in closed)
        says.append(
            f"With one of {len(closed)} blocks cut it answers {percent(middle)} at the median; "
            f"worst is {worst.name}, which leaves {percent(worst.accuracy)}."
        )
    if openers:
        left = ", ".join(f"{c.name} {percent(c.accuracy)}" for c in openers)
        says.append(f"Blocks that open a stage leave: {left}.")
    if result.uncut:
        says.append(f"{len(result.uncut)} blocks cannot be cut: they change the shape and have no shortcut.")
    if result.reestimated == result.reestimated and closed:
        middle = median(c.reestimated for c in closed)
        says.append(f"With batch statistics measured again after the cut the median is {percent(middle)}.")
    if len(result.several) > 1:
        half = next((s for s in result.several if 2 * s.count >= result.several[-1].count), result.several[-1])
        says.append(f"With {half.count} random blocks cut it answers {percent(fmean(half.accuracies))} on average.")
    if result.swaps:
        says.append(f"Two swapped blocks leave {percent(fmean(s.accuracy for s in result.swaps))} on average.")
    return Reading(tuple(says), _verdict(result))


def _verdict(result: Lesion) -> str:
    """At the median of the cuts, a residual network keeps 80% or more of its margin, a plain one less than half."""
    if not result.kept:
        return "open"
    kept = median(result.kept)
    if kept >= 0.8:
        return "disagrees" if result.plain else "agrees"
    if kept < 0.5:
        return "agrees" if result.plain else "disagrees"
    return "open"


def _fit(pace: Pace, seconds: float) -> LesionSettings | None:
    units = len(units_of(pace.subject))
    if not units:
        return None
    for draws, pairs in ((6, 12), (3, 6), (1, 2)):
        passes = 1.5 + units / 2 + 0.6 * COUNTS * draws + 0.7 * pairs
        count = int(seconds / (passes * pace.forward_s))
        if count >= 200 or draws == 1:
            break
    count = min(count, len(pace.subject.seen))
    return LesionSettings(count, draws, pairs) if count >= min(50, len(pace.subject.seen)) else None


EXPERIMENT = Experiment(
    name="lesion",
    title="What is left without a block",
    paper="Veit et al. 2016, arXiv:1605.06431, fig. 3 and 5; Greff et al. 2016, arXiv:1612.07771, fig. 4",
    claim="Cutting any single block barely hurts a residual network, and destroys a plain one.",
    settings=LesionSettings(),
    result=Lesion,
    run=lesion,
    draw=_draw,
    read=_read,
    fit=_fit,
)

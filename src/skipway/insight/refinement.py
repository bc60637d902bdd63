"""Refinement: each block moves the representation a step down the loss, and the answer forms on the way.

Jastrzebski et al. 2018 (Residual Connections Encourage Iterative Inference, arXiv:1710.04773, section 3, eq. 4 to 6):
L(h + F(h)) = L(h) + F(h) . dL/dh + ..., so that a branch that lowers the loss points along -dL/dh.
"""

from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.insight.depth import constant, depth_axis, percent, units_of
from skipway.insight.experiment import Experiment, Pace, Reading
from skipway.insight.forming import START, later_cut
from skipway.insight.prefix import Prefix
from skipway.insight.probe import Probe
from skipway.insight.style import PLAIN, QUIET_GREY, RESIDUAL, THIRD, figure
from skipway.insight.subject import Images, Subject
from skipway.insight.watch import QUIET, Watch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH, SIDE = 50, 64  # images of that many pixels a side whose activations and gradients are held at once


@dataclass(frozen=True)
class RefinementSettings:
    """How much is looked at.

    Args:
        num_images: validation images whose answers are read block by block.
        num_slopes: of them, those whose gradients are taken.
    """

    num_images: int = 500
    num_slopes: int = 200


@dataclass(frozen=True)
class Step:
    """One block's step.

    Args:
        name, opens: of the block; "start" is before the first.
        accuracy, loss: of the head read after it, the later blocks that open no stage left out.
        cosine, deviation: mean over images, and standard deviation, of the cosine between the branch F and the negative
            gradient of the loss by the sum F + S; NaN at the start, and where no image has a gradient.
        before: mean cosine between F and the negative gradient at the block's input, as in the paper; NaN where the
            shapes differ, and in plain networks.
        count: images that have a gradient.
    """

    name: str
    opens: bool
    accuracy: float = float("nan")
    loss: float = float("nan")
    cosine: float = float("nan")
    deviation: float = float("nan")
    before: float = float("nan")
    count: int = 0


@dataclass(frozen=True)
class Refinement:
    """Steps from the start to the last block.

    Args:
        plain: whether the network has no skips.
        num_images: that the answers are read on.
        constant: what always giving the same answer would score.
        steps: the start, and each block.
    """

    plain: bool
    num_images: int
    constant: float
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Cosines:
    """Cosines of a unit's branch with the negative gradient of each image's loss.

    Args:
        at_sum: with the gradient by F + S, (N,); NaN where it is zero.
        at_input: with that by the unit's input, (N,); all NaN where the shapes differ or there is no skip.
    """

    at_sum: Tensor
    at_input: Tensor


def refinement(
    subject: Subject, settings: RefinementSettings = RefinementSettings(), *, watch: Watch = QUIET
) -> Refinement:
    """Which way each branch points, and what the head says after each block.

    The paper takes the gradient at the block's input, h. Here the first cosine is with the gradient by the sum F + S
    that F is part of: F . dL/d(F + S) is exactly how the loss moves with the branch's scale, also where a block opens a
    stage. The paper's is given beside it. For reading the head on a block's output see forming.py.

    Args:
        subject: the network with its validation images.
        settings: how much is looked at.
        watch: told of each batch; gets partial results after each block.

    Raises:
        InputError: no block of the network is known.
    """
    images = subject.seen.first(settings.num_images)
    with Probe(subject.network, images.inputs) as probe:
        units = probe.units
        steps = [Step(START, False), *(Step(u.name, u.opens) for u in units)]
        plain = all(u.skip == "none" for u in units)
        result = Refinement(plain, len(images), constant(images.labels), tuple(steps))
        slopes = images.first(settings.num_slopes)
        for place, unit_cosines in enumerate(cosines(subject, probe, slopes, watch=watch.part(0, 0.4)), 1):
            steps[place] = _with(steps[place], unit_cosines)
        watch.partial(result := replace(result, steps=tuple(steps)))
        prefix = Prefix(probe, images.inputs, watch=watch.part(0.4, 0.5))
        for place in reversed(range(len(steps))):  # from the whole network, which is known, to the start
            if watch.late and place < len(units):
                break
            part = watch.part(1 - 0.5 * (place + 1) / len(steps), 1 - 0.5 * place / len(steps))
            logits = prefix.score(later_cut(units, place), watch=part)
            accuracy, loss = subject.right(logits, images.labels).mean(), subject.loss(logits, images.labels)
            steps[place] = replace(steps[place], accuracy=accuracy.item(), loss=loss.item())
            watch.partial(result := replace(result, steps=tuple(steps)))
    watch.tell(1.0)
    return result


def cosines(subject: Subject, probe: Probe, images: Images, *, watch: Watch = QUIET) -> list[Cosines]:
    """Of each unit, image by image.

    Args:
        subject: whose loss is taken.
        probe: its network, within its context, in evaluation mode: images do not see each other.
        images: N of them.
        watch: told of each batch.
    """
    found: list[list[Cosines]] = [[] for _ in probe.units]
    at_once = max(1, min(BATCH, BATCH * SIDE**2 // images.inputs[0, 0].numel()))
    count = -(-len(images) // at_once)
    batches = zip(images.inputs.tensor_split(count), images.labels.tensor_split(count), strict=True)
    for number, (x, labels) in enumerate(batches):
        if watch.late and number:
            break
        with torch.no_grad():
            seen = probe.activations(x)
        slopes = probe.gradients(x, labels, loss=subject.loss)
        for rows, unit in zip(found, probe.units, strict=True):
            branch = seen[f"{unit.name}.branch"]
            at_sum = _cosine(branch, slopes.get(f"{unit.name}.branch"))
            same = unit.skip != "none" and unit.in_shape == unit.out_shape
            at_input = _cosine(branch, slopes.get(f"{unit.name}.input") if same else None)
            rows.append(Cosines(at_sum, at_input))
        watch.tell((number + 1) / count)
    return [Cosines(torch.cat([r.at_sum for r in rows]), torch.cat([r.at_input for r in rows])) for rows in found]


def _cosine(branch: Tensor, slope: Tensor | None) -> Tensor:
    """Of each image's branch with its negative gradient, (B,); NaN where either is zero or there is none."""
    if slope is None:
        return torch.full((len(branch),), float("nan"))
    f, g = branch.flatten(1).double(), -slope.flatten(1).double()  # of a sure answer it is smaller than float32 squares
    return (F.normalize(f, dim=1, eps=0) * F.normalize(g, dim=1, eps=0)).sum(1).float()


def _with(step: Step, found: Cosines) -> Step:
    known = found.at_sum[~found.at_sum.isnan()]
    if not len(known):
        return step
    before = found.at_input.nanmean().item()
    spread = known.std(correction=0).item()
    return replace(step, cosine=known.mean().item(), deviation=spread, before=before, count=len(known))


def _draw(result: Refinement) -> "Figure":
    made, (angles, answers, losses) = figure(3, width=13.0, height=3.9)
    colour = PLAIN if result.plain else RESIDUAL
    blocks = result.steps[1:]
    places = range(len(blocks))
    means = [s.cosine for s in blocks]
    low, high = ([s.cosine + sign * s.deviation for s in blocks] for sign in (-1, 1))
    angles.fill_between(places, low, high, color=colour, alpha=0.18, lw=0, label="± s.d. over images")
    angles.plot(places, means, "o-", color=colour, ms=3.5, lw=1.4, label="gradient by the sum F + S")
    if not result.plain:
        angles.plot(places, [s.before for s in blocks], "s--", color=THIRD, ms=3, lw=1, label="by the block's input")
    angles.axhline(0, color=QUIET_GREY, lw=1)
    angles.set_title("Does the branch point down the loss?")
    angles.set_ylabel("cosine of F with the negative gradient", fontsize=8)
    depth_axis(angles, [s.name for s in blocks], [s.opens for s in blocks])
    answers.plot([s.accuracy for s in result.steps], "o-", color=colour, ms=3.5, lw=1.4, label="later blocks left out")
    answers.axhline(result.constant, color=QUIET_GREY, lw=1, ls=":", label="always one answer")
    answers.set(title="The answer forming", ylim=(-0.02, 1.03))
    answers.set_ylabel(f"accuracy, {result.num_images:,} images", fontsize=8)
    _draw_losses(losses, result, colour)
    for axes in (answers, losses):
        depth_axis(axes, [s.name for s in result.steps], [s.opens for s in result.steps])
        axes.set_xlabel("head read after block", fontsize=8)
    for axes in (angles, answers):
        axes.legend(fontsize=7, frameon=False)
    return made


def _draw_losses(axes: "Axes", result: Refinement, colour: str) -> None:
    axes.plot([s.loss for s in result.steps], "o-", color=colour, ms=3.5, lw=1.4)
    axes.set(title="Its loss", ylim=(0, None))
    axes.set_ylabel("nats", fontsize=8)


def _read(result: Refinement) -> Reading:
    says = []
    pointing = _pointing(result)
    if pointing:
        mean, _, ahead = pointing
        closed = [s for s in result.steps if s.count and not s.opens]
        best = max(closed, key=lambda s: s.cosine)
        says.append(
            f"Branches point along the negative gradient with a cosine of {mean:.3f} on average, most in {best.name} "
            f"({best.cosine:.3f}); {ahead} of {len(closed)} blocks that open no stage point down the loss."
        )
    first, last = result.steps[0], result.steps[-1]
    if first.accuracy == first.accuracy:
        half = (first.accuracy + last.accuracy) / 2
        reached = next((s.name for s in result.steps if s.accuracy >= half), "")
        way = f"; half of the way is reached after {reached}" if last.accuracy > first.accuracy else ""
        says.append(
            f"Read before the first block the head answers {percent(first.accuracy)} right, after the last "
            f"{percent(last.accuracy)}{way}."
        )
    says = says or [f"{len(result.steps) - 1} blocks; nothing is known of them yet."]
    return Reading(tuple(says), _verdict(result))


def _pointing(result: Refinement) -> tuple[float, float, int] | None:
    """The mean cosine of blocks that open no stage, its standard error over blocks, and how many are above 0."""
    found = [s.cosine for s in result.steps if s.count and not s.opens]
    if not found:
        return None
    mean = fmean(found)
    error = sqrt(sum((c - mean) ** 2 for c in found) / max(len(found) - 1, 1) / len(found))
    return mean, error, sum(c > 0 for c in found)


def _verdict(result: Refinement) -> str:
    """The mean cosine is to lie above 0 by two standard errors; below 0 by as much speaks against it."""
    pointing = _pointing(result)
    if result.plain or not pointing:
        return "open"
    mean, error, _ = pointing
    return "agrees" if mean > 2 * error else "disagrees" if mean < -2 * error else "open"


def _fit(pace: Pace, seconds: float) -> RefinementSettings | None:
    units = len(units_of(pace.subject))
    if not units:
        return None
    count = int(seconds / pace.forward_s / (2 + 0.6 * units + 2))  # passes over all, and gradients of four in ten
    count = min(count, 500, len(pace.subject.seen))
    return RefinementSettings(count, max(1, count * 4 // 10)) if count >= min(20, len(pace.subject.seen)) else None


EXPERIMENT = Experiment(
    name="refinement",
    title="The answer forming, block by block",
    paper="Jastrzebski et al. 2018, arXiv:1710.04773",
    claim="Each residual block moves the representation along the negative gradient of the loss, and so refines the "
    "answer.",
    settings=RefinementSettings(),
    result=Refinement,
    run=refinement,
    draw=_draw,
    read=_read,
    fit=_fit,
)

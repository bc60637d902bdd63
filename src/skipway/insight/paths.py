"""Paths: a residual network as a sum over paths, each of which takes the branch or the skip at every block.

Veit et al. 2016 (Residual Networks Behave Like Ensembles of Relatively Shallow Networks, arXiv:1605.06431, section 4
and fig. 6): of n blocks, 2^n paths; their lengths are binomial; and the gradient comes through the short ones.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from skipway.insight.backward import Backward, one_path, sums_by_length
from skipway.insight.depth import units_of
from skipway.insight.experiment import Experiment, Pace, Reading
from skipway.insight.probe import Probe
from skipway.insight.style import QUIET_GREY, RESIDUAL, THIRD, figure
from skipway.insight.subject import Subject
from skipway.insight.units import Unit
from skipway.insight.watch import QUIET, Watch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PIXELS = 32 * 128**2  # of all images together: what a network computes of them is kept for going back
IDLE = 0.05  # branches that a path passes on average, below which branches do next to nothing


@dataclass(frozen=True)
class PathsSettings:
    """How many paths are sampled.

    Args:
        num_images: train images whose loss is taken.
        num_draws: paths of each length.
        seed: of the paths.
    """

    num_images: int = 32
    num_draws: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Length:
    """All paths of one length.

    Args:
        length: in branches passed.
        portion: of all paths, in [0, 1]: C(n, k) / 2^n.
        together: the norm of the sum of their gradients at the image, over that of the whole gradient; exact.
        along: what they contribute to the whole gradient, in its direction; over all lengths the sum is 1; exact.
        single: mean norm of one path's gradient at the image; sampled, as in the paper; NaN while it is not yet.
    """

    length: int
    portion: float
    together: float
    along: float
    single: float = float("nan")


@dataclass(frozen=True)
class Paths:
    """Paths by their length.

    Args:
        num_units: residual additions.
        num_skips: of them with a skip; there are 2 to the power of it paths.
        num_images: whose gradients were taken; numbers are means over them.
        lengths: from the shortest.
        residue: how far the sum over all paths is from the gradient itself, relative to it: rounding.
    """

    num_units: int
    num_skips: int
    num_images: int
    lengths: tuple[Length, ...]
    residue: float

    @property
    def shares(self) -> tuple[float, ...]:
        """Each length's share of the gradient, as in the paper's fig. 6c: paths x mean norm of one, summing to 1."""
        amounts = [x.portion * x.single for x in self.lengths]
        total = sum(a for a in amounts if a == a)
        return tuple(a / total if total > 0 else float("nan") for a in amounts)


def path_lengths(units: Sequence[Unit]) -> dict[int, int]:
    """How many paths there are of each length; a plain unit is on every path. C(n, k) of length k where all n skip."""
    skips = sum(u.skip != "none" for u in units)
    return {len(units) - skips + k: comb(skips, k) for k in range(skips + 1)}


def paths(subject: Subject, settings: PathsSettings = PathsSettings(), *, watch: Watch = QUIET) -> Paths:
    """How many paths there are of each length, and how much of the gradient at the image comes through them.

    The network computes once, with every branch in place; going back, a path passes the branch of some units and
    the skip of the others (projections count as skips). As in the paper, k units are drawn for a path of length k and
    the norms of such paths are averaged. Beside it, what the paper does not have: going back is linear, so that the
    gradients of all C(n, k) paths of length k are added up exactly, block by block, without going along each.

    Args:
        subject: the network; its training loss is taken.
        settings: how many paths are sampled.
        watch: told of each step; gets partial results after each length.

    Raises:
        InputError: no block of the network is known.
    """
    images = subject.train.first(settings.num_images)
    with Probe(subject.network, images.inputs) as probe:
        back = Backward(probe, images.inputs, lambda logits: subject.loss(logits, images.labels))
        counts = path_lengths(probe.units)
        sums = sums_by_length(back, watch=watch.part(0, 0.3))
        whole = back.whole
        scale = _norms(whole).clamp_min(torch.finfo(torch.float32).tiny)
        paths = sum(counts.values())
        lengths = tuple(
            Length(
                length,
                counts[length] / paths,
                (_norms(total) / scale).mean().item(),
                ((total * whole).flatten(1).sum(1) / scale**2).mean().item(),
            )
            for length, total in sums.items()
        )
        residue = (_norms(torch.stack([*sums.values()]).sum(0) - whole) / scale).mean().item()
        skips = sum(u.skip != "none" for u in probe.units)
        result = Paths(len(probe.units), skips, len(images), lengths, residue)
        watch.partial(result)
        for number, each in enumerate(lengths):
            if watch.late:
                break
            part = watch.part(0.3 + 0.7 * number / len(lengths), 0.3 + 0.7 * (number + 1) / len(lengths))
            single = _sampled(back, each.length, settings, part)
            result = replace(
                result, lengths=(*result.lengths[:number], replace(each, single=single), *lengths[number + 1 :])
            )
            watch.partial(result)
    watch.tell(1.0)
    return result


def _sampled(back: Backward, length: int, settings: PathsSettings, watch: Watch) -> float:
    """Mean norm of the gradient along one path of that length, over drawn paths and images."""
    always = [i for i, (unit, _) in enumerate(back.units) if unit.skip == "none"]
    free = [i for i, (unit, _) in enumerate(back.units) if unit.skip != "none"]
    draws = random.Random(f"{settings.seed}/paths/{length}")
    count = min(settings.num_draws, comb(len(free), length - len(always)))
    total = 0.0
    for number in range(count):
        taken = frozenset([*always, *draws.sample(free, length - len(always))])
        total += _norms(one_path(back, taken)).mean().item()
        watch.tell((number + 1) / count)
    return total / count


def _norms(x: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return x.flatten(1).norm(dim=1)


def _draw(result: Paths) -> "Figure":
    from matplotlib.ticker import MaxNLocator

    made, (counts, single, shares) = figure(3, width=13.0, height=3.9)
    lengths = [x.length for x in result.lengths]
    counts.bar(lengths, [x.portion for x in result.lengths], color=QUIET_GREY)
    counts.set_title("1 path" if not result.num_skips else f"{_number(result.num_skips)} paths by their length")
    counts.set_ylabel("portion of the paths", fontsize=8)
    sizes = [x.single for x in result.lengths]
    single.plot(lengths, sizes, "o-", color=RESIDUAL, ms=3.5, lw=1.2)
    if any(s > 0 for s in sizes):
        single.set_yscale("log")
        single.tick_params(which="both", labelsize=8)
    single.set_title("Gradient through one path, sampled")
    single.set_ylabel("mean norm at the image", fontsize=8)
    shares.bar(lengths, [0.0 if s != s else s for s in result.shares], color=RESIDUAL, label="paths x norm of one")
    together = sum(x.together for x in result.lengths)
    exact = [x.together / together if together > 0 else 0.0 for x in result.lengths]
    shares.plot(lengths, exact, "o-", color=THIRD, ms=3, lw=1.2, label="norm of their sum, exact")
    shares.plot(lengths, [x.portion for x in result.lengths], ":", color=QUIET_GREY, lw=1.6, label="share of the paths")
    shares.set_title("Each length's share of the gradient")
    shares.set_ylabel("share", fontsize=8)
    shares.legend(fontsize=7, frameon=False)
    for axes in (counts, single, shares):
        axes.set_xlabel("length: branches passed", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(-0.7, result.num_units + 0.7)
    return made


def _number(skips: int) -> str:
    return f"{2**skips:,}" if skips < 30 else f"2^{skips}"


def _mean(lengths: Sequence[Length], weights: Sequence[float]) -> float:
    pairs = [(x.length, w) for x, w in zip(lengths, weights, strict=True) if w == w]
    total = sum(w for _, w in pairs)
    return sum(n * w for n, w in pairs) / total if total > 0 else float("nan")


def _read(result: Paths) -> Reading:
    if not result.num_skips:
        return Reading((f"Without skips there is 1 path, through all {result.num_units} branches.",), "open")
    by_count = _mean(result.lengths, [x.portion for x in result.lengths])
    says = [
        f"{result.num_skips} skips make {_number(result.num_skips)} paths, which pass {by_count:.1f} of "
        f"{result.num_units} branches on average."
    ]
    by_gradient = _mean(result.lengths, result.shares)
    if by_gradient == by_gradient:
        says.append(
            f"Weighted with the gradient that a path carries, they pass {by_gradient:.1f}; nine tenths of the gradient "
            f"come through paths of at most {_within(result, 0.9)} branches."
        )
    if by_gradient < IDLE:
        says.append("Hardly any gradient passes a branch: the branches are as good as zero.")
    together = _mean(result.lengths, [x.together for x in result.lengths])
    if together == together:
        amount = sum(x.together for x in result.lengths)
        says.append(
            f"Paths of one length added up exactly, their gradients have norms of {amount:.1f} times the whole "
            f"gradient's, all lengths together; so weighted, paths pass {together:.1f} branches."
        )
    return Reading(tuple(says), _verdict(by_count, by_gradient))


def _within(result: Paths, share: float) -> int:
    """The shortest length up to which paths carry that share of the gradient."""
    total = 0.0
    for each, part in zip(result.lengths, result.shares, strict=True):
        total += part if part == part else 0.0
        if total >= share:
            return each.length
    return result.lengths[-1].length


def _verdict(by_count: float, by_gradient: float) -> str:
    """Gradient-weighted paths are to be shorter than paths at large by a tenth or more.

    Where hardly one passes a branch (branches begin at zero, say), nothing is shown.
    """
    if by_gradient != by_gradient or by_gradient < IDLE:
        return "open"
    return "agrees" if by_gradient <= 0.9 * by_count else "disagrees" if by_gradient > by_count else "open"


def _fit(pace: Pace, seconds: float) -> PathsSettings | None:
    units = len(units_of(pace.subject))
    if not units:
        return None
    pixels = pace.subject.train.inputs[0, 0].numel()
    for images, draws in ((32, 5), (16, 3), (8, 2)):
        if images * pixels > MOST_PIXELS and images > 8:
            continue
        backward = units + (units + 1) * draws  # half of the units for each path and for each length, back only
        if backward * images * pace.forward_s * 2 <= seconds:
            return PathsSettings(images, draws)
    return None


EXPERIMENT = Experiment(
    name="paths",
    title="The paths of the gradient",
    paper="Veit et al. 2016, arXiv:1605.06431, fig. 6",
    claim="The gradient comes through short paths: through fewer branches than most paths pass.",
    settings=PathsSettings(),
    result=Paths,
    run=paths,
    draw=_draw,
    read=_read,
    fit=_fit,
)

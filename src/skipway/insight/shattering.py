"""Shattered gradients: how alike the gradients at neighbouring points of a line between two images are, by depth.

Fresh networks are compared, residual and plain, with and without normalisation, at one block a stage, at the network's
own depth, and deeper; and the network as it is. White noise has no memory from point to point, brown noise a long one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.insight.counterparts import PLAIN, RESIDUAL, Variant, variants
from skipway.insight.experiment import Experiment, Pace, Reading
from skipway.insight.lines import autocorrelation, directional, likeness, line_gradients, noise_autocorrelation
from skipway.insight.shattering_picture import Curve, Noise, draw
from skipway.insight.subject import Subject
from skipway.insight.watch import QUIET, Watch
from skipway.network_spec import NetworkSpec
from skipway.nn.network import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOW = "this network"
SETTLE = 128  # training images that batch norms of fresh networks take their statistics from
MORE = 0.05  # correlation that counts as more


@dataclass(frozen=True)
class ShatteringSettings:
    """What is asked.

    Args:
        points: of a line.
        lines: between two images each, each through a network of its own draw.
        deeper: times the network's own number of blocks a stage, of the deepest ones; 1: none deeper.
        seed: of weights and lines.
    """

    points: int = 96
    lines: int = 2
    deeper: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Shattering:
    """Every curve, and noise for comparison.

    Args:
        curves: with normalisation first, shallow networks first; "this network" last.
        noise: white and brown noise of as many points.
        own_blocks: the network's own number of blocks; 0: another's.
        points, lines: as asked.
    """

    curves: tuple[Curve, ...]
    noise: Noise
    own_blocks: int
    points: int
    lines: int


def shattering(
    subject: Subject, settings: ShatteringSettings = ShatteringSettings(), *, watch: Watch = QUIET
) -> Shattering:
    """Autocorrelation of the gradient along a line through input space.

    Balduzzi et al. 2017 (arXiv:1702.08591, fig. 1 and 2): for a scalar input and fully connected networks, gradients of
    plain networks turn from brown into white noise with depth, those of residual ones less so. Where we differ: the
    line runs from one image to another, x(t) = (1 - t) a + t b, through the network's own architecture; the scalar is
    the sum of the logits; batch norms of fresh networks normalise by statistics of training images, not of the line.

    Args:
        subject: the network, its images. Networks of others are measured as they are, without a twin.
        settings: points, lines, depths.
        watch: told of each batch of points.

    Returns:
        By lag: the autocorrelation of the derivative by t, the mean cosine of gradient vectors; both means over lines.

    Raises:
        InputError: fewer than two images; settings out of bounds.
    """
    if len(subject.seen) < 2 or len(subject.train) < 2:
        raise InputError("a line wants two images to run between, and norms two training images")
    if settings.points < 8 or settings.lines < 1 or settings.deeper < 1:
        raise InputError(f"shattering wants points of at least 8, lines and deeper of at least 1, got {settings}")
    own = subject.own
    noise = Noise(*(noise_autocorrelation(settings.points, brown=brown) for brown in (False, True)))
    result = Shattering((), noise, own.depth if own else 0, settings.points, settings.lines)
    plans: list[tuple[Variant | None, int]] = []
    for spec in _depths(own, settings.deeper) if own else ():
        plans += [(each, spec.depth) for each in variants(spec)]
    plans.append((None, result.own_blocks))
    work = [blocks + 1 for _, blocks in plans]
    for number, (variant, blocks) in enumerate(plans):
        part = watch.part(sum(work[:number]) / sum(work), sum(work[: number + 1]) / sum(work))
        curve = _curve(subject, variant, blocks, settings, part)
        result = replace(result, curves=(*result.curves, curve))
        watch.partial(result)
        if watch.late:
            break
    return result


def _depths(own: NetworkSpec, deeper: int) -> list[NetworkSpec]:
    """The network with one block a stage, as it is, and deeper; each once."""
    factors = (0, 1, deeper)
    specs = [replace(own, stages=tuple(replace(s, depth=max(1, s.depth * f)) for s in own.stages)) for f in factors]
    return list({spec.depth: spec for spec in specs}.values())


def _curve(subject: Subject, variant: Variant | None, blocks: int, settings: ShatteringSettings, watch: Watch) -> Curve:
    """Of fresh networks of a variant; of the subject's own network where that is None."""
    images = subject.seen.inputs
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(images), generator=generator)
    alike, cosines, first = [], [], ()
    for line in range(settings.lines):
        a, b = (images[order[i % len(order)]] for i in (2 * line, 2 * line + 1))
        part = watch.part(line / settings.lines, (line + 1) / settings.lines)
        network = subject.network if variant is None else _fresh(subject, variant, settings.seed + line)
        found = line_gradients(network, a, b, settings.points, watch=part)
        series = directional(found, b - a)
        alike.append(autocorrelation(series))
        cosines.append(likeness(found))
        if line == 0:
            first = _scaled(series)
        if watch.late:
            break
    own = subject.own
    name, norm = (variant.name, variant.norm) if variant else (NOW, own.norm if own else "its own")
    return Curve(name, norm, blocks, _mean(alike), _mean(cosines), first)


def _fresh(subject: Subject, variant: Variant, seed: int) -> nn.Module:
    """A network of fresh weights in evaluation mode, whose batch norms know the training images."""
    with torch.random.fork_rng(devices=[]):
        network = build(variant.spec, seed=seed).to(memory_format=torch.channels_last)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # statistics are those of the one batch that follows
        with torch.no_grad():
            network(subject.train.inputs[:SETTLE])
    return network.eval()


def _scaled(series: Tensor) -> tuple[float, ...]:
    """By its largest value, for the eye; () where it is zero or not finite."""
    most = float(series.abs().max())
    return tuple((series / most).tolist()) if 0 < most < math.inf else ()


def _mean(rows: Sequence[Tensor]) -> tuple[float, ...]:
    """The mean of the rows that are numbers, by lag."""
    return tuple(torch.stack(list(rows)).nanmean(0).tolist())


def _read(result: Shattering) -> Reading:
    white, brown = result.noise.white[1], result.noise.brown[1]
    sentences = [
        f"From one of {result.points} points to the next, the autocorrelation of gradients is {white:.2f} for white "
        f"noise and {brown:.2f} for brown noise."
    ]
    fresh = [c for c in result.curves if c.name != NOW]
    for norm in dict.fromkeys(c.norm for c in fresh):
        for name in (RESIDUAL, PLAIN):
            told = [f"{c.next:.2f} at {c.blocks}" for c in fresh if (c.name, c.norm) == (name, norm)]
            sentences.append(f"{name.capitalize()}, {_norm(norm)}, by number of blocks: {', '.join(told)}.")
    sentences += [f"The network as it is: {c.next:.2f}." for c in result.curves if c.name == NOW]
    verdict, why = _judged(fresh)
    return Reading((*sentences, why), verdict)


def _norm(norm: str) -> str:
    return "no norm" if norm == "none" else f"{norm} norm"


def _judged(fresh: Sequence[Curve]) -> tuple[str, str]:
    deepest = max((c.blocks for c in fresh), default=0)
    gaps = []
    for norm in dict.fromkeys(c.norm for c in fresh):
        at = {c.name: c.next for c in fresh if c.norm == norm and c.blocks == deepest}
        if set(at) == {RESIDUAL, PLAIN}:
            gaps.append(at[RESIDUAL] - at[PLAIN])
    rule = (
        f"Rule: it agrees if at {deepest} blocks residual keeps at least {MORE} more than plain, with norm and without."
    )
    if not gaps or any(math.isnan(gap) for gap in gaps):
        return "open", "There is no plain twin beside a residual network to judge the claim by."
    if all(gap >= MORE for gap in gaps):
        return "agrees", rule
    return ("disagrees" if all(gap <= -MORE for gap in gaps) else "open"), rule


def _fit(pace: Pace, seconds: float) -> ShatteringSettings | None:
    wanted = ShatteringSettings()
    for points, lines, deeper in ((96, 2, 3), (96, 2, 2), (96, 2, 1), (48, 1, 1)):
        networks = 4 * (1.3 + (deeper if deeper > 1 else 0)) + 1 if pace.subject.own is not None else 1
        if networks * points * lines * pace.step_s <= seconds:
            return replace(wanted, points=points, lines=lines, deeper=deeper) if len(pace.subject.seen) > 1 else None
    return None


def _draw(result: Shattering) -> "Figure":
    return draw(result.curves, result.noise, result.own_blocks)


EXPERIMENT = Experiment(
    name="shattering",
    title="How gradients shatter with depth",
    paper="Balduzzi et al. 2017, arXiv:1702.08591",
    claim="With depth, gradients of plain networks come to resemble white noise; those of residual networks far less.",
    settings=ShatteringSettings(),
    result=Shattering,
    run=shattering,
    draw=_draw,
    read=_read,
    fit=_fit,
)

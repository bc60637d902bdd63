"""Responses: how strongly each layer answers, and what each branch adds to its shortcut, in depth.

He et al. 2015 (Deep Residual Learning for Image Recognition, arXiv:1512.03385, fig. 7) plot the standard deviation of
each layer's response; De and Smith 2020 (Batch Normalization Biases Residual Blocks Towards the Identity Function in
Deep Networks, arXiv:2002.10444, section 3) show why: at initialisation a normalised branch has a variance of about 1
while the shortcut's grows with each block, so that the branch of the l-th is 1 / (l + 1) of the sum. Without
normalisation it stays at a half.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from skipway.insight.depth import depth_axis, percent, units_of
from skipway.insight.experiment import Experiment, Pace, Reading
from skipway.insight.strengths import Layer, Share, measured
from skipway.insight.style import FOURTH, PLAIN, QUIET_GREY, RESIDUAL, THIRD, figure
from skipway.insight.subject import Subject
from skipway.insight.watch import QUIET, Watch
from skipway.nn.foreign import build_any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR = 30  # a picture's scale is logarithmic where the largest is so many times the smallest


@dataclass(frozen=True)
class ResponsesSettings:
    """How much is looked at.

    Args:
        num_images: validation images.
        seed: of the fresh weights.
    """

    num_images: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Responses:
    """Responses in depth.

    Args:
        plain: whether the network has no skips.
        num_images: that were seen.
        trained: whether its weights come from training.
        layers: each norm's response, as the network is.
        units: each addition, as the network is.
        fresh: each addition with fresh weights; batch norms use each batch's own statistics, as in training.
        bare: the same without normalisation; () where the network is another's, or has none anyway.
    """

    plain: bool
    num_images: int
    trained: bool
    layers: tuple[Layer, ...] = ()
    units: tuple[Share, ...] = ()
    fresh: tuple[Share, ...] = ()
    bare: tuple[Share, ...] = ()


def responses(
    subject: Subject, settings: ResponsesSettings = ResponsesSettings(), *, watch: Watch = QUIET
) -> Responses:
    """Standard deviations of responses, layer by layer and at each addition; as it is, fresh, and without norms.

    He et al. look at each 3x3 convolution after its norm and before activation or addition. In a network of ours that
    is each norm of a branch (in pre-activation order the norm comes before its convolution); in another's it is each
    batch, group or layer norm within a block that does not hold its activation too. De and Smith take variances over
    images and draws of the weights, channel by channel; here one draw, and all channels and places together.

    Args:
        subject: the network with its images.
        settings: how much is looked at.
        watch: told of each batch; gets partial results after each of the three networks.

    Raises:
        InputError: no block of the network is known.
    """
    images = subject.seen.first(settings.num_images)
    layers, units = measured(subject.network, images, watch=watch.part(0, 1 / 3))
    plain = all(u.shortcut != u.shortcut for u in units)
    result = Responses(plain, len(images), subject.trained, layers, units)
    watch.partial(result)
    if len(images) > 1 and not watch.late:  # of one image there are no batch statistics
        fresh = subject.fresh(settings.seed)
        result = replace(
            result, fresh=measured(fresh, images, batch_statistics=True, watch=watch.part(1 / 3, 2 / 3))[1]
        )
        watch.partial(result)
    own = subject.own
    if own is not None and own.norm != "none" and not watch.late:
        size = images.inputs.shape[-1]
        bare = build_any(replace(own, norm="none"), image_size=size, seed=settings.seed)
        bare = bare.to(memory_format=torch.channels_last)
        result = replace(result, bare=measured(bare, images, watch=watch.part(2 / 3, 1))[1])
    watch.tell(1.0)
    return result


def _draw(result: Responses) -> "Figure":
    made, panels = figure(2 if result.plain else 3, width=9.0 if result.plain else 13.0, height=3.9)
    names, opens = [u.name for u in result.units], [u.opens for u in result.units]
    layers, parts = panels[:2]
    colour = PLAIN if result.plain else RESIDUAL
    layers.plot(*_along(result), ".-", color=colour, lw=1, label="a layer")
    layers.set_title("Responses of the layers")
    parts.plot([u.branch for u in result.units], "o-", color=colour, ms=3.5, lw=1.2, label="branch F")
    if not result.plain:
        parts.plot([u.shortcut for u in result.units], "s-", color=THIRD, ms=3.5, lw=1.2, label="shortcut S")
        _draw_shares(panels[2], result)
    parts.plot([u.output for u in result.units], "--", color=QUIET_GREY, lw=1.2, label="output")
    parts.set_title("Branch, output" if result.plain else "Branch, shortcut, output")
    _deviations(layers, [layer.std for layer in result.layers])
    _deviations(parts, [value for u in result.units for value in (u.branch, u.output)])
    for axes in panels:
        depth_axis(axes, names, opens)
        axes.legend(fontsize=7, frameon=False)
    return made


def _deviations(axes: "Axes", values: Sequence[float]) -> None:
    axes.set_ylabel("standard deviation", fontsize=8)
    if values and min(values) > 0 and max(values) > FAR * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, None)


def _draw_shares(axes: "Axes", result: Responses) -> None:
    axes.set(title="The branch's share of the sum", ylim=(-0.02, 1.02))
    axes.set_ylabel("var F / (var F + var S)", fontsize=8)
    word = "as trained" if result.trained else "as it is"
    axes.plot([u.share for u in result.units], "o-", color=RESIDUAL, ms=3.5, lw=1.4, label=word)
    if result.fresh:
        axes.plot([u.share for u in result.fresh], "--", color=FOURTH, lw=1.4, label="fresh weights")
    if result.bare:
        axes.plot([u.share for u in result.bare], ":", color=PLAIN, lw=1.6, label="fresh, without norms")
    first = next((i for i, u in enumerate(result.units) if u.opens and i), len(result.units))
    if result.bare and first > 1:
        curve = [1 / (i + 2) for i in range(first)]
        axes.plot(curve, color=QUIET_GREY, lw=1, label="1 / (l + 1)", zorder=1)


def _along(result: Responses) -> tuple[list[float], list[float]]:
    """Where along the axis of units each layer lies, and its response: a block's layers side by side."""
    places: list[float] = []
    for layer in result.layers:
        mates = [other.name for other in result.layers if other.block == layer.block]
        units = [i for i, u in enumerate(result.units) if u.name == layer.block or u.name.startswith(f"{layer.block}.")]
        width = len(units) / len(mates)
        places.append(units[0] - 0.5 + width * (mates.index(layer.name) + 0.5))
    return places, [layer.std for layer in result.layers]


def _read(result: Responses) -> Reading:
    says = []
    if result.layers:
        stds = [layer.std for layer in result.layers]
        low, high = (choose(result.layers, key=lambda x: x.std) for choose in (min, max))
        says.append(
            f"The {len(stds)} layers answer with a standard deviation of {fmean(stds):.2f} on average over "
            f"{result.num_images:,} images, from {low.std:.2f} ({low.name}) to {high.std:.2f} ({high.name})."
        )
    if result.plain:
        says.append(f"There are no skips, so each of the {len(result.units)} branches is all of its block.")
        return Reading(tuple(says), "open")
    named = (("", result.units), (" with fresh weights", result.fresh), (" with fresh weights, no norms", result.bare))
    for words, units in named:
        ends = _ends(units)
        if ends:
            says.append(
                f"The branch is {percent(ends[0])} of the sum in the first blocks and {percent(ends[1])} in the last"
                f"{words}."
            )
    return Reading(tuple(says), _verdict(result))


def _ends(units: Sequence[Share]) -> tuple[float, float] | None:
    """The mean share in the first and in the last third of the blocks that open no stage; None where there is none."""
    shares = [u.share for u in units if not u.opens and u.share == u.share]
    if not shares:
        return None
    third = max(1, len(shares) // 3)
    return fmean(shares[:third]), fmean(shares[-third:])


def _verdict(result: Responses) -> str:
    """With norms the last blocks' branches are to have at most two thirds of the share that they have without."""
    normed, bare = _ends(result.fresh), _ends(result.bare)
    if not normed or not bare or max(normed[1], bare[1]) == 0:
        return "open"
    return "agrees" if normed[1] <= bare[1] * 2 / 3 else "open" if normed[1] < bare[1] else "disagrees"


def _fit(pace: Pace, seconds: float) -> ResponsesSettings | None:
    if not units_of(pace.subject):
        return None
    count = min(int(seconds / (6 * pace.forward_s)), 500, len(pace.subject.seen))  # three networks, moments of all
    return ResponsesSettings(count) if count >= min(20, len(pace.subject.seen)) else None


EXPERIMENT = Experiment(
    name="responses",
    title="How strongly layers answer",
    paper="He et al. 2015, arXiv:1512.03385, fig. 7; De and Smith 2020, arXiv:2002.10444",
    claim="At initialisation normalisation makes each deeper branch a smaller part of its sum: blocks start near the "
    "identity.",
    settings=ResponsesSettings(),
    result=Responses,
    run=responses,
    draw=_draw,
    read=_read,
    fit=_fit,
)

"""What a landscape is as plain data, and its picture: of one network, or of two on one scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skipway.figures import short
from skipway.insight.style import FOURTH, MAP, PLAIN, QUIET_GREY, RESIDUAL, figure
from skipway.insight.surface import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DECADES = 3  # of the loss that are told apart


@dataclass(frozen=True)
class Landscape:
    """The loss around a network's weights.

    Args:
        name: of the run or network.
        plane: "random" or "path".
        span: how far it goes from the weights, in lengths of the directions.
        images: how many training images the loss is of.
        skips: whether the network has any.
        chance: the loss of guessing evenly, in nats.
        lengths: Euclidean lengths of the two directions, in the weights' units.
        line: places along the first direction; () until they are measured.
        line_losses, line_accuracies: there; in nats, NaN where not finite, and in [0, 1].
        grid: places along either direction of the plane; () until it is measured.
        losses, accuracies: rows by the second direction, rising.
        path: states that training went through.
    """

    name: str
    plane: str
    span: float
    images: int
    skips: bool
    chance: float
    lengths: tuple[float, float] = (0.0, 0.0)
    line: tuple[float, ...] = ()
    line_losses: tuple[float, ...] = ()
    line_accuracies: tuple[float, ...] = ()
    grid: tuple[float, ...] = ()
    losses: tuple[tuple[float, ...], ...] = ()
    accuracies: tuple[tuple[float, ...], ...] = ()
    path: tuple[Step, ...] = ()


def draw(results: Sequence[Landscape]) -> "Figure":
    """Surfaces side by side on one scale of colours, then loss and accuracy along their lines.

    Args:
        results: of one network, or of several to compare: a residual one and its plain twin.
    """
    made, axes = figure(len(results) + 2, 1, width=3.1 * (len(results) + 2) + 0.6, height=3.1)
    low, high = _limits(results)
    for place, result in zip(axes, results, strict=False):
        _surface(place, result, low, high)
    for place, title in zip(axes[-2:], ("Loss along the line", "Accuracy along the line"), strict=True):
        for result in results:
            values = result.line_losses if place is axes[-2] else result.line_accuracies
            colour = RESIDUAL if result.skips else PLAIN
            place.plot(result.line, values, color=colour, linewidth=1.5, label=short(result.name, 20))
        place.set_title(title, fontsize=9)
        place.set_xlabel("first direction", fontsize=8)
    axes[-2].axhline(results[0].chance, linestyle=":", color=QUIET_GREY, linewidth=1.2)
    place = (1, results[0].chance)
    axes[-2].annotate("guessing", place, xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom")
    axes[-2].set_yscale("log")
    axes[-2].set_ylim(low * 0.8, high * 1.2)
    axes[-1].set_ylim(-0.02, 1.02)
    if len(results) > 1:
        axes[-1].legend(fontsize=7, frameon=False)
    return made


def _limits(results: Sequence[Landscape]) -> tuple[float, float]:
    """Of all losses, the higher ones cut off."""
    values = [v for r in results for row in (*r.losses, r.line_losses) for v in row if math.isfinite(v) and v > 0]
    low = max(min(values, default=1.0), 1e-6)
    return low, max(min(max(values, default=10.0), low * 10**DECADES), low * 1.1)


def _surface(place: "Axes", result: Landscape, low: float, high: float) -> None:
    import numpy as np
    from matplotlib.colors import LogNorm

    place.set_title(short(f"{result.name}, {result.plane} plane", 40), fontsize=9)
    place.set_xlabel("first direction", fontsize=8)
    place.set_ylabel("second direction", fontsize=8)
    place.set_aspect("equal")
    if result.grid:
        values = np.clip(np.nan_to_num(np.array(result.losses), nan=high), low, high)
        levels = np.geomspace(low, high, 15)
        levels[0], levels[-1] = low * 0.999, high * 1.001
        drawn = place.contourf(result.grid, result.grid, values, levels=levels, cmap=MAP, norm=LogNorm(low, high))
        place.contour(result.grid, result.grid, values, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
        bar = place.figure.colorbar(drawn, ax=place, shrink=0.8, format="%.3g")
        bar.ax.tick_params(labelsize=7)
        bar.set_label("loss, nats", fontsize=7)
    if result.path:
        xs, ys = ([*(getattr(step, axis) for step in result.path), 0.0] for axis in ("x", "y"))
        place.plot(xs, ys, color=FOURTH, linewidth=1.2, marker="o", markersize=3)
    place.plot(0, 0, marker="*", markersize=9, color="white", markeredgecolor="black")

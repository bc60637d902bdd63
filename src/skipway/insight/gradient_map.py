"""A network's gradients by depth and time, and their picture: lines at the start and at the end, a map a network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skipway.figures import short
from skipway.insight.style import MAP, PLAIN, RESIDUAL, THIRD, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Course:
    """One network's gradients while it learns; NaN where a number is not finite, and from there on no more rows.

    Args:
        name: "residual", "plain" or "this network", whose first row is of its present weights.
        norm: of the network: "batch", "none"; "its own" where it is not skipway's.
        layers: names of its weights, from the image on, without those of shortcuts.
        weights: a row a step, before its update: norm of the mean loss's gradient by each layer's weight.
        units: names of its residual additions.
        outputs: likewise, by each unit's output over the batch.
        losses: of each step, in nats.
    """

    name: str
    norm: str
    layers: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    units: tuple[str, ...]
    outputs: tuple[tuple[float, ...], ...]
    losses: tuple[float, ...]

    @property
    def title(self) -> str:
        """In words."""
        norm = {"none": "no norm", "its own": ""}.get(self.norm, f"{self.norm} norm")
        return f"{self.name}, {norm}" if norm else self.name

    @property
    def diverged(self) -> bool:
        """Whether its numbers ended."""
        return bool(self.losses) and not math.isfinite(self.losses[-1])


def draw(courses: Sequence[Course]) -> "Figure":
    """Lines above, maps below."""
    maps = [c for c in courses if len(c.weights) > 1]
    rows = 1 + (len(maps) + 1) // 2
    made, axes = figure(2, rows, width=8.0, height=2.7 * rows)
    for course in courses:
        whole = [row for row in course.outputs if all(map(math.isfinite, row))]
        if whole and (len(course.outputs) > 1 or len(courses) == 1):  # present weights are no start
            _line(axes[0], course, whole[0])
        if whole:
            _line(axes[1], course, whole[-1])
    for place, title in zip(axes, ("at the start", "at the end"), strict=False):
        place.set_title(f"By each block's output, {title}", fontsize=9)
        place.set_xlabel("block", fontsize=8)
        place.set_yscale("log")
    axes[0].set_ylabel("norm of the gradient", fontsize=8)
    bounds = [place.get_ylim() for place in axes[:2]]
    for place in axes[:2]:
        place.set_ylim(min(low for low, _ in bounds), max(high for _, high in bounds))
    axes[1].legend(fontsize=7, frameon=False)
    limits = _limits([v for c in maps for row in c.weights for v in row])
    for place, course in zip(axes[2:], maps, strict=False):
        _map(place, course, limits)
    for place in axes[2 + len(maps) :]:
        place.set_visible(False)
    return made


def _line(place: "Axes", course: Course, row: Sequence[float]) -> None:
    colour = {"residual": RESIDUAL, "plain": PLAIN}.get(course.name, THIRD)
    style = "--" if course.norm == "none" else "-"
    shown = [value if value > 0 else math.nan for value in row]
    place.plot(range(1, len(row) + 1), shown, style, color=colour, label=course.title, linewidth=1.5)


def _limits(values: list[float]) -> tuple[float, float]:
    """The range of colours: nearly all of the values, not the few that run away."""
    good = sorted(v for v in values if math.isfinite(v) and v > 0) or [1.0]
    low, high = good[len(good) // 50], good[-1 - len(good) // 50]
    return max(low, high * 1e-6), max(high, low * 1.01)


def _map(place: "Axes", course: Course, limits: tuple[float, float]) -> None:
    """Depth downwards, steps to the right; grey where a number is zero or not finite."""
    import matplotlib
    import numpy as np
    from matplotlib.colors import LogNorm

    values = np.ma.masked_invalid(np.array(course.weights, dtype=float).T)  # (layers, steps)
    values = np.ma.masked_less_equal(values, 0)
    colours = matplotlib.colormaps[MAP].with_extremes(bad="0.8")
    drawn = place.imshow(values, aspect="auto", cmap=colours, norm=LogNorm(*limits), interpolation="nearest")
    place.set_title(f"By each layer's weight: {course.title}", fontsize=9)
    place.set_xlabel("step", fontsize=8)
    last = len(course.layers) - 1
    ticks = sorted({round(last * i / 5) for i in range(6)})
    place.set_yticks(ticks, [short(course.layers[i], 19) for i in ticks], fontsize=7)
    made = place.figure.colorbar(drawn, ax=place)
    made.ax.tick_params(labelsize=7)
    made.set_label("norm of the gradient", fontsize=7)

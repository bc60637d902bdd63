"""The curves of shattered gradients and their picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skipway.insight.style import PLAIN, QUIET_GREY, RESIDUAL, THIRD, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """How alike gradients along lines are.

    Args:
        name: "residual", "plain" or "this network".
        norm: "batch", "group", "none"; "its own" where the network is not skipway's.
        blocks: how many the network has; 0 where it is not skipway's.
        autocorrelation: of the derivative along the line, by lag in points, from lag 0.
        cosine: mean cosine of gradient vectors, by lag likewise.
        gradient: the derivative along the first line, its largest value 1 or -1.
    """

    name: str
    norm: str
    blocks: int
    autocorrelation: tuple[float, ...]
    cosine: tuple[float, ...]
    gradient: tuple[float, ...]

    @property
    def next(self) -> float:
        """From one point to the next."""
        return self.autocorrelation[1]

    @property
    def title(self) -> str:
        """In words."""
        norm = {"none": "no norm", "its own": ""}.get(self.norm, f"{self.norm} norm")
        return f"{self.name}, {norm}" if norm else self.name


@dataclass(frozen=True)
class Noise:
    """Autocorrelations of noise by lag, as estimated from as many points."""

    white: tuple[float, ...]
    brown: tuple[float, ...]


def draw(curves: Sequence[Curve], noise: Noise, own_blocks: int) -> "Figure":
    """By lag at the network's own depth, and at the deepest; by depth; and the gradients themselves."""
    now = [c for c in curves if c.blocks == own_blocks]
    depths = sorted({c.blocks for c in curves})
    if len(depths) < 2:
        made, axes = figure(2, 1, width=8.0, height=3.0)
        _by_lag(axes[0], now, noise, "By distance")
        _series(axes[1], now)
        axes[0].legend(fontsize=7, frameon=False)
        return made
    made, axes = figure(2, 2, width=8.0, height=6.0)
    _by_lag(axes[0], now, noise, f"By distance, {own_blocks} blocks")
    _by_lag(axes[1], [c for c in curves if c.blocks == depths[-1]], noise, f"By distance, {depths[-1]} blocks")
    _by_depth(axes[2], [c for c in curves if c.name in ("residual", "plain")], noise)
    _series(axes[3], now)
    axes[0].legend(fontsize=7, frameon=False)
    return made


def _look(curve: Curve) -> tuple[str, str]:
    return {"residual": RESIDUAL, "plain": PLAIN}.get(curve.name, THIRD), "--" if curve.norm == "none" else "-"


def _by_lag(place: "Axes", curves: Sequence[Curve], noise: Noise, title: str) -> None:
    shown = len(noise.white) // 2
    for values, label in ((noise.brown, "brown and white noise"), (noise.white, None)):
        place.plot(values[:shown], ":", color=QUIET_GREY, linewidth=1.2, label=label)
    for curve in curves:
        colour, style = _look(curve)
        place.plot(curve.autocorrelation[:shown], style, color=colour, label=curve.title, linewidth=1.5)
    place.set_title(title, fontsize=9)
    place.set_xlabel("points apart", fontsize=8)
    place.set_ylabel("autocorrelation", fontsize=8)


def _by_depth(place: "Axes", curves: Sequence[Curve], noise: Noise) -> None:
    blocks = sorted({c.blocks for c in curves})
    for value, name in ((noise.white[1], "white noise"), (noise.brown[1], "brown noise")):
        place.axhline(value, linestyle=":", color=QUIET_GREY, linewidth=1.2)
        place.annotate(name, (blocks[0], value), xytext=(0, -2), textcoords="offset points", va="top", fontsize=7)
    for key in dict.fromkeys((c.name, c.norm) for c in curves):
        line = [c for c in curves if (c.name, c.norm) == key]
        colour, style = _look(line[0])
        place.plot([c.blocks for c in line], [c.next for c in line], style, marker="o", markersize=4, color=colour)
    place.set_xscale("log")
    place.minorticks_off()
    place.set_xticks(blocks, [str(b) for b in blocks])
    place.set_title("From one point to the next, by depth", fontsize=9)
    place.set_xlabel("blocks", fontsize=8)
    place.set_ylabel("autocorrelation", fontsize=8)


def _series(place: "Axes", curves: Sequence[Curve]) -> None:
    """The gradients themselves, one under the other."""
    for row, curve in enumerate(curves):
        colour, style = _look(curve)
        place.plot([0.45 * v - row for v in curve.gradient], style, color=colour, linewidth=0.9)
    place.set_yticks([-row for row in range(len(curves))], [c.title for c in curves], fontsize=7)
    place.set_title("The gradient along a line, each by its largest", fontsize=9)
    place.set_xlabel("point, from one image to another", fontsize=8)

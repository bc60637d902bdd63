"""The picture of a search: how the best score rose, and for each searched field its values against the scores."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from skipway.figures import png
from skipway.training.search import Searched
from skipway.training.tune import Trial, Tuning

DONE, PRUNED, BEST, QUIET = "#0072b2", "#cc79a7", "#009e73", "#777777"  # told apart by the colour-blind too
TITLES = {"accuracy": "accuracy", "map": "mAP"}
COLUMNS = 4


def draw(found: Tuning, title: str) -> bytes:
    """The picture as a PNG.

    Args:
        found: with at least one trial that has a score.
        title: what stands above.
    """
    tried = [trial for trial in found.trials if trial.score is not None and not trial.same_as]
    count = 1 + len(found.searched)
    rows, columns = -(-count // COLUMNS), min(count, COLUMNS)
    figure = Figure(figsize=(3.4 * columns, 3.2 * rows + 0.4), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes in grid[count:]:
        axes.axis("off")
    for axes in grid[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    order = list(range(1, len(tried) + 1))
    _points(grid[0], order, tried, found.best)
    scores = [100 * (trial.score or 0) if trial.state == "finished" else float("-inf") for trial in tried]
    grid[0].step(order, list(accumulate(scores, max)), where="post", color=QUIET, linewidth=0.8)
    grid[0].set_xlabel("trial")
    grid[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0].set_ylabel(f"validation {TITLES[found.metric]} (%)")
    grid[0].legend(frameon=False, fontsize=8)
    for axes, field in zip(grid[1:], found.searched, strict=False):
        _field(axes, field, tried, found.best)
    return png(figure)


def _field(axes: Axes, field: Searched, tried: list[Trial], best: Trial | None) -> None:
    """A field's values against the scores."""
    values = [trial.values.get(field.name) for trial in tried]
    axes.set_xlabel(field.name)
    if field.choices:
        places = [field.choices.index(value) for value in values]
        axes.set_xticks(range(len(field.choices)), [str(choice) for choice in field.choices])
        axes.set_xlim(-0.5, len(field.choices) - 0.5)
        _points(axes, places, tried, best)
        return
    if field.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", labelrotation=30)
    _points(axes, values, tried, best)


def _points(axes: Axes, at: Sequence[Any], tried: list[Trial], best: Trial | None) -> None:
    for state, colour, mark in (("finished", DONE, "o"), ("pruned", PRUNED, "x")):
        chosen = [(x, 100 * (t.score or 0)) for x, t in zip(at, tried, strict=True) if t.state == state]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), mark, color=colour, label=state, markersize=5)
    for x, trial in zip(at, tried, strict=True):
        if trial is best:
            axes.plot(x, 100 * (trial.score or 0), "o", color=BEST, markersize=8, label="best")

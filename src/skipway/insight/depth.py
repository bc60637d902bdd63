"""What experiments over depth share: the axis of blocks in a picture, and the blocks of a subject."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from skipway.errors import InputError
from skipway.insight.probe import Probe
from skipway.insight.style import QUIET_GREY
from skipway.insight.subject import Subject
from skipway.insight.units import Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TICKS = 28


def units_of(subject: Subject) -> tuple[Unit, ...]:
    """The network's residual additions; none where none of its blocks is known."""
    try:
        return Probe(subject.network, subject.seen.inputs[:1]).units
    except InputError:
        return ()


def constant(labels: Tensor) -> float:
    """What the best answer that is always the same scores on labels, (N,) or (N, K), in [0, 1]."""
    if labels.ndim == 2:
        rate = labels.float().mean(0)
        return torch.maximum(rate, 1 - rate).mean().item()
    return labels.bincount().max().item() / len(labels)


def short_name(name: str) -> str:
    """'stage2.block3' as '2.3'; other names as they are."""
    return name.removeprefix("stage").replace(".block", ".") if name.startswith("stage") else name


def depth_axis(axes: "Axes", names: Sequence[str], opens: Sequence[bool]) -> None:
    """Lay blocks along x, at 0, 1, 2, ...: their names, and a band behind those that open a stage.

    Args:
        axes: where.
        names: of the blocks, in order.
        opens: whether each opens a stage.
    """
    bands = [i for i, opening in enumerate(opens) if opening]
    for number, i in enumerate(bands):
        label = "opens a stage" if number == 0 else None
        axes.axvspan(i - 0.5, i + 0.5, color=QUIET_GREY, alpha=0.22, lw=0, label=label, zorder=0)
    step = max(1, -(-len(names) // MOST_TICKS))
    ticks = range(0, len(names), step)
    axes.set_xticks(list(ticks), [short_name(names[i]) for i in ticks], rotation=90, fontsize=7)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_xlabel("block, from input to output", fontsize=8)


def percent(share: float) -> str:
    """0.987 as '98.7%'."""
    return f"{100 * share:.1f}%"

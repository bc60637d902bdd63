"""The answer forming block by block: the head read on each block's output, the blocks after it left out.

A block's output has the channels of its stage, the head those of the last. As in Jastrzebski et al. 2018
(arXiv:1710.04773) what comes later and can be skipped is skipped: after block l, every later block that opens no stage
is cut, and the openers stay, which bring the shape to the head's. So the answer after an opener is that before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skipway.errors import InputError
from skipway.insight.edits import Edit
from skipway.insight.probe import Probe
from skipway.insight.subject import Subject
from skipway.insight.units import Unit
from skipway.insight.watch import QUIET, Watch

START = "start"
TOP = 5


@dataclass(frozen=True)
class Step:
    """The answer after one block.

    Args:
        name: of the block; "start" is before the first, with openers of stages alone.
        opens: whether it opens a stage.
        classes: of the largest probabilities, falling.
        probabilities: theirs, in [0, 1].
        later: of the classes that the whole network's answer has on top, in that order.
    """

    name: str
    opens: bool
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    later: tuple[float, ...]


@dataclass(frozen=True)
class Forming:
    """One image's answer, block by block.

    Args:
        classes: on top of the whole network's answer, falling.
        steps: from the start to the last block.
    """

    classes: tuple[str, ...]
    steps: tuple[Step, ...]


def forming(subject: Subject, x: Tensor, *, top: int = TOP, watch: Watch = QUIET) -> Forming:
    """The largest probabilities after each block, of one image.

    Args:
        subject: whose network and classes.
        x: the image as the network takes it, (C, H, W) or (1, C, H, W).
        top: how many classes.
        watch: told after each block.

    Raises:
        InputError: no block of the network is known, or x is more than one image.
    """
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or len(x) != 1:
        raise InputError(f"forming takes one image, (C, H, W) or (1, C, H, W), got shape {tuple(x.shape)}")
    with Probe(subject.network, x) as probe:
        places = [(START, False), *((u.name, u.opens) for u in probe.units)]
        found = [subject.model.probabilities(logits)[0] for logits in logits_by_block(probe, x, watch=watch)]
    chosen = found[-1].topk(min(top, len(found[-1]))).indices
    steps = []
    for (name, opens), row in zip(places, found, strict=True):
        best = row.topk(len(chosen))
        classes = tuple(subject.classes[i] for i in best.indices.tolist())
        steps.append(Step(name, opens, classes, tuple(best.values.tolist()), tuple(row[chosen].tolist())))
    return Forming(tuple(subject.classes[i] for i in chosen.tolist()), tuple(steps))


def logits_by_block(probe: Probe, x: Tensor, *, edits: Sequence[Edit] = (), watch: Watch = QUIET) -> Iterator[Tensor]:
    """What the head reads before the first unit and after each: (B, K), one more than there are units.

    Args:
        probe: within its context.
        x: (B, C, H, W) as the network takes it.
        edits: of the network that answers.
        watch: told after each.
    """
    count = len(probe.units) + 1
    for done in range(count):
        with torch.no_grad():
            yield probe.run(x, edits=[*edits, *later_cut(probe.units, done)])
        watch.tell((done + 1) / count)


def later_cut(units: Sequence[Unit], done: int) -> list[Edit]:
    """The edits that leave the first `done` units as they are and cut all later ones that open no stage."""
    return [Edit("block", unit.name) for unit in units[done:] if not unit.opens]

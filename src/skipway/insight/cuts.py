"""Cuts and swaps, and what they leave: each block cut alone, random choices of blocks, pairs that can be swapped."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb

from torch import Tensor

from skipway.errors import InputError
from skipway.insight.edits import Edit, first_changed
from skipway.insight.prefix import Prefix
from skipway.insight.probe import Probe
from skipway.insight.subject import Subject
from skipway.insight.units import Unit
from skipway.insight.watch import QUIET, Watch

COUNTS = 8  # how many different numbers of blocks are cut at a time


@dataclass(frozen=True)
class Cut:
    """One block cut out.

    Args:
        name: of the block (of a transformer's half).
        opens: whether it opens a stage; its projected or padded shortcut stays.
        accuracy, loss: of what is left, in [0, 1] and in nats.
        reestimated: accuracy with batch norms' statistics measured again; NaN where that was not asked for.
    """

    name: str
    opens: bool
    accuracy: float
    loss: float
    reestimated: float = float("nan")


def damage_by_unit(subject: Subject, *, num_images: int = 1000, watch: Watch = QUIET) -> dict[str, float]:
    """By how much accuracy falls when each block is cut alone, by its name; blocks that cannot be cut are not in it."""
    images = subject.seen.first(num_images)
    with Probe(subject.network, images.inputs) as probe:
        prefix = Prefix(probe, images.inputs, watch=watch.part(0, 0.2))
        whole = accuracy(subject, prefix.logits, images.labels)
        cuts = single_cuts(subject, prefix, images.labels, watch=watch.part(0.2, 1))
        return {cut.name: whole - cut.accuracy for cut in cuts}


def single_cuts(subject: Subject, prefix: Prefix, labels: Tensor, *, watch: Watch = QUIET) -> Iterator[Cut]:
    """Each block that can be cut, cut alone, in order; ends early where the watch is late.

    Args:
        subject: whose right() and loss() score.
        prefix: the images gone through the network once.
        labels: of the same images.
        watch: told of each batch.
    """
    units = prefix.probe.units
    for number, unit in enumerate(units):
        if watch.late:
            return
        if why_not(unit, units):
            continue
        part = watch.part(number / len(units), (number + 1) / len(units))
        logits = prefix.score([Edit("block", unit.name)], watch=part)
        loss = subject.loss(logits, labels).item()
        yield Cut(unit.name, unit.opens, accuracy(subject, logits, labels), loss)


def accuracy(subject: Subject, logits: Tensor, labels: Tensor) -> float:
    """Share of right answers, in [0, 1]."""
    return subject.right(logits, labels).mean().item()


def why_not(unit: Unit, units: Sequence[Unit]) -> str:
    """Why a block cannot be cut; "" where it can."""
    try:
        first_changed([Edit("block", unit.name)], units)
    except InputError as error:
        return str(error)
    return ""


def choices(units: Sequence[Unit], *, num_draws: int, seed: int) -> Iterator[list[Edit]]:
    """Random choices of blocks to cut at once: of 1, of all, and of some numbers in between."""
    names = [u.name for u in units if not u.opens]
    counts = {round(len(names) ** (i / (COUNTS - 1))) for i in range(COUNTS)} if names else set()  # 1, 2, 4, ... all
    for count in sorted(counts):
        draws = random.Random(f"{seed}/lesion/{count}")
        chosen: dict[tuple[int, ...], None] = {}
        while len(chosen) < min(num_draws, comb(len(names), count)):
            chosen[tuple(sorted(draws.sample(range(len(names)), count)))] = None
        for places in chosen:
            yield [Edit("block", names[i]) for i in places]


def swaps(units: Sequence[Unit], *, num_swaps: int, seed: int) -> Iterator[list[Edit]]:
    """Random pairs of blocks whose shapes are equal, to swap."""
    shapes: dict[str, list[tuple]] = {}
    for unit in units:
        shapes.setdefault(unit.block, []).append((unit.in_shape, unit.out_shape))
    pairs = [(a, b) for a, b in itertools.combinations(shapes, 2) if shapes[a] == shapes[b]]
    draws = random.Random(f"{seed}/swaps")
    for place in sorted(draws.sample(range(len(pairs)), min(num_swaps, len(pairs)))):
        yield [Edit("swap", pairs[place][0], other=pairs[place][1])]

"""Edits of a network while it is probed, as data: scale or cut a branch or a shortcut, cut a block, swap two blocks.

They are text too, for the page's address and for the command: 'branch:stage1.block2=0.5', 'shortcut:stage1.block2=0',
'block:stage1.block2', 'swap:stage1.block2,stage1.block3'. Weights are never touched.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from skipway.errors import InputError, unknown
from skipway.fields import shown
from skipway.insight.units import Unit, find_unit

KINDS = ("branch", "shortcut", "block", "swap")


@dataclass(frozen=True)
class Edit:
    """One change.

    Args:
        kind: "branch": y = finish(alpha F + S); "shortcut": y = finish(F + alpha S); "block": the block is taken out,
            y = finish(S), or y = x in a plain network; "swap": two blocks change places.
        unit: the name of the residual addition; of the block for "swap".
        alpha: of a branch or shortcut, from 0 (cut) to 1 (as it is).
        other: the block to swap with.

    Raises:
        InputError: another kind, or alpha out of [0, 1].
    """

    kind: str
    unit: str
    alpha: float = 0.0
    other: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("edit", self.kind, KINDS)
        if not (math.isfinite(self.alpha) and 0 <= self.alpha <= 1):
            raise InputError(f"alpha of {self.kind} {self.unit} must be from 0 to 1, got {self.alpha:g}")
        if (self.kind == "swap") != bool(self.other):
            raise InputError("a swap names two blocks, as swap:stage1.block2,stage1.block3; other edits name one")

    def __str__(self) -> str:
        if self.kind == "swap":
            return f"swap:{self.unit},{self.other}"
        return f"block:{self.unit}" if self.kind == "block" else f"{self.kind}:{self.unit}={self.alpha:g}"


def parse(text: str) -> Edit:
    """An edit from its text. Raises InputError.

    Example:
        >>> parse("branch:stage1.block2=0.5")
        Edit(kind='branch', unit='stage1.block2', alpha=0.5, other='')
    """
    kind, _, rest = text.partition(":")
    if kind == "swap":
        unit, _, other = rest.partition(",")
        return Edit(kind, unit, other=other)
    unit, given, alpha = rest.partition("=")
    if kind == "block" and given:
        raise InputError(f"the edit '{text[:80]}' must have no number: a block is cut whole, branches are scaled")
    try:
        number = float(alpha) if given else 0.0
    except ValueError:
        raise InputError(f"the edit '{text[:80]}' must end with a number from 0 to 1, as branch:NAME=0.5") from None
    if not unit:
        raise InputError(f"the edit '{text[:80]}' must name what it changes, as block:stage1.block2")
    return Edit(kind, unit, number)


def arranged(edits: Sequence[Edit], units: Sequence[Unit]) -> tuple[dict[str, tuple[Edit, ...]], dict[int, int]]:
    """What is to change of each unit, of each kind the last; and which block stands in which block's place.

    Raises:
        InputError: what is no Edit, an edit of what is not there, or one that the shapes forbid.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            raise InputError(f"an edit is an Edit, as Edit('block', 'stage1.block2'), got {shown(edit)}")
    by_unit: dict[str, tuple[Edit, ...]] = {}
    swaps: dict[int, int] = {}
    for edit in {(e.kind, e.unit): e for e in edits}.values():
        if edit.kind == "swap":
            _swap(edit, units, swaps)
            continue
        unit = find_unit(units, edit.unit)
        if unit.skip == "none" and edit.kind == "shortcut":
            raise InputError(f"{unit.name} has no shortcut to change: the network is plain there")
        if unit.skip == "none" and edit.kind == "block" and unit.opens:
            raise InputError(
                f"{unit.name} changes {unit.in_shape} to {unit.out_shape} and has no shortcut: it cannot be cut out"
            )
        if edit.kind == "block" or edit.alpha != 1:
            by_unit[unit.name] = (*by_unit.get(unit.name, ()), edit)
    return by_unit, swaps


def _swap(edit: Edit, units: Sequence[Unit], swaps: dict[int, int]) -> None:
    blocks = {u.block: u.index for u in units}
    for name in (edit.unit, edit.other):
        if name not in blocks:
            raise unknown("block", name, blocks)
    first, second = blocks[edit.unit], blocks[edit.other]
    shapes = [[(u.in_shape, u.out_shape) for u in units if u.index == i] for i in (first, second)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{edit.unit} and {edit.other} cannot change places: their shapes differ")
    swaps[first], swaps[second] = swaps.get(second, second), swaps.get(first, first)


def first_changed(edits: Sequence[Edit], units: Sequence[Unit]) -> int:
    """The index of the first block that an edit changes; after the last one where none does."""
    by_unit, swaps = arranged(edits, units)
    places = [u.index for u in units if u.name in by_unit] + [i for i, j in swaps.items() if i != j]
    return min(places, default=units[-1].index + 1)

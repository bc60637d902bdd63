"""What a network's picture shows: rows of parts, and the pieces inside each part's box."""

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from skipway.nn.description import Description, LayerRow
from skipway.nn.svg import SMALL, clean, clip, extent

GAP = 3  # pixels between pieces
MOST_WIDTH = 440  # pixels of layers that a part shows one by one
WINDOWS = {1: "#cfe2f7", 3: "#9cc3ee"}  # colour of a convolution by its kernel's size
ACTS = ("relu", "relu6", "leakyrelu", "prelu", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "sigmoid", "tanh")
NAMES = {"constantpad2d": "padding", "zeropad2d": "padding"}
SHORT = {"max-pool": "max", "average-pool": "avg", "space to depth": "s2d"}
CONV = re.compile(r"conv ((\d+)x\d+(?:/\d+)?)(?: dilated (\d+))?(?: in (\d+) groups)?")
T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """A layer in a box: a chip with lines of words; without words a thin bar (norm, activation) or an empty place."""

    lines: tuple[str, ...] = ()
    colour: str = ""
    width: float = 6


@dataclass(frozen=True)
class Part:
    """A stem, a block, a head, or a part of another's network; `skip` is None where there is no block to skip."""

    name: str
    rows: tuple[LayerRow, ...]
    skip: str | None

    @property
    def joins(self) -> bool:
        """Whether a skip joins the branch."""
        return self.skip not in (None, "none")

    @property
    def projects_inside(self) -> bool:
        """Whether the skip leaves after the first norm and activation: pre-activation blocks project those."""
        return "projection" in (self.skip or "") and not self.rows[0].macs

    @property
    def act_of_sum(self) -> str:
        """The activation that comes after the addition, or ""."""
        return self.rows[-1].kind if self.joins and self.rows[-1].kind in ACTS else ""

    @property
    def counts(self) -> tuple[str, str]:
        """Parameters and multiply-accumulates, in words."""
        return counted([self])


def counted(parts: "Sequence[Part]") -> tuple[str, str]:
    """Parameters and multiply-accumulates of parts, in words."""
    rows = [row for part in parts for row in part.rows]
    return f"{short(sum(r.parameters for r in rows))} parameters", f"{short(sum(r.macs for r in rows))} MACs"


def short(count: int, unit: str = "") -> str:
    """A count in thousands, millions or billions: 2359296 -> "2.36M", and with a unit "2.36 MB"."""
    space = " " if unit else ""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size * 0.999995:  # 999,999 is 1.00M and not 1000.00k
            return f"{count / size:.2f}{space}{prefix}{unit}"
    return f"{count}{space}{unit}"


def shape_of(shape: tuple[int, ...]) -> str:
    """A shape in words: 64x56x56."""
    return "x".join(map(str, shape))


def lanes_of(description: Description) -> list[list[Part]]:
    """The rows of the picture: the blocks of a stage share one, every other part has its own.

    What is no layer, and so has no output, stands beside them.
    """
    rows: dict[str, list[LayerRow]] = {}
    for row in description.layers:
        if not row.output:
            continue
        rows.setdefault(row.part, []).append(row)
    lanes: dict[str, list[Part]] = {}
    for name, layers in rows.items():
        skip = description.skips.get(name)
        lane = name if skip is None else name.rpartition(".")[0]
        lanes.setdefault(lane, []).append(Part(name, tuple(layers), skip))
    return list(lanes.values())


def shortened(items: Sequence[T], most: int) -> list[T | int]:
    """All items or, of too many, the first ones, the number of those left out, and the last."""
    return list(items) if len(items) <= most else [*items[: most // 2], len(items) - most // 2 - 1, items[-1]]


def pieces_of(part: Part) -> list[Piece]:
    """The layers inside a box, in order; those of the shortcut and the sum are outside.

    Channel attention is one piece, and so are more layers than a box can show.
    """
    if part.skip is None:
        pieces = [_piece(row) for row in part.rows]
        return pieces if width_of(pieces) <= MOST_WIDTH else [_summed_up(part.rows)]
    pieces = []
    for row in part.rows[:-1] if part.act_of_sum else part.rows:
        place = row.layer.partition(".")[0]
        piece = _attention(row) if place == "attention" else _piece(row)
        if place == "shortcut" or (place == "attention" and pieces[-1] == piece):
            continue
        if piece.lines and part.projects_inside and Piece() not in pieces:
            pieces.append(Piece())  # where the skip leaves
        pieces.append(piece)
    return pieces


def width_of(pieces: Sequence[Piece]) -> float:
    """Pixels from the first piece to the last."""
    return sum(piece.width for piece in pieces) + GAP * (len(pieces) - 1)


def bar_colour(kind: str) -> str:
    """The colour of a kind of layer that is drawn as a thin bar; "" for the others."""
    if "norm" in kind or kind in ("bias", "scale, bias", "scale"):
        return "#e3b341"
    if kind in ACTS:
        return "#d95f5f"
    return "#8b95a3" if "drop" in kind or kind in NAMES or kind == "identity" else ""


def _piece(row: LayerRow) -> Piece:
    if bar_colour(row.kind):
        return Piece((), bar_colour(row.kind))
    conv = CONV.fullmatch(row.kind)
    if conv:
        window, size, dilation, groups = conv.groups()
        marks = ", ".join([f"dil {dilation}"] * bool(dilation and size != "1") + [f"{groups} gr"] * bool(groups))
        lines = (window, str(row.output[0]), *([marks] if marks else []))
        return _chip(lines, WINDOWS.get(int(size), "#7fb0e4"))
    kind, slash, stride = row.kind.partition("/")
    name = clip(SHORT.get(kind, kind) + slash + stride, 120, SMALL)
    return _chip((name, shape_of(row.output)), "#cdd5df") if row.macs else _chip((name,), "#dde5c8")


def _attention(row: LayerRow) -> Piece:
    return Piece(("eca" if row.kind == "conv over channels" else "se",), "#f3c6d3", 30)


def _chip(lines: tuple[str, ...], colour: str) -> Piece:
    return Piece(lines, colour, max(34, *(extent(line, SMALL) + 8 for line in lines)))


def _summed_up(rows: Sequence[LayerRow]) -> Piece:
    kinds = Counter(clean(NAMES.get(row.kind, row.kind)) for row in rows).most_common()
    items = (f"{count} x {kind}" if count > 1 else kind for kind, count in kinds)
    text = ", ".join(item.replace(" ", "\u00a0") for item in items)  # a line ends after an item
    return _chip(tuple(textwrap.wrap(text, 64, max_lines=3, placeholder=" ...")), "#e2e8f0")

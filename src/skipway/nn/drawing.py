"""A network's skeleton as one SVG picture: each stage a row of blocks, each skip an arc that ends in a +."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from skipway.errors import InputError
from skipway.nn.description import Description
from skipway.nn.skeleton import (
    GAP,
    NAMES,
    WINDOWS,
    Part,
    Piece,
    bar_colour,
    counted,
    lanes_of,
    pieces_of,
    shape_of,
    short,
    shortened,
    width_of,
)
from skipway.nn.svg import FONT, INK, LABEL, QUIET, SMALL, Style, clean, clip, extent, number, path, rect, tell, words

MARGIN, LEFT, MIN_WIDTH, TALL = 28, 160, 720, 46  # pixels; LEFT is the labels' column, TALL a chip
LEAD, AFTER, HIDDEN = 18, 44, 112  # of the line before a box, after it, and in the place of blocks left out
MOST_BLOCKS, MOST_LANES, MOST_TOLD, MOST_MARKS = 6, 30, 40, 12  # what has more is shortened in its middle
LINE, WHITE = "#94a3b8", "#ffffff"
TINTS = ("#eef4fb", "#eef8f1", "#fdf5e9", "#f7effa")  # of the stages, in turn
SKIPS = {  # colour and dashes of an arc
    "identity": ("#0f766e", ""),
    "zero pad": ("#7c3aed", "1 4"),
    "projection": ("#c2410c", "7 4"),
    "average, projection": ("#be185d", "7 4 1 4"),
}
NAME, TITLE, VALUE = Style(24, INK, "bold"), Style(13, INK, "bold"), Style(15, INK, "bold")
FAINT, NOTE, ALARM = Style(10, QUIET), Style(12, QUIET), Style(12, "#92400e")


def draw(description: Description) -> str:
    """The skeleton of a network as a picture.

    Args:
        description: from `describe`.

    Returns:
        An SVG document that needs nothing else; its words can be searched, and a box tells its layers when pointed at.

    Example:
        >>> from skipway.nn.describe import describe
        >>> draw(describe("tutorial"))[:4]
        '<svg'
    """
    lanes = lanes_of(description)
    output = shape_of(lanes[-1][-1].rows[-1].output)
    width = 2 * MARGIN + max(MIN_WIDTH, LEFT + max(map(_lane_width, lanes)) + extent(output, TITLE) + 14)
    svg = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "font-family": FONT})
    tell(svg, f"The skeleton of {description.name}")
    SubElement(svg, "desc").text = clean(_summary(description, lanes))
    page = SubElement(svg, "rect", {"rx": "10", "fill": "#fdfdfc", "stroke": "#e2e8f0"})
    y = _lanes(svg, description, lanes, _header(svg, description, width))
    y = _legend(svg, description, (y + 26, width))
    size = {"width": number(width), "height": number(y)}
    page.attrib.update(size)
    svg.attrib.update({**size, "viewBox": f"0 0 {number(width)} {number(y)}", "style": "max-width:100%;height:auto"})
    return tostring(svg, encoding="unicode")


def save(description: Description, path: Path) -> None:
    """Draw a network in a new file.

    Raises:
        InputError: the file exists (it stays as it is), or is not called .svg.
        OSError: the file cannot be written.
    """
    if path.suffix != ".svg":
        raise InputError(f"the picture is an SVG: name a file that ends in .svg, not {path}")
    picture = draw(description)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(picture)
    except FileExistsError as error:
        raise InputError(f"{path} exists; name a new file") from error


def _summary(description: Description, lanes: Sequence[Sequence[Part]]) -> str:
    """The picture in words, for who cannot see it."""
    rows = []
    for lane in shortened(lanes, MOST_LANES):
        if isinstance(lane, int):
            rows.append(f"{lane} more parts")
            continue
        name, blocks = _lane_name(lane)
        skips = ", ".join(dict.fromkeys(part.skip for part in lane if part.skip))
        rows.append(f"{name} {shape_of(lane[-1].rows[-1].output)}" + (f" ({blocks}, skips: {skips})" if blocks else ""))
    total = f"{description.parameters:,} parameters, {description.macs:,} MACs"
    return f"{description.name}, input {shape_of(description.input)}, {total}: {'; '.join(rows)}."


def _header(svg: Element, description: Description, width: float) -> float:
    """Name, source, totals and warning; returns where the header ends."""
    room = width - 2 * MARGIN
    words(svg, (MARGIN, 48), clip(description.name, room, NAME), NAME)
    y = 56
    for line in textwrap.wrap(clean(description.source), int(room / 7.2), max_lines=2, placeholder=" ..."):
        y += 16
        words(svg, (MARGIN, y), clip(line, room, NOTE), NOTE)
    facts = _facts(description)
    across = len(facts) if room >= 190 * len(facts) else 3
    for i, (label, value) in enumerate(facts):
        x, top = MARGIN + room / across * (i % across), y + 22 + 48 * (i // across)
        path(svg, f"M{number(x)} {number(top)}v34", "#d5dce5")
        words(svg, (x + 11, top + 11), label, Style(10.5, QUIET))
        words(svg, (x + 11, top + 31), clip(value, room / across - 16, VALUE), VALUE)
    y += 22 + 48 * -(-len(facts) // across)
    lines = textwrap.wrap(clean(description.warning), int((room - 24) / 7.2), max_lines=6, placeholder=" ...")
    if lines:
        rect(svg, (MARGIN, y + 4, room, 18 * len(lines) + 12), "#fef3c7", round=7, edge="#f2cf6b")
        for line in lines:
            words(svg, (MARGIN + 12, y + 22), clip(line, room - 24, ALARM), ALARM)
            y += 18
        y += 20
    return y + 14


def _facts(description: Description) -> list[tuple[str, str]]:
    """What the header says of the whole network; what is not known (0) is left out."""
    images = f"{description.batch_size:,} image{'s' if description.batch_size > 1 else ''}"
    seen, size = description.receptive_field, description.input[-1]
    facts = [
        ("input", shape_of(description.input)),
        ("parameters", f"{description.parameters:,}"),
        ("MACs for one image", f"{description.macs:,}"),
        ("FLOPs (2 x MACs)", f"{description.flops:,}"),
    ]
    for row in description.layers:
        if not row.output:
            facts += [("parameters in no layer", f"{row.parameters:,}"), ("MACs in no layer", f"{row.macs:,}")]
    if description.activation_bytes:
        facts.append((f"activations, {images}, fp32", short(description.activation_bytes, "B")))
    if seen:
        facts.append((f"receptive field{', wider than the image' if seen > size else ''}", f"{seen}x{seen}"))
    return facts


def _lanes(svg: Element, description: Description, lanes: Sequence[Sequence[Part]], y: float) -> float:
    """Draw all rows, each joined to the one before; returns where the last ends."""
    entry = f"input {shape_of(description.input)}"
    x = MARGIN + LEFT
    rect(svg, (x - 10, y, extent(entry) + 22, 22), "#e8edf3", round=11)
    words(svg, (x + 1, y + 15), entry)
    y, end, stages = y + 22, (x + 4.0, y + 22), 0
    for lane in shortened(lanes, MOST_LANES):
        if isinstance(lane, int):
            words(svg, (MARGIN, y + 26), f"... {lane} more parts ...", NOTE)
            y += 34
            continue
        stages += lane[0].skip is not None
        above = 34 if lane[0].skip is None else 42 + 34 * any(part.joins for part in lane)
        middle = y + 30 + above
        _turn(svg, end, (x, y + 16), middle)
        y = max(middle + (34 if lane[0].skip is None else 64), _lane_label(svg, lane, middle))
        end = (_lane(svg, lane, middle, TINTS[stages % len(TINTS)]), middle)
    words(svg, (end[0] + 8, end[1] + 4.5), shape_of(lanes[-1][-1].rows[-1].output), TITLE)
    return y


def _turn(svg: Element, end: tuple[float, float], start: tuple[float, float], middle: float) -> None:
    """Draw the line from the end of a row to the start of the next, whose middle is at this height."""
    (x, y), (left, between) = end, start
    back = f"q10 0 10 10V{number(between - 10)}q0 10 -10 10H{number(left + 14)}q-10 0 -10 10"
    back = back if x > left + 4 else ""  # the input lies above the first row
    path(svg, f"M{number(x)} {number(y)}{back}V{number(middle - 10)}q0 10 10 10", LINE)


def _lane_name(lane: Sequence[Part]) -> tuple[str, str]:
    """A row's name, and how many blocks it has ("" for a part that is none)."""
    if lane[0].skip is None:
        return lane[0].name, ""
    return lane[0].name.rpartition(".")[0], f"{len(lane)} block{'s' if len(lane) > 1 else ''}"


def _lane_label(svg: Element, lane: Sequence[Part], middle: float) -> float:
    """Name, output shape, counts and receptive field of a row, at its left; returns where they end."""
    name, blocks = _lane_name(lane)
    last = lane[-1].rows[-1]
    field = f"sees {last.receptive_field}x{last.receptive_field} pixels" if last.receptive_field else ""
    lines = [(clip(name, LEFT - 12, TITLE), TITLE), (clip(shape_of(last.output), LEFT - 12), LABEL)]
    lines += [(text, FAINT) for text in (blocks, *counted(lane), field) if text]
    y = middle - 7.5 * len(lines) + 11
    for text, style in lines:
        words(svg, (MARGIN, y), text, style)
        y += 15
    return y


def _lane_width(lane: Sequence[Part]) -> float:
    shown = shortened(lane, MOST_BLOCKS)
    return 14 + sum(HIDDEN if isinstance(part, int) else LEAD + _box_width(part) + AFTER for part in shown)


def _box_width(part: Part) -> float:
    inside = width_of(pieces_of(part)) + 24
    return inside if part.skip is None else max(inside, 128)  # its counts are as wide


def _lane(svg: Element, lane: Sequence[Part], middle: float, tint: str) -> float:
    """Draw a row of boxes from left to right; returns where its line ends."""
    x = float(MARGIN + LEFT + 14)
    for part in shortened(lane, MOST_BLOCKS):
        if isinstance(part, int):
            path(svg, f"M{number(x)} {number(middle)}h{HIDDEN}", LINE, dashes="1 6")
            words(svg, (x + HIDDEN / 2, middle - 14), f"... x {part} ...", TITLE, "middle")
            x += HIDDEN
            continue
        group = SubElement(svg, "g")
        told = [f"{row.layer}: {row.kind}, {shape_of(row.output)}" for row in part.rows]
        told = [f"... {line} more ..." if isinstance(line, int) else line for line in shortened(told, MOST_TOLD)]
        tell(group, f"{part.name}: {', '.join(part.counts)}", *told)
        _box(group, part, (x, middle), tint)
        x += LEAD + _box_width(part) + AFTER
    return x


def _box(group: Element, part: Part, at: tuple[float, float], tint: str) -> None:
    """Draw a part with the line through it, and where it has a skip the arc around it and the sum."""
    (x, middle), width, pieces = at, _box_width(part), pieces_of(part)
    left, block = x + LEAD, part.skip is not None
    top, centre, right = middle - (42 if block else 34), left + width / 2, left + width
    rect(group, (left, top, width, 106 if block else 68), tint if block else WHITE, round=8, edge="#c3cedb")
    path(group, f"M{number(x)} {number(middle)}H{number(right + AFTER)}", LINE)
    path(group, f"M{number(left - 6)} {number(middle - 4)}l5 4l-5 4", LINE)
    leaves = _pieces(group, pieces, (centre - width_of(pieces) / 2, middle))
    if block:
        words(group, (centre, top + 14), clip(part.name.rpartition(".")[2], width - 10, FAINT), FAINT, "middle")
        for i, text in enumerate(part.counts):
            words(group, (centre, middle + 40 + 14 * i), text, SMALL, "middle")
    if part.joins:
        _arc(group, part.skip or "", (leaves if part.projects_inside else x + 5, right + 16), (middle, top - 14))
    if part.act_of_sum:
        rect(group, (right + 29, middle - 15, 6, 30), bar_colour(part.act_of_sum))


def _pieces(group: Element, pieces: Sequence[Piece], at: tuple[float, float]) -> float:
    """Draw chips and bars from left to right; returns the middle of the empty place, if there is one."""
    (x, middle), leaves = at, at[0]
    for piece in pieces:
        tall = TALL if piece.lines else 30
        if piece.colour:
            rect(group, (x, middle - tall / 2, piece.width, tall), piece.colour, round=5 if piece.lines else 2)
        else:
            leaves = x + piece.width / 2
        for i, line in enumerate(piece.lines):
            y = middle + 3.5 + 13 * (i - (len(piece.lines) - 1) / 2)
            words(group, (x + piece.width / 2, y), line, SMALL, "middle")
        x += piece.width + GAP
    return leaves


def _arc(group: Element, skip: str, ends: tuple[float, float], heights: tuple[float, float]) -> None:
    """Draw a skip from a dot on the line, over the box, down to the sum."""
    (x, end), (middle, top), (colour, dashes) = ends, heights, SKIPS.get(skip, (INK, "4 3"))
    over = f"M{number(x)} {number(middle)}V{number(top + 14)}q0 -14 14 -14H{number(end - 14)}q14 0 14 14"
    path(group, f"{over}V{number(middle - 11)}", colour, dashes=dashes)
    path(group, f"M{number(end - 4)} {number(middle - 16)}l4 5l4 -5", colour)
    SubElement(group, "circle", {"cx": number(x), "cy": number(middle), "r": "3", "fill": colour})
    look = {"r": "10", "fill": WHITE, "stroke": colour, "stroke-width": "1.8"}
    SubElement(group, "circle", {"cx": number(end), "cy": number(middle), **look})
    words(group, (end, middle + 5), "+", Style(15, colour, "bold"), "middle")
    if skip != "identity":
        words(group, ((x + end) / 2, top - 5), skip, Style(10, colour), "middle")


def _legend(svg: Element, description: Description, at: tuple[float, float]) -> float:
    """What colours mean, for what the picture has; `at` is its top and the picture's width; returns where it ends."""
    y, width = at
    marks = [(f"skip: {skip}", *SKIPS.get(skip, (INK, "4 3"))) for skip in dict.fromkeys(description.skips.values())]
    marks = [mark for mark in marks if mark[0] != "skip: none"]
    bars = {NAMES.get(row.kind, row.kind): bar_colour(row.kind) for row in description.layers}
    bars = {kind: colour for kind, colour in bars.items() if colour}
    if any(row.kind.startswith("conv ") for row in description.layers):
        bars = {"convolution: window/stride, channels": WINDOWS[3]} | bars
    path(svg, f"M{MARGIN} {number(y)}H{number(width - MARGIN)}", "#e5e9ef")
    x, y = float(MARGIN), y + 24
    for label, colour, dashes in [*marks, *((kind, colour, None) for kind, colour in bars.items())][:MOST_MARKS]:
        label = clip(label, 240)
        if x + extent(label) + 32 > width - MARGIN:
            x, y = MARGIN, y + 22
        if dashes is None:
            rect(svg, (x, y - 12, 6, 16), colour)
        else:
            path(svg, f"M{number(x)} {number(y - 4)}h24", colour, dashes=dashes)
        words(svg, (x + (14 if dashes is None else 32), y), label)
        x += extent(label) + (38 if dashes is None else 56)
    return y + 22

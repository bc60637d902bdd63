"""Rectangles, paths and words of an SVG picture, with what is needed to keep words inside their places.

Everything is drawn with plain attributes: a notebook puts several pictures on one page, where ids and styles would mix.
"""

import re
import unicodedata
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
INK, QUIET = "#1e293b", "#5b6675"
NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Style(NamedTuple):
    """How words look."""

    size: float
    colour: str = INK
    weight: str = "normal"


LABEL, SMALL = Style(11), Style(10)


def number(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def rect(
    parent: Element, box: tuple[float, float, float, float], fill: str, *, round: float = 2, edge: str = ""
) -> None:
    """Draw a rectangle (x, y, width, height) with round corners and, if given a colour, an edge."""
    sides = dict(zip(("x", "y", "width", "height"), map(number, box), strict=True))
    SubElement(parent, "rect", {**sides, "rx": number(round), "fill": fill, **({"stroke": edge} if edge else {})})


def path(parent: Element, steps: str, colour: str, *, dashes: str = "") -> None:
    """Draw a line along an SVG path."""
    look = {"fill": "none", "stroke": colour, "stroke-width": "1.8", "stroke-linecap": "round"}
    SubElement(parent, "path", {"d": steps, **look, **({"stroke-dasharray": dashes} if dashes else {})})


def words(parent: Element, at: tuple[float, float], text: str, style: Style = LABEL, anchor: str = "start") -> None:
    """Write words; `at` is where their base line starts, or for the anchor "middle" its middle."""
    place = {"x": number(at[0]), "y": number(at[1])}
    look = {"font-size": number(style.size), "fill": style.colour}
    bold = {"font-weight": style.weight} if style.weight != "normal" else {}
    middle = {"text-anchor": anchor} if anchor != "start" else {}
    SubElement(parent, "text", {**place, **look, **bold, **middle}).text = clean(text)


def tell(parent: Element, *lines: str) -> None:
    """Give a title: what is said of an element that is pointed at or read aloud."""
    SubElement(parent, "title").text = "\n".join(map(clean, lines))


def clean(text: str) -> str:
    """The text on one line, without the characters that XML cannot hold; those that it escapes stay."""
    return NOT_XML.sub("\ufffd", " ".join(text.split()))


def extent(text: str, style: Style = LABEL) -> float:
    """About how many pixels wide the text is, in the widest of the fonts."""
    return sum(map(_advance, text)) * style.size * (1.12 if style.weight == "bold" else 1)


def _advance(letter: str) -> float:
    """A letter's width in font sizes."""
    if unicodedata.east_asian_width(letter) in "WF" or letter in "MWmw@%":
        return 1.0
    return 0.72 if letter.isupper() else 0.32 if letter in " .,:;ijl|'()" else 0.62


def clip(text: str, width: float, style: Style = LABEL) -> str:
    """The text on one line, cut to a width in pixels; what is cut ends in dots."""
    text = clean(text)
    if len(text) <= width and extent(text, style) <= width:
        return text
    text = text[: int(width)]  # no letter is narrower than a pixel, and a name can have a million
    while text and extent(text + "…", style) > width:
        text = text[:-1]
    return text + "…"

"""What all drawn pictures share: figures as PNG bytes, names as a font can show them."""

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks shows boxes
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def short(name: str, most: int = 16) -> str:
    """A name of at most so many letters; bytes that are no text are written out."""
    name = name.encode("utf-8", "backslashreplace").decode()
    return name if len(name) <= most else name[: most - 1] + "…"

"""What the pictures of experiments share: colours that colour-blind people tell apart, quiet axes, SVG and PNG."""

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008); residual and plain have the same two colours everywhere.
RESIDUAL, PLAIN = "#0072B2", "#D55E00"
THIRD, FOURTH, QUIET_GREY = "#009E73", "#CC79A7", "#8a8f98"
MAP = "viridis"


def figure(columns: int = 1, rows: int = 1, *, width: float = 7.0, height: float = 3.6) -> "tuple[Figure, list[Axes]]":
    """A figure with its axes in reading order; sizes in inches, of the whole."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    axes = [made.add_subplot(rows, columns, i + 1) for i in range(columns * rows)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8)
        each.title.set_fontsize(10)
    return made, axes


def svg(made: "Figure") -> str:
    """The figure as SVG text, the same bytes for the same figure."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "skipway", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the text stays text, and the reader has other fonts
        made.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]

"""How all charts look: one style, colours that colour-blind readers tell apart, and files that depend on what is drawn.

The same picture gives the same bytes.
"""

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, AXIS, LINE = "#1c2330", "#8a8a8a", "#dfe3e8"
# Okabe and Ito's, darkened where they would be faint as lines.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b0568a", "#a67500", "#111111", "#6b6b6b", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "<", ">", "P")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": AXIS,
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "legend.frameon": False,
    "text.parse_math": False,  # names of metrics are shown as they are
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxalign",
}
_DPI = 200


def draw(width: float, height: float, paint: Callable[[Figure], str]) -> tuple[bytes, str, str]:
    """A figure of that size in inches, drawn by `paint`, which says it in words: as PNG, as SVG, and the words."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        words = paint(figure)
        # Without version and date, so that the bytes depend on the picture alone.
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, dpi=_DPI, metadata={"Software": None})
        figure.set_layout_engine("none")  # it has done its work, which is slow
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue().decode(), words

"""The one look of all plots: figures made without pyplot, so that nothing is global and nothing stays open."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; the pale yellow is left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
POSITIVE, NEGATIVE = COLORS[1], COLORS[0]
INK, FAINT, GRID = "#24292f", "#8c959f", "#e4e8ec"
DPI = 200
"""Twice the density the page shows figures at, for sharp print and screens: an inch is 100 px on the page."""

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same everywhere
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # a class may be called "$x$"
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
}


@contextmanager
def figure(
    path: Path, width: float, height: float, *, layout: Literal["constrained"] | None = "constrained"
) -> Iterator[Figure]:
    """Give a figure of a size in inches in the common style, and write it as PNG when the block ends."""
    with mpl.rc_context(_STYLE):
        drawn = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(drawn)
        yield drawn
        # No software entry: the same numbers give the same bytes.
        drawn.savefig(path, dpi=DPI, format="png", metadata={"Software": None})


@contextmanager
def panels(
    path: Path, n: int, *, x: str, y: str, columns: int = 4, side: float = 1.9
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Give a figure of `n` small square panels with common axes, named `x` and `y`.

    Everything is placed by inches: finding a layout for dozens of axes takes longer than drawing them.
    """
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    left, right, top, bottom, gap_x, gap_y = 0.6, 0.15, 0.6, 0.55, 0.22, 0.58
    width = left + columns * side + (columns - 1) * gap_x + right
    height = top + rows * side + (rows - 1) * gap_y + bottom
    with figure(path, width, height, layout=None) as drawn:
        grid = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        drawn.subplots_adjust(
            left=left / width,
            right=1 - right / width,
            top=1 - top / height,
            bottom=bottom / height,
            wspace=gap_x / side,
            hspace=gap_y / side,
        )
        axes = list(grid.ravel())
        for unused in axes[n:]:
            unused.set_visible(False)
        for lowest in axes[max(0, n - columns) : n]:  # the last panel of each column shows the scale
            lowest.tick_params(labelbottom=True)
        drawn.supxlabel(x, x=(left + width - right) / 2 / width, y=0.1 / height, fontsize=9)
        drawn.supylabel(y, x=0.08 / width, y=(bottom + height - top) / 2 / height, fontsize=9)
        yield drawn, axes[:n]


def shorten(name: str, limit: int = 26) -> str:
    """Return a name that fits its place."""
    return name if len(name) <= limit else name[: limit - 1].rstrip() + "…"

"""What the report's charts share: colours, layout, and the conversion to SVG and PNG.

Charts are drawn in the colours of the light theme. In the dark theme the page inverts them with a CSS filter, see
``templates/style.css.j2``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ..charts import PLAIN_TEXT, to_bytes

INK, MUTED, RULE, PAPER = "#1c1e21", "#666a70", "#e3e2dd", "#fcfbf8"
SEQUENTIAL, DIVERGING = "YlGnBu", "PuOr_r"  # readable with red-green colour blindness

FONT = 12.0
"""Text size in CSS pixels: one unit of SVG is one pixel."""

WIDE, HALF, PANEL = 800, 470, 230
"""Widths of charts in pixels: across the page, two side by side, one of many."""

STYLE: Any = PLAIN_TEXT | {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial"],
    "font.size": FONT,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": RULE,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": FONT - 1,
    "axes.titlelocation": "left",
    "axes.titlesize": FONT,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: the browser's fonts have glyphs that matplotlib's lacks
    "svg.hashsalt": "cawa_fast",  # equal figures give equal files
}
_TICKS = {"color": MUTED, "labelsize": FONT - 1, "major.size": 0, "minor.size": 0, "major.pad": 5}
STYLE |= {f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()}
"""matplotlib's settings for all charts."""


# ------------------------------------------------------------------------------------------------------------ colours


@dataclass(frozen=True)
class RunStyle:
    """How charts and legends show a run."""

    colour: str
    line: Any
    marker: str


_RUN_COLOURS = ("#2563ae", "#c9511f", "#14846c", "#87499f", "#8f6b00", "#5a6068")  # distinct when red-green blind
_RUN_LINES = (("-", "o"), ((0, (4, 2)), "s"), ((0, (1, 1.5)), "^"))


def run_style(number: int) -> RunStyle:
    """Style of the run with this number, from 0. After six runs the colours repeat with another line and marker."""
    line, marker = _RUN_LINES[number // len(_RUN_COLOURS) % len(_RUN_LINES)]
    return RunStyle(_RUN_COLOURS[number % len(_RUN_COLOURS)], line, marker)


def class_colour(rank: int, num_classes: int) -> str:
    """Colour of a class: from green for rank 0, the most frequent class, to dark violet for the rarest."""
    return to_hex(matplotlib.colormaps["viridis"](0.78 * (1 - rank / max(num_classes - 1, 1))))


# The parts of an epoch in the order of a bar: training in blue, validation in grey, what CAWA adds in orange.
PARTS = {
    "data": ("training: data", "#b7cce6"),
    "forward": ("training: forward", "#88addb"),
    "loss": ("training: loss", "#2563ae"),
    "backward": ("training: backward", "#5587c6"),
    "optimizer": ("training: optimizer", "#9fb9d6"),
    "val_data": ("validation: data", "#dcdad4"),
    "val_forward": ("validation: forward", "#bab7b0"),
    "val_metric": ("validation: metric", "#98958d"),
    "observe": ("CAWA: observe", "#c9511f"),
    "sample_data": ("CAWA: data of the sample", "#f0c4ae"),
    "sample_forward": ("CAWA: forward of the sample", "#dd8a64"),
    "step": ("CAWA: step", "#e58b5f"),
    "checkpoint": ("checkpoint", "#cbbfd6"),
    "other": ("everything else", "#eceae5"),
}
"""Name and colour of each part of an epoch."""


# ------------------------------------------------------------------------------------------------------------ figures


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in pixels. matplotlib's layout makes room for labels, legends and titles."""
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def to_svg(figure: Figure) -> bytes:
    """The figure as an SVG file with a transparent background."""
    return to_bytes(figure, STYLE, format="svg", transparent=True, metadata={"Date": None})


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file at twice its size."""
    return to_bytes(figure, STYLE, format="png", dpi=144, facecolor=PAPER)


# ------------------------------------------------------------------------------------------------------ text in charts


def seconds_text(value: float) -> str:
    """Seconds with three significant digits and at most four decimals.

    >>> seconds_text(123.4), seconds_text(3.8), seconds_text(0.03)
    ('123', '3.80', '0.0300')
    """
    value = float(f"{value:.3g}")
    for digits, least in ((0, 100), (1, 10), (2, 1), (3, 0.1)):
        if value >= least:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


@dataclass(frozen=True)
class LineEnd:
    """The last point of a line in a chart, in data coordinates, and the label to write beside it."""

    x: float
    y: float
    label: str
    colour: str
    bold: bool = False


def label_line_ends(figure: Figure, axes: Axes, ends: Sequence[LineEnd]) -> None:
    """Write labels at the right edge of a chart, each as near to its line's end as the other labels allow.

    Call it after the limits of both axes are set.
    """
    to_fraction = axes.transData + axes.transAxes.inverted()
    points = [to_fraction.transform((end.x, end.y)) for end in ends]
    width, height = figure.get_size_inches() * 72
    gap = 1.15 * FONT / (height - 50)  # title and ticks take about 50 pixels
    places = spread([float(np.nan_to_num(y)) for _, y in points], gap, 0, 1)
    for end, (x, y), place in zip(ends, points, places, strict=True):
        axes.annotate(
            end.label,
            (float(x), float(np.nan_to_num(y))),
            (1 + 25 / width, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=FONT - 0.5,
            fontweight="bold" if end.bold else "normal",
            va="center",
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.7, "shrinkB": 3, "relpos": (0, 0.5)},
        )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least ``gap`` apart, nearest to ``wanted`` by least squares, within [low, high] if they fit.

    Without the gaps this is isotonic regression, here by its min-max formula.

    >>> spread([5.0, 5.0, 20.0], 4, 0, 30)
    [3.0, 7.0, 20.0]
    """
    count = len(wanted)
    order = np.argsort(wanted, kind="stable")
    gaps = gap * np.arange(count)
    target = np.asarray(wanted, dtype=float)[order] - gaps
    fitted = [max(min(target[i : j + 1].mean() for j in range(k, count)) for i in range(k + 1)) for k in range(count)]
    places = np.empty(count)
    places[order] = np.clip(fitted, low, max(low, high - gap * (count - 1))) + gaps
    return places.tolist()

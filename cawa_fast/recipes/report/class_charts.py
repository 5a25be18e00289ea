"""Charts with a row per class: changes of the IoU, values over epochs, confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..runs.compare import share_text
from ..text import shorten
from .figures import DIVERGING, FONT, HALF, INK, MUTED, SEQUENTIAL, STYLE, WIDE, RunStyle, new_figure

MOST_ROWS = 40
"""Rows of :func:`change_chart`, at most."""

_LEGIBLE = 44  # names beside a chart of this many rows can still be read


@dataclass(frozen=True)
class ClassChange:
    """How much the IoU of one class changed from the baseline.

    Attributes:
        label: the class.
        share: of the training set's labelled pixels.
        changes: change in points and style of each run; None if the validation images lack the class.
    """

    label: str
    share: float
    changes: Sequence[tuple[float | None, RunStyle]]

    @property
    def largest(self) -> float:
        """The largest absolute change of any run, 0 without values."""
        return max((abs(change) for change, _ in self.changes if change is not None), default=0.0)

    @property
    def known(self) -> bool:
        """Whether any run has a value."""
        return any(change is not None for change, _ in self.changes)


def change_caption(classes: Sequence[ClassChange]) -> str:
    """Which classes :func:`change_chart` leaves out, and which were not trained; empty if there are none.

    >>> classes = [ClassChange("road", 0.4, [(1.0, None)]), ClassChange("bus", 0.0, [(0.0, None)])]
    >>> change_caption([*classes, ClassChange("rider", 0.1, [(None, None)])])
    'Not in the training images: bus. Not in the validation images: rider.'
    """
    known = sum(one.known for one in classes)
    sentences = [f"The chart shows the {MOST_ROWS} classes that changed most."] if known > MOST_ROWS else []
    if untrained := [one.label for one in classes if not one.share]:
        sentences.append(f"Not in the training images: {', '.join(untrained)}.")
    if unknown := [one.label for one in classes if not one.known]:
        sentences.append(f"Not in the validation images: {', '.join(unknown)}.")
    return " ".join(sentences)


@matplotlib.rc_context(STYLE)
def change_chart(classes: Sequence[ClassChange]) -> Figure:
    """Change of the IoU of each class: a row per class, with a dot and a line from 0 for each run.

    Args:
        classes: the rows from top to bottom. Of more than :data:`MOST_ROWS` those that changed most are drawn.
    """
    known = [one for one in classes if one.known]
    most = sorted(known, key=lambda one: -one.largest)[:MOST_ROWS]
    shown = [one for one in known if one in most]
    runs = max((len(one.changes) for one in shown), default=1)
    row = max(20, 9 * runs + 8)
    figure = new_figure(WIDE, row * max(len(shown), 3) + 50)
    axes = figure.subplots()
    for place, one in enumerate(shown):
        for number, (change, style) in enumerate(one.changes):
            if change is not None:
                y = place + (number - (runs - 1) / 2) * 9 / row
                axes.plot((0, change), (y, y), color=style.colour, linewidth=1.2, alpha=0.6)
                axes.plot(change, y, style.marker, color=style.colour, markersize=6, clip_on=False)
    axes.axvline(0, color=MUTED, linewidth=0.9)
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x")
    names = [f"{shorten(one.label, 0.3 * WIDE)}  {share_text(one.share)} %" for one in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=(1, 2, 2.5, 5, 10)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
    axes.set_xlabel("change of the IoU in points")
    return figure


@matplotlib.rc_context(STYLE)
def class_grid(
    values: np.ndarray, names: Sequence[str], epochs: Sequence[int], width: int, *, title: str, kind: str
) -> Figure:
    """A grid of colours: a value of each class (rows) in each epoch (columns).

    Args:
        values: ``(C, E)``; cells of NaN stay empty.
        names: the classes; left out if there are too many to read.
        epochs: the columns.
        width: of the figure in pixels.
        title: above the grid.
        kind: "share" for values from 0 to 1, shown in %; "factor" for positive values on a logarithmic scale around
            1; "amount" for positive values on a logarithmic scale.
    """
    cell = 15 if len(names) <= 24 else 11 if len(names) <= _LEGIBLE else 2
    figure = new_figure(width, max(cell * len(names), 120) + 66)
    axes = figure.subplots()
    norm, colours = _colour_scale(values, kind)
    image = axes.imshow(
        np.ma.masked_invalid(values),
        norm=norm,
        cmap=colours,
        aspect="auto",
        interpolation="none",
        extent=(0.5, len(epochs) + 0.5, len(names) - 0.5, -0.5),
    )
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_title(title)
    labels = [shorten(name, 0.4 * width) for name in names] if len(names) <= _LEGIBLE else []
    axes.set_yticks(range(len(labels)), labels, fontsize=min(FONT - 1, cell))
    ticks = MaxNLocator(nbins=6, integer=True, min_n_ticks=1).tick_values(1, len(epochs))
    places = [int(tick) for tick in ticks if 1 <= tick <= len(epochs)] or [1]
    axes.set_xticks(places, [str(epochs[place - 1]) for place in places])
    axes.set_xlabel("epoch")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=16)
    bar.outline.set_visible(False)
    if kind == "share":
        bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
    else:
        steps = np.geomspace(norm.vmin or 1, norm.vmax or 1, 3).tolist()
        bar.set_ticks(steps, labels=[f"{step:.2g}" for step in steps])
        bar.minorticks_off()
    return figure


def _colour_scale(values: np.ndarray, kind: str) -> tuple[Normalize, str]:
    if kind == "share":
        return Normalize(0, 1), SEQUENTIAL
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 1.0)
    if kind == "amount":
        return LogNorm(low / 1.02, high * 1.02), SEQUENTIAL
    most = max(high, 1 / low, 1.1)
    return LogNorm(1 / most, most), DIVERGING


@matplotlib.rc_context(STYLE)
def confusion_chart(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Of the pixels of each true class (rows) the share predicted as each class (columns), in %.

    Args:
        matrix: ``(C, C)`` pixels, rows = ground truth. Rows without pixels stay empty.
        names: the classes in the order of ``matrix``; left out, as the numbers are, if there are too many to read.
    """
    total = matrix.sum(1, keepdims=True)
    share = np.where(total > 0, matrix / np.maximum(total, 1), np.nan)
    labels = [shorten(name, 0.35 * HALF) for name in names] if len(names) <= 32 else []
    figure = new_figure(HALF, HALF)
    axes = figure.subplots()
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.imshow(np.ma.masked_invalid(share), norm=Normalize(0, 1), cmap=SEQUENTIAL, interpolation="none")
    cell = 0.75 * HALF / len(names)
    axes.set_yticks(range(len(labels)), labels, fontsize=min(FONT - 1, cell))
    axes.set_xticks(range(len(labels)), labels, fontsize=min(FONT - 1, cell), rotation=90)
    axes.xaxis.tick_top()
    font = min(FONT - 1, 0.42 * cell)
    if labels and font >= 6.5:  # smaller numbers cannot be read
        for (row, column), value in np.ndenumerate(share):
            if np.isfinite(value) and value >= 0.005:
                colour = "white" if value > 0.55 else INK
                axes.text(column, row, f"{100 * value:.0f}", color=colour, fontsize=font, ha="center", va="center")
    return figure

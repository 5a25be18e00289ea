"""Charts over the epochs of training, and of the time that an epoch takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from ..text import shorten
from .figures import (
    FONT,
    INK,
    MUTED,
    PARTS,
    STYLE,
    WIDE,
    LineEnd,
    RunStyle,
    label_line_ends,
    new_figure,
    seconds_text,
)


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: written at the line's end; None for no label.
        epochs: horizontal positions.
        values: one per epoch; None leaves a gap.
        colour, line: as matplotlib takes them.
    """

    label: str | None
    epochs: Sequence[int]
    values: Sequence[float | None]
    colour: str
    line: Any = "-"

    @property
    def last(self) -> tuple[int, float] | None:
        """The last epoch with a value, and the value."""
        known = [(e, value) for e, value in zip(self.epochs, self.values, strict=True) if value is not None]
        return known[-1] if known else None


@matplotlib.rc_context(STYLE)
def line_chart(
    series: Sequence[Series],
    width: int,
    height: int,
    *,
    log: bool = False,
    title: str = "",
    unit: str = "",
    ticks: int = 5,
    show_last: bool = False,
) -> Figure:
    """Lines over epochs, with each label at its line's end.

    Args:
        series: the lines; later ones are drawn over earlier ones.
        width, height: of the figure in pixels.
        log: use a logarithmic vertical axis with ticks at powers of two and a line at 1. The linear axis starts at 0.
        title: above the chart.
        unit: after each value of the vertical axis.
        ticks: largest number of ticks of the vertical axis.
        show_last: write the last value after the label.
    """
    figure = new_figure(width, height)
    axes = figure.subplots()
    _draw_lines(axes, series)
    _scale_values(axes, series, log, unit, ticks)
    if title:
        axes.set_title(title)
    ends = []
    for line in series:
        if line.label and line.last:
            text = shorten(line.label, 0.4 * width) + (f" {line.last[1]:.1f}" if show_last else "")
            ends.append(LineEnd(*line.last, text, line.colour))
    label_line_ends(figure, axes, ends)
    return figure


@matplotlib.rc_context(STYLE)
def class_panels(
    groups: Sequence[tuple[str, Sequence[Series]]], runs: Sequence[tuple[str, RunStyle]], columns: int = 4
) -> Figure:
    """Small charts in one figure for the PNG file: the IoU of each class over epochs. The page shows them one by one.

    Args:
        groups: title and lines of each chart.
        runs: name and style of each run, for the legend.
        columns: charts in a row.
    """
    rows = -(-len(groups) // columns)
    width = 240 * columns
    labels = [shorten(name, width - 100) for name, _ in runs]
    legend_columns = max(1, int(width / (40 + 0.62 * FONT * max(map(len, labels)))))
    figure = new_figure(width, 150 * rows + 20 + 20 * -(-len(runs) // legend_columns))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, lines) in zip(grid, groups, strict=False):
        _draw_lines(axes, lines)
        _scale_values(axes, lines, False, " %", 3)
        axes.set_title(shorten(title, 190), fontweight="normal")
    for axes in grid[len(groups) :]:
        axes.set_axis_off()
    handles = [Line2D([], [], color=style.colour, linestyle=style.line) for _, style in runs]
    figure.legend(handles, labels, loc="outside upper left", ncols=legend_columns)
    return figure


@matplotlib.rc_context(STYLE)
def time_bars(bars: Sequence[tuple[str, dict[str, float], float]]) -> Figure:
    """The seconds of an epoch: a horizontal bar per run, made of the parts of the epoch.

    Args:
        bars: of each run the label, the seconds of :data:`PARTS` in their order, and the seconds of the whole epoch.
    """
    figure = new_figure(WIDE, 34 * len(bars) + 50)
    axes = figure.subplots()
    for index, (_, parts, _) in enumerate(bars):
        left = 0.0
        for part, seconds in parts.items():
            axes.barh(index, seconds, left=left, height=0.6, color=PARTS[part][1], linewidth=0)
            left += seconds
    axes.set_yticks(
        range(len(bars)), [f"{shorten(label, 0.3 * WIDE)}, {seconds_text(total)} s" for label, _, total in bars]
    )
    axes.tick_params(axis="y", labelcolor=INK, labelsize=FONT)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, max((sum(parts.values()) for _, parts, _ in bars), default=0.0) or 1.0)
    axes.grid(visible=False)
    axes.set_xlabel("seconds per epoch")
    return figure


def _draw_lines(axes: Axes, series: Sequence[Series]) -> None:
    any_label = any(line.label for line in series)
    few = max(len(line.epochs) for line in series) <= 12
    for line in series:
        faint = any_label and not line.label  # stays in the background of the lines with labels
        axes.plot(
            list(line.epochs),
            [np.nan if value is None else value for value in line.values],
            color=line.colour,
            linestyle=line.line,
            linewidth=0.8 if faint else 1.8,
            alpha=0.45 if faint else 1,
            zorder=2 if faint else 2.5,
            marker="o" if few else None,
            markersize=3.5,
            clip_on=False,
        )
    epochs = [epoch for line in series for epoch in line.epochs]
    margin = 0.5 if min(epochs) == max(epochs) else 0
    axes.set_xlim(min(epochs) - margin, max(epochs) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")


def _scale_values(axes: Axes, series: Sequence[Series], log: bool, unit: str, ticks: int) -> None:
    values = [value for line in series for value in line.values if value is not None]
    if not values:
        center: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "no values", color=MUTED, **center)
        axes.set_yticks([])
        return
    if log:
        axes.axhline(1, color=MUTED, linewidth=0.9, zorder=1)  # matplotlib warns if nothing on a log axis is positive
        axes.set_yscale("log", base=2, nonpositive="mask")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, 1.06 * max(values) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")

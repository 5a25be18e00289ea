"""Charts over epochs, and of an epoch's time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

from .figures import FONT, Paint, dashes, new_axes, new_figure, repeats, seconds_text, shorten, spread


@dataclass(frozen=True)
class Series:
    """One line: ``values[i]`` belongs to ``epochs[i]``, None where there is none; without ``label`` it gets no name."""

    label: str | None
    epochs: Sequence[int]
    values: Sequence[float | None]
    colour: str


def line_chart(
    series: Sequence[Series],
    paint: Paint,
    size: tuple[int, int],
    *,
    log: bool = False,
    title: str = "",
    unit: str = "",
    ticks: int = 5,
    show_last: bool = False,
) -> Figure:
    """Lines over epochs, each named at its end.

    Args:
        series: the lines, later ones in front.
        paint: colours.
        size: width and height in CSS pixels.
        log: logarithmic axis in powers of two, around a line at 1; otherwise the axis begins at 0.
        title: above the chart.
        unit: behind the vertical axis's values.
        ticks: about how many ticks the vertical axis has.
        show_last: append the last value to the name.
    """
    width, height = size
    figure = new_figure(size)
    named = [line for line in series if line.label]
    labels = [_last_label(line, show_last, 0.4 * width) for line in named]
    right = 22 + 0.56 * FONT * max(map(len, labels)) if labels else 10
    top = 26 if title else 12
    box = (34, 24, width - 34 - right, height - 24 - top)
    axes = new_axes(figure, paint, box)
    _draw_lines(axes, series, paint)
    known = [value for line in series for value in line.values if value is not None]
    _scale(axes, known, log, unit, ticks, paint)
    _epoch_axis(axes, (box[2], box[3]), paint)
    if title:
        figure.text(0, 1 - 3 / height, title, color=paint("ink"), fontsize=FONT, fontweight="bold", va="top")
    _name_lines(axes, (box[2], box[3]), named, labels, paint)
    return figure


def time_bars(bars: Sequence[tuple[str, dict[str, float], float]], paint: Paint, width: int) -> Figure:
    """One horizontal bar per run: the seconds of :data:`PARTS`, stacked in their order, and those of the epoch."""
    row, bottom = 54, 40
    height = row * len(bars) + bottom
    figure = new_figure((width, height))
    axes = new_axes(figure, paint, (2, bottom, width - 4 - 16, height - bottom))
    longest = max((sum(parts.values()) for _, parts, _ in bars), default=0) or 1.0
    for index, (label, parts, total) in enumerate(bars):
        left = 0.0
        for part, seconds in parts.items():
            axes.barh(index, seconds, left=left, height=0.42, color=paint(f"part-{part}"), linewidth=0)
            left += seconds
        axes.text(
            0,
            index - 0.3,
            f"{shorten(label, width - 80)}, {seconds_text(total)} s",
            color=paint("ink"),
            fontsize=FONT,
            va="bottom",
            parse_math=False,
        )
    axes.set_ylim(len(bars) - 0.7, -0.75)
    axes.set_xlim(0, longest)
    axes.yaxis.set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=max(2, width // 110)))
    axes.set_xlabel("seconds per epoch", color=paint("muted"), fontsize=FONT - 1, loc="left", labelpad=4)
    return figure


def panels(
    groups: Sequence[tuple[str, Sequence[Series]]],
    names: Sequence[tuple[str, str]],
    paint: Paint,
    *,
    unit: str = "",
    columns: int = 4,
) -> Figure:
    """Small line charts in one figure, for a PNG file; the page itself lays them out one by one.

    Args:
        groups: a title and lines for each.
        names: what a colour means, for the legend.
        paint: colours.
        unit: behind the vertical axes' values.
        columns: charts in a row.
    """
    cell_width, cell_height = 240, 150
    rows = -(-len(groups) // columns)
    width, left, line = cell_width * columns, 42.0, 0
    legend: list[tuple[float, int, str, str]] = []
    for name, colour in names:
        label = f"{('—', '– –', '···')[repeats(colour) % 3]} {shorten(name, width - 100)}"
        length = (len(label) + 3) * 0.62 * FONT
        if legend and left + length > width:
            left, line = 42.0, line + 1
        legend.append((left, 6 + 18 * line, label, colour))
        left += length
    height = cell_height * rows + 24 + 18 * line
    figure = new_figure((width, height))
    for left, top, label, colour in legend:
        position = (left / width, 1 - top / height)
        figure.text(*position, label, color=paint(colour), fontsize=FONT, va="top", parse_math=False)
    for index, (title, series) in enumerate(groups):
        column, bottom = index % columns, cell_height * (rows - 1 - index // columns)
        axes = new_axes(figure, paint, (cell_width * column + 42, bottom + 30, cell_width - 58, cell_height - 56))
        _draw_lines(axes, series, paint)
        _scale(axes, [v for line in series for v in line.values if v is not None], False, unit, 3, paint)
        _epoch_axis(axes, (cell_width - 58, cell_height - 56), paint)
        title = shorten(title, cell_width - 50)
        axes.set_title(title, color=paint("ink"), fontsize=FONT, loc="left", parse_math=False)
    return figure


def _scale(axes: Axes, values: Sequence[float], log: bool, unit: str, ticks: int, paint: Paint) -> None:
    if not values:
        axes.text(
            0.5,
            0.5,
            "no values",
            transform=axes.transAxes,
            color=paint("muted"),
            fontsize=FONT,
            ha="center",
            va="center",
        )
        axes.set_yticks([])
        return
    if not log:
        axes.set_ylim(0, 1.06 * max(values) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=ticks, steps=(1, 2, 2.5, 5, 10)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
        return
    positive = [value for value in values if value > 0]
    low = np.floor(2 * np.log2(min(positive, default=1.0) / 1.04)) / 2
    high = np.ceil(2 * np.log2(1.04 * max(positive, default=1.0))) / 2
    axes.set_ylim(2**low, 2**high)  # first: a scale of its own choice would warn where nothing is positive
    axes.set_yscale("log", base=2, nonpositive="mask")
    axes.yaxis.set_major_locator(FixedLocator([2.0**k for k in range(int(np.ceil(low)), int(np.floor(high)) + 1)]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.axhline(1, color=paint("muted"), linewidth=0.9, zorder=1)


def _draw_lines(axes: Axes, series: Sequence[Series], paint: Paint) -> None:
    named = any(line.label for line in series)
    few = max(len(line.epochs) for line in series) <= 12
    for line in series:
        faint = named and not line.label  # one of many lines, behind those that have a name
        axes.plot(
            list(line.epochs),
            [np.nan if value is None else value for value in line.values],
            color=paint(line.colour),
            linestyle=dashes(line.colour),
            linewidth=0.8 if faint else 1.8,
            alpha=0.45 if faint else 1,
            zorder=2 if faint else 2.5,
            marker="o" if few else None,
            markersize=3.5,
            solid_capstyle="round",
            solid_joinstyle="round",
            clip_on=False,
        )
    epochs = [epoch for line in series for epoch in line.epochs]
    axes.set_xlim(min(epochs) - 0.5 * (min(epochs) == max(epochs)), max(epochs) + 0.5 * (min(epochs) == max(epochs)))


def _epoch_axis(axes: Axes, size: tuple[float, float], paint: Paint) -> None:
    """Whole epochs, with the word "epoch" in the place of the first ticks; ``size`` of the axes is in pixels."""
    axes.text(
        0,
        -5 / size[1],
        "epoch",
        transform=axes.transAxes,
        color=paint("muted"),
        fontsize=FONT - 1,
        va="top",
    )
    first, last = axes.get_xlim()
    ticks = MaxNLocator(nbins=max(2, int(size[0] / 70)), integer=True, min_n_ticks=1).tick_values(first, last)
    room = 48 / size[0] * (last - first)
    between = [tick for tick in ticks if first + room <= tick <= last - 0.6 * room]
    axes.set_xticks([*between, last] if last.is_integer() else between)  # a single epoch stands in the middle


def _last_label(line: Series, show_last: bool, width: float) -> str:
    last = next((value for value in reversed(line.values) if value is not None), None)
    label = shorten(str(line.label), width)
    return f"{label} {last:.1f}" if show_last and last is not None else label


def _name_lines(
    axes: Axes, size: tuple[float, float], lines: Sequence[Series], labels: Sequence[str], paint: Paint
) -> None:
    """Each label at the right edge, as near to its line's end as the others allow, with a hairline between.

    ``size`` of the axes is in pixels.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    width, height = size
    ends = []
    for line, label in zip(lines, labels, strict=True):
        known = [(epoch, value) for epoch, value in zip(line.epochs, line.values, strict=True) if value is not None]
        if known:
            x, y = to_axes.transform(known[-1])
            ends.append((float(x), float(y) if np.isfinite(y) else 0.0, label, line.colour))
    places = spread([end[1] * height for end in ends], 1.12 * FONT, 0, height)
    for (x, y, label, colour), place in zip(ends, places, strict=True):
        axes.plot(
            (x + 4 / width, 1 + 14 / width),
            (y, place / height),
            transform=axes.transAxes,
            clip_on=False,
            color=paint(colour),
            linewidth=0.7,
            linestyle="-" if x > 0.99 else (0, (1, 4)),  # dots: the run has ended before the others
        )
        axes.text(
            1 + 17 / width,
            place / height,
            label,
            transform=axes.transAxes,
            color=paint("ink"),
            fontsize=FONT - 0.5,
            va="center_baseline",
            parse_math=False,
        )

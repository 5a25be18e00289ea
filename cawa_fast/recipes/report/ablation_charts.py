"""Charts of an ablation: dots over settings, lines over the values of one setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figures import FONT, Paint, new_axes, new_figure, shorten, spread

_LETTER = 0.56 * FONT  # mean width of a letter


@dataclass(frozen=True)
class Dots:
    """One setting: its name, its colour, and in each column the values of its seeds."""

    label: str
    colour: str
    values: Sequence[Sequence[float]]


def dot_chart(rows: Sequence[Dots], columns: Sequence[str], paint: Paint, width: int, against: int | None) -> Figure:
    """A line per setting, a panel per measure: a pale dot per seed and a full one at their mean.

    Args:
        rows: from top to bottom.
        columns: the measures' names.
        paint: colours.
        width: in CSS pixels.
        against: the row whose mean is drawn as a line through each panel.
    """
    narrow = width < 500
    labels = [shorten(row.label, width - 20 if narrow else 0.4 * width) for row in rows]
    row_height, top, bottom = (38 if narrow else 24), 26, 24
    height = row_height * len(rows) + top + bottom
    left = 6 if narrow else 14 + round(_LETTER * max(map(len, labels)))
    figure = new_figure((width, height))
    gap = 18
    panel = (width - left - 14 - gap * (len(columns) - 1)) / len(columns)
    for number, title in enumerate(columns):
        axes = new_axes(figure, paint, (left + number * (panel + gap), bottom, panel, row_height * len(rows)))
        axes.grid(visible=False)
        axes.grid(visible=True, axis="x", color=paint("rule"), linewidth=0.8)
        for place, row in enumerate(rows):
            values = row.values[number]
            if not len(values):
                continue
            axes.plot((min(values), max(values)), (place, place), color=paint(row.colour), linewidth=1.6, alpha=0.45)
            axes.plot(values, [place] * len(values), "o", color=paint(row.colour), markersize=4, alpha=0.45, mew=0)
            axes.plot(float(np.mean(values)), place, "o", color=paint(row.colour), markersize=7.5, zorder=3)
        if against is not None and rows[against].values[number]:
            base = float(np.mean(rows[against].values[number]))
            axes.axvline(base, color=paint("muted"), linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.set_ylim(len(rows) - 0.5, -0.8 if narrow else -0.5)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=max(2, int(panel / 60)), steps=(1, 2, 2.5, 5, 10)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_yticks([])
        axes.set_title(title, color=paint("ink"), fontsize=FONT, fontweight="bold", loc="left")
        if number == 0:
            for place, label in enumerate(labels):
                style: dict[str, Any] = {"va": "bottom"} if narrow else {"va": "center_baseline", "ha": "right"}
                style |= {"transform": axes.get_yaxis_transform(), "fontsize": FONT - 0.5, "parse_math": False}
                x, y = (0.0, place - 0.18) if narrow else (-8 / panel, float(place))
                axes.text(x, y, label, color=paint("ink"), **style)
    return figure


@dataclass(frozen=True)
class Curve:
    """One line of a sweep: mean and deviation over seeds at each value of the setting."""

    label: str
    colour: str
    places: Sequence[float]
    means: Sequence[float]
    deviations: Sequence[float | None]
    bold: bool = False


def sweep_chart(
    curves: Sequence[Curve], paint: Paint, size: tuple[int, int], *, setting: str, used: float | None = None
) -> Figure:
    """Values in % over a setting's values, with the deviation over seeds as bars, each line named at its end.

    Args:
        curves: the lines.
        paint: colours.
        size: width and height in CSS pixels.
        setting: name of the horizontal axis.
        used: the value of all other rows, marked by a line.
    """
    width, height = size
    labels = [shorten(curve.label, 0.4 * width) for curve in curves]
    right = 26 + round(_LETTER * max(map(len, labels)))
    box = (34, 40, width - 34 - right, height - 40 - 12)
    figure = new_figure(size)
    axes = new_axes(figure, paint, box)
    if used is not None:
        axes.axvline(used, color=paint("muted"), linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for curve in curves:
        bars = [0.0 if sd is None else sd for sd in curve.deviations]
        axes.errorbar(
            curve.places,
            curve.means,
            yerr=bars,
            color=paint(curve.colour),
            linewidth=2.2 if curve.bold else 1.2,
            elinewidth=1,
            marker="o",
            markersize=5 if curve.bold else 3.5,
            capsize=0,
            zorder=3 if curve.bold else 2,
        )
    places = sorted({place for curve in curves for place in curve.places})
    axes.set_xticks(places, [f"{place:g}" for place in places])
    tops = [m + (d or 0) for c in curves for m, d in zip(c.means, c.deviations, strict=True)]
    axes.set_ylim(0, 1.06 * max(tops, default=1.0) or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_xlabel(setting, color=paint("muted"), fontsize=FONT - 1, loc="left", labelpad=4)
    highest = axes.get_ylim()[1]
    ends = [curve.means[-1] / highest * box[3] for curve in curves]
    x = (axes.transData + axes.transAxes.inverted()).transform((curves[0].places[-1], 0))[0]
    places = spread(ends, 1.15 * FONT, 0, box[3])
    for curve, label, end, place in zip(curves, labels, ends, places, strict=True):
        axes.plot(
            (x + 5 / box[2], 1 + 14 / box[2]),
            (end / box[3], place / box[3]),
            transform=axes.transAxes,
            color=paint(curve.colour),
            linewidth=0.7,
            clip_on=False,
        )
        axes.text(
            1 + 17 / box[2],
            place / box[3],
            label,
            transform=axes.transAxes,
            color=paint("ink"),
            fontsize=FONT - 0.5,
            fontweight="bold" if curve.bold else "normal",
            va="center_baseline",
            parse_math=False,
        )
    return figure

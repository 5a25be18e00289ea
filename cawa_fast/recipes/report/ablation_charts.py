"""Charts of an ablation: settings side by side, and a sweep over the values of one setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..text import shorten
from .figures import INK, MUTED, STYLE, WIDE, LineEnd, label_line_ends, new_figure

_DASHED: Any = {"color": MUTED, "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 1}


@dataclass(frozen=True)
class SettingDots:
    """One row of :func:`dot_chart`: a setting, and for each measure the values of its seeds."""

    label: str
    colour: str
    values: Sequence[Sequence[float]]


@matplotlib.rc_context(STYLE)
def dot_chart(rows: Sequence[SettingDots], measures: Sequence[str], baseline: int | None) -> Figure:
    """A row per setting and a panel per measure, with a pale dot for each seed and a full dot at their mean.

    Args:
        rows: from top to bottom.
        measures: titles of the panels.
        baseline: number of the row whose mean is drawn as a dashed line.
    """
    figure = new_figure(WIDE, 24 * len(rows) + 50)
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for number, (axes, title) in enumerate(zip(panels, measures, strict=True)):
        axes.grid(visible=False)
        axes.grid(visible=True, axis="x")
        for place, row in enumerate(rows):
            values = row.values[number]
            if not values:
                continue
            axes.plot((min(values), max(values)), (place, place), color=row.colour, linewidth=1.6, alpha=0.45)
            axes.plot(values, [place] * len(values), "o", color=row.colour, markersize=4, alpha=0.45, mew=0)
            axes.plot(float(np.mean(values)), place, "o", color=row.colour, markersize=7.5, zorder=3)
        if baseline is not None and rows[baseline].values[number]:
            axes.axvline(float(np.mean(rows[baseline].values[number])), **_DASHED)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=(1, 2, 2.5, 5, 10)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_title(title)
    panels[0].set_yticks(range(len(rows)), [shorten(row.label, 0.35 * WIDE) for row in rows])
    panels[0].tick_params(axis="y", labelcolor=INK)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


@dataclass(frozen=True)
class SweepCurve:
    """One line of :func:`sweep_chart`: mean and standard deviation over seeds for each value of the setting."""

    label: str
    colour: str
    places: Sequence[float]
    means: Sequence[float]
    deviations: Sequence[float | None]
    bold: bool = False


@matplotlib.rc_context(STYLE)
def sweep_chart(curves: Sequence[SweepCurve], *, setting: str, used: float | None = None) -> Figure:
    """Values in % over the values of a setting, with standard deviations as bars and labels at the lines' ends.

    Args:
        curves: the lines.
        setting: name of the horizontal axis.
        used: the value that all other rows of the ablation have, drawn as a dashed line.
    """
    figure = new_figure(WIDE, 340)
    axes = figure.subplots()
    if used is not None:
        axes.axvline(used, **_DASHED)
    for curve in curves:
        axes.errorbar(
            curve.places,
            curve.means,
            yerr=[deviation or 0.0 for deviation in curve.deviations],
            color=curve.colour,
            linewidth=2.2 if curve.bold else 1.2,
            elinewidth=1,
            marker="o",
            markersize=5 if curve.bold else 3.5,
            zorder=3 if curve.bold else 2,
        )
    places = sorted({place for curve in curves for place in curve.places})
    axes.set_xticks(places, [f"{place:g}" for place in places])
    tops = [m + (d or 0) for c in curves for m, d in zip(c.means, c.deviations, strict=True)]
    axes.set_ylim(0, 1.06 * max(tops, default=1.0) or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_xlabel(setting)
    ends = [
        LineEnd(curve.places[-1], curve.means[-1], shorten(curve.label, 0.4 * WIDE), curve.colour, curve.bold)
        for curve in curves
    ]
    label_line_ends(figure, axes, ends)
    return figure

"""Charts across classes, and across settings: gains, grids, dots with their spread, sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from .figures import FONT, Paint, new_axes, new_figure, repeats, share_tick, shorten

_LETTER = 0.56 * FONT  # mean width of a letter
SEQUENTIAL, DIVERGING = "cividis", "PuOr_r"  # both are told apart by people who see red and green alike


# ------------------------------------------------------------------------------------------------- share and gain


@dataclass(frozen=True)
class Gain:
    """One class: its share of the training pixels, and each run's gain in points (None: undefined) with its colour."""

    label: str
    share: float
    gains: Sequence[tuple[float | None, str]]

    @property
    def largest(self) -> float:
        return max((abs(gain) for gain, _ in self.gains if gain is not None), default=0.0)

    @property
    def known(self) -> bool:
        """Whether a run has a gain: the class is in the validation images."""
        return any(gain is not None for gain, _ in self.gains)


def left_out(classes: Sequence[Gain]) -> str:
    """Which classes :func:`gain_chart` cannot show, and why, in a sentence or two; empty if it shows all.

    Example:
        >>> left_out([Gain("road", 0.4, [(1.0, "run1")]), Gain("bus", 0.0, []), Gain("rider", 0.1, [(None, "run1")])])
        'Left out for want of training pixels: bus. Left out for want of validation pixels: rider.'
    """
    untrained = [one.label for one in classes if not one.share]
    unseen = [one.label for one in classes if one.share and not one.known]
    reasons = ("training", untrained), ("validation", unseen)
    return " ".join(f"Left out for want of {split} pixels: {', '.join(names)}." for split, names in reasons if names)


def gain_chart(classes: Sequence[Gain], paint: Paint, size: tuple[int, int], most_labels: int = 24) -> Figure:
    """Share of the pixels (logarithmic) against the gain in IoU: a stem per class and run, from 0 to the gain.

    Args:
        classes: what to draw; those with the largest gains or losses are named.
        paint: colours.
        size: width and height in CSS pixels.
        most_labels: names at most.
    """
    width, height = size
    figure = new_figure(size)
    axes = new_axes(figure, paint, (40, 40, width - 40 - 14, height - 40 - 14))
    shown = [one for one in classes if one.share and one.known]
    for one in shown:
        for gain, colour in one.gains:
            if gain is not None:
                axes.plot((one.share, one.share), (0, gain), color=paint(colour), linewidth=1, alpha=0.5)
                shape = "os^"[repeats(colour) % 3]
                axes.plot(one.share, gain, shape, color=paint(colour), markersize=5.5, alpha=0.9, zorder=3)
    axes.axhline(0, color=paint("muted"), linewidth=0.9)
    gains = [gain for one in shown for gain, _ in one.gains if gain is not None] or [0.0]
    low, high = min(0.0, *gains), max(0.0, *gains)
    margin = 0.12 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    shares = [one.share for one in shown] or [0.1, 1.0]
    axes.set_xscale("log")
    axes.set_xlim(min(shares) / 1.6, min(1.0, max(shares)) * 2.2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if max(shares) / min(shares) < 300 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: share_tick(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=(1, 2, 2.5, 5, 10)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
    axes.set_xlabel("share of the training pixels", color=paint("muted"), fontsize=FONT - 1, loc="right", labelpad=3)
    _name_points(axes, sorted(shown, key=lambda one: -one.largest), most_labels, paint)
    return figure


def _name_points(axes: Axes, classes: Sequence[Gain], most: int, paint: Paint) -> None:
    """Names beside the outermost dots of the first classes, in the first of some places that nothing has taken."""
    box = axes.get_window_extent()

    def dots(one: Gain) -> list[tuple[float, float]]:
        known = [gain for gain, _ in one.gains if gain is not None]
        return [tuple(axes.transData.transform((one.share, gain))) for gain in known]

    taken = [(x - 4, y - 4, x + 4, y + 4) for one in classes for x, y in dots(one)]
    for one in classes[:most]:
        _, y0 = axes.transData.transform((one.share, 0))
        x, y = max(dots(one), key=lambda dot: abs(dot[1] - y0))
        label = shorten(one.label, box.width / 3)
        length, high = _LETTER * len(label), 1.05 * FONT
        outward = 1 if y >= y0 else -1
        places = [(x - length / 2, y + outward * 0.95 * FONT), (x + 8, y), (x - 8 - length, y)]
        places += [(x - length / 2, y + outward * k * FONT) for k in (1.9, 2.8, -0.95)]
        for left, middle in places:
            place = (left, middle - high / 2, left + length, middle + high / 2)
            inside = box.x0 <= place[0] and place[2] <= box.x1 + 10 and box.y0 <= place[1] and place[3] <= box.y1 + 8
            if inside and not any(_overlap(place, other) for other in taken):
                taken.append(place)
                at_x, at_y = axes.transAxes.inverted().transform((left, middle))
                style: dict[str, Any] = {"va": "center_baseline", "fontsize": FONT - 1, "parse_math": False}
                axes.text(at_x, at_y, label, transform=axes.transAxes, color=paint("ink"), **style)
                break


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# ----------------------------------------------------------------------------------------------------------- grids


def class_grid(
    values: np.ndarray,
    names: Sequence[str],
    epochs: Sequence[int],
    paint: Paint,
    width: int,
    *,
    title: str,
    kind: str,
) -> Figure:
    """A value of each class (rows) in each epoch (columns) as a grid of colours with its scale.

    Args:
        values: ``(C, E)``; NaN is left blank.
        names: of the classes, one per row; not shown where there are too many to read.
        epochs: one per column.
        paint: colours.
        width: in CSS pixels.
        title: above the grid.
        kind: "share" (0 to 1, in %), "factor" (positive, logarithmic around 1) or "amount" (positive, logarithmic).
    """
    many = len(names) > 44
    names = [shorten(name, 0.4 * width) for name in names]
    cell = 15 if len(names) <= 24 else 11 if not many else 2
    left = 14 if many else 12 + round(_LETTER * 0.92 * max(map(len, names)))
    grid_height = max(cell * len(names), 120)
    height = grid_height + 24 + 34
    figure = new_figure((width, height))
    box = (left, 24, width - left - 64, grid_height)
    axes = new_axes(figure, paint, box)
    axes.grid(visible=False)
    norm, colours = _scale_of(values, kind)
    image = axes.imshow(
        np.ma.masked_invalid(values),
        norm=norm,
        cmap=colours,
        aspect="auto",
        interpolation="none",
        extent=(0.5, len(epochs) + 0.5, len(names) - 0.5, -0.5),
    )
    axes.spines["bottom"].set_visible(False)
    axes.set_yticks([] if many else range(len(names)), [] if many else list(names), fontsize=min(FONT - 1, cell))
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    ticks = MaxNLocator(nbins=max(2, int(box[2] / 60)), integer=True, min_n_ticks=1).tick_values(1, len(epochs))
    places = [int(tick) for tick in ticks if 1 <= tick <= len(epochs)] or [1]
    axes.set_xticks(places, [str(epochs[place - 1]) for place in places])
    figure.text(0, 1 - 3 / height, title, color=paint("ink"), fontsize=FONT, fontweight="bold", va="top")
    scale = figure.add_axes(((left + box[2] + 10) / width, 24 / height, 9 / width, grid_height / height))
    bar = figure.colorbar(image, cax=scale)
    bar.outline.set_visible(False)
    scale.tick_params(length=0, pad=4, labelsize=FONT - 1.5, colors=paint("muted"))
    scale.minorticks_off()
    _scale_ticks(scale, norm, kind)
    return figure


def _scale_of(values: np.ndarray, kind: str) -> tuple[Normalize, str]:
    if kind == "share":
        return Normalize(0, 1), SEQUENTIAL
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 1.0)
    if kind == "amount":
        return LogNorm(low / 1.02, high * 1.02), SEQUENTIAL
    most = max(high, 1 / low, 1.1)
    return LogNorm(1 / most, most), DIVERGING


def _scale_ticks(scale: Axes, norm: Normalize, kind: str) -> None:
    if kind == "share":
        scale.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        return
    low, high = float(norm.vmin or 1), float(norm.vmax or 1)
    steps = 2.0 ** np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1)
    if len(steps) < 2:
        steps = np.array([low, 1.0, high] if low < 1 < high else [low, high])
    steps = steps[:: max(1, len(steps) // 6)]
    scale.yaxis.set_major_locator(FixedLocator(list(steps)))
    scale.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    scale.yaxis.set_minor_formatter(NullFormatter())


def confusion_chart(matrix: np.ndarray, names: Sequence[str], paint: Paint, width: int) -> Figure:
    """Of each class's pixels (rows: ground truth) the share that is taken for each class (columns), in %.

    Args:
        matrix: ``(C, C)`` pixels, rows = ground truth, in the order of ``names``. Rows without pixels are left blank.
        names: of the classes; they and the numbers are not shown where there are too many to read.
        paint: colours.
        width: in CSS pixels.
    """
    total = matrix.sum(1, keepdims=True)
    share = np.where(total > 0, matrix / np.maximum(total, 1), np.nan)
    named = len(names) <= 32
    names = [shorten(name, 0.4 * width) for name in names]
    left = 10 + round(_LETTER * max(map(len, names))) if named else 8
    right = 8
    side = width - left - right
    top = left if named else 8
    height = side + top + 6
    figure = new_figure((width, round(height)))
    axes = new_axes(figure, paint, (left, 4, side, side))
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.imshow(np.ma.masked_invalid(share), norm=Normalize(0, 1), cmap=SEQUENTIAL, interpolation="none")
    cell = side / len(names)
    font = min(FONT - 1, 0.42 * cell)
    ticks = range(len(names)) if named else ()
    axes.set_yticks(ticks, names if named else (), fontsize=min(FONT - 1, cell))
    axes.set_xticks(ticks, names if named else (), fontsize=min(FONT - 1, cell), rotation=90)
    axes.xaxis.tick_top()
    for label in (*axes.get_yticklabels(), *axes.get_xticklabels()):
        label.set_parse_math(False)
    if named and font >= 6.5:  # smaller digits cannot be read
        bright = matplotlib.colormaps[SEQUENTIAL]
        for (row, column), value in np.ndenumerate(share):
            if np.isfinite(value) and value >= 0.005:
                luminance = np.dot(bright(value)[:3], (0.299, 0.587, 0.114))
                tone = paint("on-bright" if luminance > 0.5 else "on-dark")
                axes.text(column, row, f"{100 * value:.0f}", color=tone, fontsize=font, ha="center", va="center")
    return figure

"""Figures of values by class. matplotlib is imported when a figure is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

_ROW = 0.17  # inches per class: text of 8 points
_MARGIN = 1.1


class Panel(NamedTuple):
    """A grid of colours: a value of each class (rows) at each step (columns).

    Attributes:
        title: above the grid.
        values: of each step a list by class; cells of NaN stay empty.
        around_one: whether the values are factors, shown on a logarithmic scale around 1; else fractions in [0, 1].
    """

    title: str
    values: Sequence[Sequence[float]]
    around_one: bool


def names_of(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """The names of the classes, or their indices."""
    return tuple(map(str, range(num_classes) if class_names is None else class_names))


def draw_steps(panels: Sequence[Panel], names: Sequence[str], steps: Sequence[int]) -> tuple[Any, Any]:
    """Panels side by side, with a row for each class, and the value at the last step to its right.

    Args:
        panels: what is drawn.
        names: of the classes.
        steps: numbers of the steps, one after the other.

    Returns:
        The figure and an array of its axes.
    """
    figure, axes = _new_figure(len(panels), len(names))
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import MaxNLocator

    for axis, panel in zip(axes, panels, strict=True):
        if panel.around_one:
            finite = [abs(math.log(value)) for row in panel.values for value in row if 0 < value < math.inf]
            largest = math.exp(max([*finite, math.log(1.5)]))
            norm: Normalize = LogNorm(1 / largest, largest)
            colours = "RdBu_r"
        else:
            norm, colours = Normalize(0, 1), "viridis"
        by_class = [list(row) for row in zip(*panel.values, strict=True)]
        image = axis.imshow(
            [[max(value, norm.vmin) for value in row] for row in by_class],  # a logarithm has no colour for 0
            norm=norm,
            cmap=colours,
            aspect="auto",
            interpolation="none",
            extent=(steps[0] - 0.5, steps[-1] + 0.5, len(names) - 0.5, -0.5),
        )
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        last = axis.secondary_yaxis("right")
        last.set_yticks(range(len(names)), [_short(row[-1]) for row in by_class], fontsize=8)
        last.tick_params(length=0)
        share = min(1, 3 / (_ROW * len(names)))  # at most three inches high, also beside many classes
        bar = figure.colorbar(image, ax=axis, pad=0.04, aspect=20, shrink=share, anchor=(0, 1))
        bar.ax.tick_params(labelsize=8)
        if panel.around_one:
            ticks = [largest**power for power in (-1, -0.5, 0, 0.5, 1)]
            bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
            bar.minorticks_off()
    axes[0].set_yticks(range(len(names)), [_plain(name) for name in names], fontsize=8)
    for axis in axes[1:]:
        axis.set_yticks([])
    return figure, axes


def draw_bars(values: Sequence[float], names: Sequence[str], title: str, label: str) -> tuple[Any, Any]:
    """A bar for each class, in ``[0, 1]``, with its value; NaN has no bar.

    Returns:
        The figure and its axes.
    """
    figure, (axis,) = _new_figure(1, len(names))
    bars = axis.barh(range(len(names)), [0 if math.isnan(value) else value for value in values], height=0.7)
    axis.bar_label(bars, [_short(value) for value in values], padding=3, fontsize=8)
    axis.set_yticks(range(len(names)), [_plain(name) for name in names], fontsize=8)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(0, 1.08)
    axis.set_xlabel(label)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _new_figure(panels: int, rows: int) -> tuple[Any, Any]:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plot needs matplotlib; install it with: pip install matplotlib") from error
    figure, axes = plt.subplots(
        1, panels, squeeze=False, figsize=(4.8 * panels + 0.8, _ROW * max(rows, 6) + _MARGIN), layout="constrained"
    )
    return figure, axes[0]


def _plain(name: str) -> str:
    """``name`` such that matplotlib takes no ``$`` in it for the start of a formula."""
    return name.replace("$", r"\$")


def _short(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"

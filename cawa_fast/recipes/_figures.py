"""Charts of the report, as SVG in the page's own colours.

A chart is drawn once, in stand-in colours that :func:`to_svg` replaces by the page's CSS variables: one drawing then
follows the reader's light or dark scheme. For a PNG file the same drawing is made in the light scheme's colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator

Paint = Callable[[str], str]
"""From a colour's name on the page to one that matplotlib understands."""

# Name: light scheme, dark scheme. The runs' colours are told apart by people who see red and green alike.
_NAMED = {
    "ink": ("#1c1e21", "#e9e7e2"),
    "muted": ("#666a70", "#a2a39f"),
    "rule": ("#e3e2dd", "#32353a"),
    "paper": ("#fcfbf8", "#15171a"),
}
_RUNS = (
    ("#2563ae", "#74abed"),
    ("#c9511f", "#f3905f"),
    ("#14846c", "#4fc7a8"),
    ("#87499f", "#c892de"),
    ("#8f6b00", "#d8b24a"),
    ("#5a6068", "#b0b5bb"),
)
# The parts of an epoch, in the order of a bar: training in blue, validation in grey, what CAWA adds in orange.
PARTS = {
    "data": ("training: data", "#b7cce6", "#2c4666"),
    "forward": ("training: forward", "#88addb", "#3d6597"),
    "loss": ("training: loss", "#2563ae", "#74abed"),
    "backward": ("training: backward", "#5587c6", "#5286c6"),
    "optimizer": ("training: optimizer", "#9fb9d6", "#36567f"),
    "val_data": ("validation: data", "#dcdad4", "#3d4045"),
    "val_forward": ("validation: forward", "#bab7b0", "#5a5d62"),
    "val_metric": ("validation: metric", "#98958d", "#787b80"),
    "observe": ("CAWA: observe", "#c9511f", "#f3905f"),
    "step": ("CAWA: step", "#e58b5f", "#c86a3a"),
    "checkpoint": ("checkpoint", "#cbbfd6", "#55465f"),
    "other": ("everything else", "#eceae5", "#2b2d31"),
}
_STAND_IN = re.compile(r"#fe([0-9a-f]{4})", re.IGNORECASE)
_FONT = 12.0  # CSS pixels; figures are laid out with one unit of SVG to the pixel


class Colours:
    """Every named colour of the page: ``light`` and ``dark`` from name to hexadecimal code.

    Args:
        num_runs: colours ``run0``, ``run1``, ...; they repeat after six.
        num_classes: colours ``class0`` (the most frequent) to the rarest, which stands out most in either scheme.
    """

    def __init__(self, num_runs: int, num_classes: int) -> None:
        pairs = dict(_NAMED)
        pairs |= {f"run{i}": _RUNS[i % len(_RUNS)] for i in range(num_runs)}
        pairs |= {f"part-{part}": (light, dark) for part, (_, light, dark) in PARTS.items()}
        scale = matplotlib.colormaps["viridis"]
        for rank in range(num_classes):
            rarity = rank / max(num_classes - 1, 1)
            pairs[f"class{rank}"] = to_hex(scale(0.78 * (1 - rarity))), to_hex(scale(0.34 + 0.66 * rarity))
        self.light = {name: pair[0] for name, pair in pairs.items()}
        self.dark = {name: pair[1] for name, pair in pairs.items()}
        self._names = list(pairs)

    def stand_in(self, name: str) -> str:
        """The colour that :func:`to_svg` turns into ``var(--name)``."""
        return f"#fe{self._names.index(name):04x}"

    def variables(self, svg: str) -> str:
        """The drawing with stand-ins replaced."""
        return _STAND_IN.sub(lambda match: f"var(--{self._names[int(match[1], 16)]})", svg)


def to_svg(figure: Figure, colours: Colours, name: str, alt: str) -> str:
    """The figure as an ``<svg>`` element for an HTML page: its text stays text, its ids begin with ``name``."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    body = re.sub(r"font: (?:(\d+) )?([\d.]+)px [^;\"]*", r"font-weight: \1; font-size: \2px", body)
    body = colours.variables(body.replace("font-weight: ;", ""))
    width, height = figure.get_size_inches() * 72
    alt = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{alt}">{body}'


def to_png(figure: Figure, colours: Colours) -> bytes:
    """The figure as a PNG file on the light scheme's paper, two dots to the pixel."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor=colours.light["paper"])
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------------- charts


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
    figure = _figure(size)
    named = [line for line in series if line.label]
    labels = [_last_label(line, show_last) for line in named]
    right = 22 + 0.56 * _FONT * max(map(len, labels)) if labels else 10
    top = 26 if title else 12
    box = (34, 24, width - 34 - right, height - 24 - top)
    axes = _axes(figure, paint, box)
    _draw_lines(axes, series, paint)
    known = [value for line in series for value in line.values if value is not None]
    _scale(axes, known, log, unit, ticks, paint)
    _epoch_axis(axes, (box[2], box[3]), paint)
    if title:
        figure.text(0, 1 - 3 / height, title, color=paint("ink"), fontsize=_FONT, fontweight="bold", va="top")
    _name_lines(axes, (box[2], box[3]), named, labels, paint)
    return figure


def time_bars(bars: Sequence[tuple[str, dict[str, float]]], paint: Paint, width: int) -> Figure:
    """One horizontal bar per run: the seconds of :data:`PARTS`, stacked in their order."""
    row, bottom = 54, 40
    height = row * len(bars) + bottom
    figure = _figure((width, height))
    axes = _axes(figure, paint, (2, bottom, width - 4 - 16, height - bottom))
    longest = max((sum(parts.values()) for _, parts in bars), default=0) or 1.0
    for index, (label, parts) in enumerate(bars):
        left = 0.0
        for part, seconds in parts.items():
            axes.barh(index, seconds, left=left, height=0.42, color=paint(f"part-{part}"), linewidth=0)
            left += seconds
        axes.text(
            0,
            index - 0.3,
            f"{label}, {seconds_text(left)} s",
            color=paint("ink"),
            fontsize=_FONT,
            va="bottom",
            parse_math=False,
        )
    axes.set_ylim(len(bars) - 0.7, -0.75)
    axes.set_xlim(0, longest)
    axes.yaxis.set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=max(2, width // 110)))
    axes.set_xlabel("seconds per epoch", color=paint("muted"), fontsize=_FONT - 1, loc="left", labelpad=4)
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
    cell_width, cell_height, legend = 240, 150, 24
    rows = -(-len(groups) // columns)
    width, height = cell_width * columns, cell_height * rows + legend
    figure = _figure((width, height))
    left = 42.0
    for label, colour in names:
        position = (left / width, 1 - 6 / height)
        figure.text(*position, f"— {label}", color=paint(colour), fontsize=_FONT, va="top", parse_math=False)
        left += (len(label) + 5) * 0.62 * _FONT
    for index, (title, series) in enumerate(groups):
        column, bottom = index % columns, cell_height * (rows - 1 - index // columns)
        axes = _axes(figure, paint, (cell_width * column + 42, bottom + 30, cell_width - 58, cell_height - 56))
        _draw_lines(axes, series, paint)
        _scale(axes, [v for line in series for v in line.values if v is not None], False, unit, 3, paint)
        _epoch_axis(axes, (cell_width - 58, cell_height - 56), paint)
        axes.set_title(title, color=paint("ink"), fontsize=_FONT, loc="left", parse_math=False)
    return figure


def seconds_text(value: float) -> str:
    """Seconds with three significant digits, at most four decimals."""
    value = float(f"{value:.3g}")
    for digits, least in ((0, 100), (1, 10), (2, 1), (3, 0.1)):
        if value >= least:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


def _figure(size: tuple[int, int]) -> Figure:
    return Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)


def _axes(figure: Figure, paint: Paint, box: tuple[float, float, float, float]) -> Axes:
    """Axes at ``box`` (left, bottom, width, height in pixels): a base line and pale horizontal rules, nothing else."""
    width, height = figure.get_size_inches() * 72
    axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    axes.set_facecolor("none")
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=paint("rule"), zorder=1)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=paint("rule"), linewidth=0.8)
    axes.tick_params(length=0, pad=5, labelsize=_FONT - 1, colors=paint("muted"))
    return axes


def _scale(axes: Axes, values: Sequence[float], log: bool, unit: str, ticks: int, paint: Paint) -> None:
    if not values:
        axes.text(
            0.5,
            0.5,
            "no values",
            transform=axes.transAxes,
            color=paint("muted"),
            fontsize=_FONT,
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
        fontsize=_FONT - 1,
        va="top",
    )
    first, last = axes.get_xlim()
    ticks = MaxNLocator(nbins=max(2, int(size[0] / 70)), integer=True, min_n_ticks=1).tick_values(first, last)
    room = 48 / size[0] * (last - first)
    between = [tick for tick in ticks if first + room <= tick <= last - 0.6 * room]
    axes.set_xticks([*between, last] if last.is_integer() else between)  # a single epoch stands in the middle


def _last_label(line: Series, show_last: bool) -> str:
    last = next((value for value in reversed(line.values) if value is not None), None)
    return f"{line.label} {last:.1f}" if show_last and last is not None else str(line.label)


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
    places = spread([end[1] * height for end in ends], 1.12 * _FONT, 0, height)
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
            fontsize=_FONT - 0.5,
            va="center_baseline",
            parse_math=False,
        )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least ``gap`` apart and as near to ``wanted`` as simple means go, within [low, high] if they fit.

    >>> spread([5.0, 5.0, 20.0], 4, 0, 30)
    [3.0, 7.0, 20.0]
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    up: list[float] = []
    for index in order:
        up.append(max(wanted[index], up[-1] + gap if up else low))
    down: list[float] = []
    for index in reversed(order):
        down.append(min(wanted[index], down[-1] - gap if down else high))
    # Both keep the gap, so their mean does too; then push back what has left the range.
    middle = [(a + b) / 2 for a, b in zip(up, reversed(down), strict=True)]
    for k in range(len(middle)):
        middle[k] = max(middle[k], middle[k - 1] + gap if k else low)
    for k in reversed(range(len(middle))):
        middle[k] = min(middle[k], middle[k + 1] - gap if k + 1 < len(middle) else high)
    places = [0.0] * len(wanted)
    for index, place in zip(order, middle, strict=True):
        places[index] = place
    return places

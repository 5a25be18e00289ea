"""Charts of the report, as SVG in the page's own colours.

A chart is drawn once, in stand-in colours that :func:`to_svg` replaces by the page's CSS variables: one drawing then
follows the reader's light or dark scheme. For a PNG file the same drawing is made in the light scheme's colours.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

Paint = Callable[[str], str]
"""From a colour's name on the page to one that matplotlib understands."""

# Name: light scheme, dark scheme. The runs' colours are told apart by people who see red and green alike.
_NAMED = {
    "ink": ("#1c1e21", "#e9e7e2"),
    "muted": ("#666a70", "#a2a39f"),
    "rule": ("#e3e2dd", "#32353a"),
    "paper": ("#fcfbf8", "#15171a"),
    "on-bright": ("#1c1e21", "#1c1e21"),
    "on-dark": ("#fcfbf8", "#fcfbf8"),
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
    "sample_data": ("CAWA: data of the sample", "#f0c4ae", "#7a4023"),
    "sample_forward": ("CAWA: forward of the sample", "#dd8a64", "#a85c34"),
    "step": ("CAWA: step", "#e58b5f", "#c86a3a"),
    "checkpoint": ("checkpoint", "#cbbfd6", "#55465f"),
    "other": ("everything else", "#eceae5", "#2b2d31"),
}
_STAND_IN = re.compile(r"#fe([0-9a-f]{4})", re.IGNORECASE)
FONT = 12.0  # CSS pixels; figures are laid out with one unit of SVG to the pixel


class Colours:
    """Every named colour of the page: ``light`` and ``dark`` from name to hexadecimal code.

    Args:
        num_runs: colours ``run0``, ``run1``, ...; they repeat after six, see :func:`repeats`.
        num_classes: colours ``class0`` (the most frequent) to the rarest, which stands out most in either scheme; of
            the data set with the most classes.
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
        self._num_classes = num_classes

    def of_class(self, rank: int, num_classes: int) -> str:
        """Name of the colour of a data set's class: whatever the number of its classes, they span the whole scale."""
        return f"class{round(rank * (self._num_classes - 1) / max(num_classes - 1, 1))}"

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
        options: dict[str, Any] = {
            "transparent": True,
            "metadata": dict.fromkeys(("Creator", "Date", "Format", "Type")),
        }
        with warnings.catch_warnings():  # what matplotlib's font lacks, the browser's has
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing")
            figure.savefig(buffer, format="svg", **options)
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    body = body.replace('xlink:href="data:', 'href="data:')
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


# --------------------------------------------------------------------------------------------------- parts of charts


def seconds_text(value: float) -> str:
    """Seconds with three significant digits, at most four decimals."""
    value = float(f"{value:.3g}")
    for digits, least in ((0, 100), (1, 10), (2, 1), (3, 0.1)):
        if value >= least:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


def share_tick(share: float) -> str:
    """A share in %, as short as a tick wants it.

    >>> share_tick(0.3), share_tick(0.01), share_tick(0.00003)
    ('30 %', '1 %', '0.003 %')
    """
    return f"{100 * share:.12g} %"


def shorten(text: str, width: float, size: float = FONT) -> str:
    """The text, without its middle where it is longer than about ``width`` pixels.

    >>> shorten("building", 100), shorten("television receiver", 80)
    ('building', 'telev…eiver')
    """
    letters = max(int(width / (0.56 * size)), 3)
    if len(text) <= letters:
        return text
    return f"{text[: letters // 2]}…{text[len(text) - (letters - 1) // 2 :]}"


def repeats(colour: str) -> int:
    """How many runs before this one have its colour: their lines and dots must differ in another way.

    >>> repeats("run5"), repeats("run6"), repeats("muted")
    (0, 1, 0)
    """
    return int(colour.removeprefix("run")) // len(_RUNS) if colour.startswith("run") else 0


def dashes(colour: str) -> Any:
    """A line's style: dashed for the second run of a colour, dotted for the third."""
    return ("-", (0, (4, 2)), (0, (1, 1.5)))[repeats(colour) % 3]


def new_figure(size: tuple[int, int]) -> Figure:
    return Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)


def new_axes(figure: Figure, paint: Paint, box: tuple[float, float, float, float]) -> Axes:
    """Axes at ``box`` (left, bottom, width, height in pixels): a base line and pale horizontal rules, nothing else."""
    width, height = figure.get_size_inches() * 72
    axes = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    axes.set_facecolor("none")
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set(color=paint("rule"), zorder=1)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=paint("rule"), linewidth=0.8)
    axes.tick_params(length=0, pad=5, labelsize=FONT - 1, colors=paint("muted"))
    return axes


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

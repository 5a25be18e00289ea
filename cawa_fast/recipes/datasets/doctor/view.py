"""The output of ``cawa-fast doctor data``: findings and a table in the terminal, and a bar chart as a PNG file."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.text import Text

from ...files import atomic
from ...terminal import PlainTable, say
from ...text import one_line, shorten
from .checks import Finding
from .examine import Examination, SplitFacts
from .preflight import Preflight

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 3  # files and details shown of each finding
_BAR = 24  # characters
_NAME_WIDTH = 200  # of the names of classes in the chart, in points
_DECADES = 5  # powers of ten that a bar spans: from 0.001 % to 100 %
_MARKS = {"error": ("✗ error", "red"), "warning": ("! warning", "yellow"), "note": ("· note", "blue")}
_BLUE, _ORANGE = "#2563ae", "#e07b39"  # distinct in red-green colour blindness


def show(examination: Examination, console: Console) -> None:
    """Print what was understood of the class list, the facts, the table of classes and the findings."""
    if examination.class_list:
        say(console, examination.class_list)
    for split in examination.splits:
        say(console, (split.name, "bold"), _facts(split))
    if examination.splits:
        console.print(class_table(examination))
    show_findings(examination.findings, console)
    counts = [f"{n} {name}{'s' if n != 1 else ''}" for name in _MARKS if (n := examination.count(name))]
    say(console, f"{', '.join(counts)}." if counts else "No findings.")


def show_findings(findings: Sequence[Finding], console: Console, *, more: str = "--json has all") -> None:
    """Print findings with a few of their files; ``more`` says where the others are."""
    for finding in findings:
        say(console, _MARKS[finding.severity], " ", (finding.rule, "bold"), f" ({finding.split}): {finding.text}")
        for lines in (finding.details, finding.files):
            for line in lines[:_SHOWN]:
                say(console, f"      {line}")
            if len(lines) > _SHOWN:
                say(console, f"      and {len(lines) - _SHOWN} more ({more})")


def show_preflight(preflight: Preflight, console: Console, dataset: str, root: str) -> None:
    """Print what a run says of its data before its first batch, and how to check all of it."""
    show_findings(preflight.findings, console, more="cawa-fast doctor data --json FILE lists all")
    if preflight.findings or preflight.partial:
        part = f"Looked at {preflight.looked_at} of {preflight.pairs} pairs of files. " if preflight.partial else ""
        root = shlex.quote(root)
        say(console, f"{part}The full check: cawa-fast doctor data --dataset {dataset} --root {root}")


def _facts(split: SplitFacts) -> str:
    sizes = ", ".join(f"{n} of {size[1]}x{size[0]}" for size, n in split.sizes[:3])
    more = f" and {len(split.sizes) - 3} more sizes" if len(split.sizes) > 3 else ""
    pixels = sum(split.pixels) + split.ignored
    ignored = f"; {100 * split.ignored / pixels:.1f} % of the pixels are ignored" if pixels else ""
    speed = f", {split.read / split.seconds:.0f} a second" if split.read else ""
    return (
        f": {split.images} images ({sizes}{more}){ignored}. "
        f"{split.read} label maps read{speed}, the others were in the cache."
        if split.read < split.images
        else f": {split.images} images ({sizes}{more}){ignored}. "
        f"{split.read} label maps read in {split.seconds:.1f} s{speed}."
    )


def class_table(examination: Examination) -> Group:
    """A table of the classes, the most frequent in the first split first, with bars on a logarithmic scale."""
    table = PlainTable("Shares of the labelled pixels, and images with the class")
    table.add_numbers("", style="dim")
    table.add_names("Class", examination.class_names)
    for split in examination.splits:
        table.add_numbers(f"{split.name} %")
        table.add_numbers("images")
    table.add_numbers(f"{examination.splits[0].name}, log scale", justify="left")
    for index in by_share(examination.splits):
        cells = []
        for split in examination.splits:
            seen = split.pixels[index] > 0
            cells += [f"{100 * split.shares[index]:.3f}" if seen else "–", str(split.images_with[index])]
        row = [str(index), examination.class_names[index], *cells, bar(examination.splits[0].shares[index])]
        table.add_row(*row, style=None if examination.splits[0].pixels[index] else "red")
    return Group(table, Text(f"Bars are logarithmic: from {100 * 10.0**-_DECADES:g} % to 100 %.", style="dim"))


def by_share(splits: Sequence[SplitFacts]) -> list[int]:
    """Class indices by their pixels in the first split, the most first."""
    pixels = splits[0].pixels
    return sorted(range(len(pixels)), key=lambda index: (-pixels[index], index))


def bar(share: float) -> str:
    """A bar for the logarithm of a share in [0, 1]; a sliver below the lower end of the scale, empty for 0.

    >>> len(bar(1.0)), bar(0.0)
    (24, '')
    """
    if share <= 0:
        return ""
    eighths = round(8 * _BAR * (1 + math.log10(share) / _DECADES))
    if eighths < 1:
        return "▏"
    return "█" * (eighths // 8) + ("" if eighths % 8 == 0 else "▏▎▍▌▋▊▉"[eighths % 8 - 1])


def save_picture(examination: Examination, file: Path) -> None:
    """Write a bar chart of the classes' shares, one colour for each of the first two splits, on a logarithmic scale.

    Args:
        examination: with at least one split.
        file: the PNG file.
    """
    from ...charts import plain_text, to_bytes

    with plain_text():
        picture = to_bytes(_chart(examination), format="png")
    with atomic(file) as opened:
        opened.write(picture)


def _chart(examination: Examination) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    splits = examination.splits[:2]
    order = by_share(splits)
    height = 0.24 * len(order) + 1.3
    figure = Figure(figsize=(9, height), dpi=120, layout="constrained")
    axes = figure.subplots()
    thick = 0.8 / len(splits)
    least = min((share for split in splits for share in split.shares if share > 0), default=1e-5)
    floor = 10 ** math.floor(math.log10(least) - 0.05)
    bars = []
    for place, (split, colour) in enumerate(zip(splits, (_BLUE, _ORANGE), strict=False)):
        shares = [100 * split.shares[index] for index in order]
        rows = [row + (place - (len(splits) - 1) / 2) * thick for row in range(len(order))]
        bars.append(axes.barh(rows, shares, thick, color=colour))
        for row, index in zip(rows, order, strict=True):
            n = split.images_with[index]
            text = f" {n} images" if n else " never"
            at = max(100 * split.shares[index], 100 * floor)
            axes.text(at, row, text, va="center", fontsize=5.5 if len(splits) > 1 else 7, color="#444444")
    names = [shorten(examination.class_names[index], _NAME_WIDTH, 8) for index in order]
    axes.set_yticks(range(len(order)), names, fontsize=8)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(100 * floor, 300)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())  # the default one writes mathtext
    axes.set_xlabel("share of the labelled pixels, % (logarithmic)")
    axes.set_title(f"{examination.dataset}: {len(order)} classes", loc="left")
    axes.xaxis.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    labels = [one_line(f"{split.name}: {split.images} images") for split in splits]  # of "_x", too
    axes.legend(bars, labels, loc="lower right", frameon=False)
    return figure

"""The output of ``cawa-fast doctor data``: findings and a table in the terminal, and a bar chart as a PNG file."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ...files import atomic
from .checks import Finding
from .examine import Examination, SplitFacts
from .preflight import Preflight

_SHOWN = 3  # files and details shown of each finding
_BAR = 24  # characters
_DECADES = 5  # powers of ten that a bar spans: from 0.001 % to 100 %
_MARKS = {"error": "[red]✗ error[/]", "warning": "[yellow]! warning[/]", "note": "[blue]· note[/]"}
_BLUE, _ORANGE = "#2563ae", "#e07b39"  # distinct in red-green colour blindness


def show(examination: Examination, console: Console) -> None:
    """Print what was understood of the class list, the facts, the table of classes and the findings."""
    if examination.class_list:
        console.print(examination.class_list, highlight=False, markup=False)
    for split in examination.splits:
        console.print(_facts(split), highlight=False)
    if examination.splits:
        console.print(class_table(examination))
    show_findings(examination.findings, console)
    counts = [f"{n} {name}{'s' if n != 1 else ''}" for name in _MARKS if (n := examination.count(name))]
    console.print(f"{', '.join(counts)}." if counts else "No findings.", highlight=False)


def show_findings(findings: Sequence[Finding], console: Console, *, more: str = "--json has all") -> None:
    """Print findings with a few of their files; ``more`` says where the others are."""
    for finding in findings:
        console.print(
            f"{_MARKS[finding.severity]} [bold]{finding.rule}[/] ({escape(finding.split)}): {escape(finding.text)}",
            highlight=False,
        )
        for lines in (finding.details, finding.files):
            for line in lines[:_SHOWN]:
                console.print(f"      {line}", highlight=False, markup=False)
            if len(lines) > _SHOWN:
                console.print(f"      and {len(lines) - _SHOWN} more ({more})", highlight=False)


def show_preflight(preflight: Preflight, console: Console, dataset: str, root: str) -> None:
    """Print what a run says of its data before its first batch, and how to check all of it."""
    show_findings(preflight.findings, console, more="cawa-fast doctor data --json FILE lists all")
    if preflight.findings or preflight.partial:
        part = f"Looked at {preflight.looked_at} of {preflight.pairs} pairs of files. " if preflight.partial else ""
        console.print(
            f"{part}The full check: cawa-fast doctor data --dataset {dataset} --root {root}",
            highlight=False,
            markup=False,
        )


def _facts(split: SplitFacts) -> str:
    sizes = ", ".join(f"{n} of {size[1]}x{size[0]}" for size, n in split.sizes[:3])
    more = f" and {len(split.sizes) - 3} more sizes" if len(split.sizes) > 3 else ""
    pixels = sum(split.pixels) + split.ignored
    ignored = f"; {100 * split.ignored / pixels:.1f} % of the pixels are ignored" if pixels else ""
    speed = f", {split.read / split.seconds:.0f} a second" if split.read else ""
    return (
        f"[bold]{escape(split.name)}[/]: {split.images} images ({sizes}{more}){ignored}. "
        f"{split.read} label maps read{speed}, the others were in the cache."
        if split.read < split.images
        else f"[bold]{escape(split.name)}[/]: {split.images} images ({sizes}{more}){ignored}. "
        f"{split.read} label maps read in {split.seconds:.1f} s{speed}."
    )


def class_table(examination: Examination) -> Group:
    """A table of the classes, the most frequent in the first split first, with bars on a logarithmic scale."""
    table = Table(title="Shares of the labelled pixels, and images with the class", title_justify="left")
    table.add_column("", justify="right", style="dim")
    table.add_column("Class", no_wrap=True)
    for split in examination.splits:
        table.add_column(f"{split.name} %", justify="right", no_wrap=True)
        table.add_column("images", justify="right", no_wrap=True)
    table.add_column(f"{examination.splits[0].name}, log scale", no_wrap=True)
    for index in by_share(examination.splits):
        cells = []
        for split in examination.splits:
            seen = split.pixels[index] > 0
            cells += [f"{100 * split.shares[index]:.3f}" if seen else "–", str(split.images_with[index])]
        row = [str(index), escape(examination.class_names[index]), *cells, bar(examination.splits[0].shares[index])]
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
    from matplotlib.figure import Figure

    splits = examination.splits[:2]
    order = by_share(splits)
    height = 0.24 * len(order) + 1.3
    figure = Figure(figsize=(9, height), dpi=120, layout="constrained")
    axes = figure.subplots()
    thick = 0.8 / len(splits)
    least = min((share for split in splits for share in split.shares if share > 0), default=1e-5)
    floor = 10 ** math.floor(math.log10(least) - 0.05)
    for place, (split, colour) in enumerate(zip(splits, (_BLUE, _ORANGE), strict=False)):
        shares = [100 * split.shares[index] for index in order]
        rows = [row + (place - (len(splits) - 1) / 2) * thick for row in range(len(order))]
        axes.barh(rows, shares, thick, color=colour, label=f"{split.name}: {split.images} images")
        for row, index in zip(rows, order, strict=True):
            n = split.images_with[index]
            text = f" {n} images" if n else " never"
            at = max(100 * split.shares[index], 100 * floor)
            axes.text(at, row, text, va="center", fontsize=5.5 if len(splits) > 1 else 7, color="#444444")
    axes.set_yticks(range(len(order)), [examination.class_names[index] for index in order], fontsize=8)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(100 * floor, 300)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("share of the labelled pixels, % (logarithmic)")
    axes.set_title(f"{examination.dataset}: {len(order)} classes", loc="left")
    axes.xaxis.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower right", frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    with atomic(file) as opened:
        opened.write(picture.getvalue())

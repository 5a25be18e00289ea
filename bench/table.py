"""The one table renderer of the benchmarks, for Markdown and for the console, and how its cells are formatted."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

_MIB = 1024**2


class Column(NamedTuple):
    """A column: its title, the text of a row's cell, and whether it is aligned to the left."""

    title: str
    cell: Callable[[Any], str]
    left: bool = False


def markdown_table(columns: Sequence[Column], rows: Iterable[Any]) -> str:
    """A Markdown table whose columns line up as plain text too; empty without rows."""
    lines = [[column.title for column in columns], *_cells(columns, rows)]
    if len(lines) == 1:
        return ""
    widths = [max(3, *(_width(line[i]) for line in lines)) for i in range(len(columns))]

    def joined(cells: Sequence[str]) -> str:
        padding = [" " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)]
        padded = zip(columns, cells, padding, strict=True)
        return f"| {' | '.join(cell + space if column.left else space + cell for column, cell, space in padded)} |\n"

    rule = ["-" * (width if column.left else width - 1) for column, width in zip(columns, widths, strict=True)]
    rule = [text if column.left else text + ":" for column, text in zip(columns, rule, strict=True)]
    return joined(lines[0]) + joined(rule) + "".join(joined(line) for line in lines[1:])


def console_table(columns: Sequence[Column], rows: Iterable[Any], title: str) -> Table:
    """The same table for the console, with coloured marks for goals."""
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    for column in columns:
        table.add_column(column.title, justify="left" if column.left else "right", no_wrap=not column.left)
    for line in _cells(columns, rows):
        cells = [Text(cell) for cell in line]  # no markup: a cell may hold brackets
        for cell in cells:
            cell.highlight_words(["✓"], "green")
            cell.highlight_words(["✗"], "red")
        table.add_row(*cells)
    return table


def _cells(columns: Sequence[Column], rows: Iterable[Any]) -> list[list[str]]:
    return [[column.cell(row) for column in columns] for row in rows]


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


# ----------------------------------------------------------------------------------- cells: a dash for unknown values


def milliseconds(seconds: float | None) -> str:
    """A time in ms with three digits."""
    if seconds is None:
        return "–"
    value = 1000 * seconds
    if value < 0.1:
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    if seconds < 180:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 2 * 3600 else f"{seconds / 3600:.3g} h"


def times(value: float | None) -> str:
    """A ratio with three digits."""
    if value is None:
        return "–"
    return f"{value:.2f}x" if value < 9.95 else f"{value:.1f}x" if value < 99.5 else f"{value:.0f}x"


def percent(value: float | None, digits: int = 1) -> str:
    """A signed share of 1 in percent."""
    return "–" if value is None else f"{100 * value:+.{digits}f} %"


def spread(values: dict[str, float], digits: int = 1) -> str:
    """The median in percent, and the least and the most of the rounds."""
    least, most = (f"{100 * values[name]:+.{digits}f}" for name in ("least", "most"))
    return f"{percent(values['median'], digits)} ({least} … {most})"


def mebibytes(size: float | None) -> str:
    """Bytes in MiB."""
    if size is None:
        return "–"
    return "<1" if size < _MIB else f"{size / _MIB:.0f}"


def median_of(row: dict[str, Any], name: str) -> float | None:
    """Seconds of the implementation ``name`` in a row of a result."""
    found: float | None = row["contenders"].get(name, {}).get("median")
    return found


def peaks_of(row: dict[str, Any], *names: str) -> str:
    """Peak memory in MiB of some implementations in a row of a result."""
    return " / ".join(mebibytes(row["contenders"].get(name, {}).get("peak_bytes")) for name in names)


def machine_line(machine: dict[str, Any]) -> str:
    """CPU, threads, instruction sets, torch, commit and date."""
    ours = machine["instruction_set"] or ("instruction set unknown" if machine["compiler"] else "no compiled operators")
    return (
        f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, {ours} "
        f"(PyTorch: {machine['torch_instruction_set']}), torch {machine['torch']}, "
        f"commit {machine['commit'] or 'unknown'}, {machine['date']}"
    )

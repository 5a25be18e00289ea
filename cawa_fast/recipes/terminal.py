"""The terminal: text and tables that show users' text as it is. No output of the recipes is read as rich markup."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from .text import one_line, readable

_LONG_NAME = 24  # characters
_FILE_WIDTH = 160  # characters


def open_console() -> Console:
    """The console of a command. Characters that the terminal's encoding lacks are written as escapes.

    Where the output is no terminal, tables are as wide as they need to be, up to a limit.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _FILE_WIDTH
    return Console(soft_wrap=True, markup=False, emoji=False, highlight=False, width=width)


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print one paragraph; each part is text, or text and its style."""
    shown = [readable(part) if isinstance(part, str) else (readable(part[0]), part[1]) for part in parts]
    console.print(Text.assemble(*shown))


class PlainTable(Table):
    """A table whose title, headings and cells are text on one line; a cell of type ``Text`` may have a style."""

    def __init__(self, title: str) -> None:
        super().__init__(title=Text(one_line(title), style="table.title"), title_justify="left")

    def add_names(self, header: str, names: Iterable[str]) -> None:
        """Add a column for these names. If some are long it is folded, so that the numbers keep their room."""
        whole = all(cell_len(one_line(name)) <= _LONG_NAME for name in names)
        super().add_column(_plain(header), overflow="fold", no_wrap=whole)

    def add_text(self, header: str) -> None:
        """Add a column of text that is folded where it is too long."""
        super().add_column(_plain(header), overflow="fold")

    def add_numbers(self, header: str, **options: Any) -> None:
        """Add a column of numbers."""
        super().add_column(_plain(header), **{"justify": "right", "no_wrap": True, **options})

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*map(_plain, cells), **options)


def plain_column(template: str = "{task.description}") -> TextColumn:
    """A column of a progress bar that shows text as it is."""
    return TextColumn(template, markup=False)


def _plain(cell: Any) -> Any:
    return Text(one_line(cell)) if isinstance(cell, str) else cell

"""The options that the commands share, so that each means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def out(text: str, default: Path | None = None) -> Any:
    """``--out``: a path without suffix, to which each command adds its own."""
    return click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=default, help=text)


rows = click.option("--rows", default="*", show_default=True, help="Rows to measure: glob patterns, comma-separated.")
threads = click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads.")
memory = click.option(
    "--memory/--no-memory", "with_memory", default=True, show_default=True, help="Measure peak memory."
)
quick = click.option("--quick", is_flag=True, help="Tiny inputs: a trial, no measurement.")
show_list = click.option("--list", "show_list", is_flag=True, help="List the rows and stop.")


def progress(console: Console) -> Progress:
    """A progress bar with the name of the row; none where the output is no terminal."""
    columns = (TextColumn("{task.description:26}", markup=False), BarColumn(bar_width=None), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)

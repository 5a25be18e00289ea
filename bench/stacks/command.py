"""``python -m bench stacks``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .. import options
from ..files import RESULTS, write_result
from ..measure import machine
from ..rows import select
from ..table import console_table, machine_line
from .measure import measure_stack
from .report import CONSOLE_COLUMNS, stacks_page
from .rows import ROWS


@click.command()
@options.out(
    "Results, without suffix: .json and .md.  [default: bench/results/stacks for all rows; trials and single rows are "
    "only shown]"
)
@options.rows
@click.option("--rounds", type=click.IntRange(1), default=11, show_default=True, help="Rounds of a row, at most.")
@click.option("--minutes", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Minutes a row.")
@options.threads
@options.memory
@options.quick
@options.show_list
def stacks(
    out: Path | None,
    rows: str,
    rounds: int,
    minutes: float,
    threads: int,
    with_memory: bool,
    quick: bool,
    show_list: bool,
) -> None:
    """Time a training step in other frameworks, with their own loss and with this library.

    \b
    python -m bench stacks                       all rows that are installed: a quarter of an hour on two cores
    python -m bench stacks --rows transformers   one row, shown and not written
    python -m bench readme                       copy the table into docs/frameworks.md
    """
    console = Console(markup=False, emoji=False)
    chosen = select(ROWS, rows)
    if show_list:
        for row in chosen:
            console.print(f"{row.key:15} {row.stack}: {row.network}", highlight=False)
        return
    if out is None and len(chosen) == len(ROWS) and not quick:
        out = RESULTS / "stacks"
    result: dict[str, Any] = {"benchmark": "stacks", "quick": quick, "rounds": rounds, "machine": machine(threads)}
    result |= {"rows": [], "missing": []}
    with options.progress(console) as progress:
        for row in chosen:
            task = progress.add_task(row.key, total=2 * (rounds + 1))
            advance = functools.partial(progress.advance, task)
            try:
                found = measure_stack(
                    row,
                    rounds=rounds,
                    threads=threads,
                    quick=quick,
                    with_memory=with_memory,
                    minutes=minutes,
                    advance=advance,
                )
                result["rows"].append(found)
            except ImportError as error:
                result["missing"].append(row.key)
                console.print(f"{row.key}: left out: {error}", highlight=False)
            finally:
                progress.remove_task(task)
            if out is not None:  # after each row, so that an interrupted benchmark keeps what is done
                write_result(out, result, stacks_page(result))
    console.print(console_table(CONSOLE_COLUMNS, result["rows"], machine_line(result["machine"])))
    if out is not None:
        console.print(f"Written: {out}.json and {out}.md", highlight=False)

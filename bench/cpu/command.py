"""``python -m bench cpu``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from .. import options
from ..files import RESULTS, write_result
from ..rows import Row, select
from ..table import console_table, machine_line
from .measure import Settings, measure_rows
from .report import CONSOLE_COLUMNS, cpu_page
from .rows import ROWS


@click.command()
@options.out(
    "Results, without suffix: .json and .md.  [default: bench/results/cpu for all rows; trials and single rows are "
    "only shown]"
)
@options.rows
@click.option("--rounds", type=click.IntRange(1), default=11, show_default=True, help="Samples of each implementation.")
@options.threads
@click.option("--compile/--no-compile", default=True, show_default=True, help="Measure torch.compile.")
@options.memory
@options.quick
@options.show_list
def cpu(
    out: Path | None,
    rows: str,
    rounds: int,
    threads: int,
    compile: bool,
    with_memory: bool,
    quick: bool,
    show_list: bool,
) -> None:
    """Time every operator against its baselines on the CPU; takes about 10 minutes on two cores.

    \b
    python -m bench cpu --quick --no-compile         does it run? (a minute)
    python -m bench cpu --rows 'cam*,confusion*'     some rows
    python -m bench readme                           copy the whole result into README.md
    """
    console = Console(markup=False, emoji=False)
    chosen = select(ROWS, rows)
    if show_list:
        for row in chosen:
            console.print(f"{row.key:26} {row.title}", highlight=False)
        return
    with options.progress(console) as progress:
        # a row's share of the work, roughly: values at label resolution times implementations
        work = {row.key: row.classes * row.high[0] * row.high[1] * len(row.names) for row in chosen}
        bar = progress.add_task("", total=sum(work.values()))

        def advance(row: Row, share: float) -> None:
            if share == 0 and not console.is_terminal:
                console.print(row.key, highlight=False)
            progress.update(bar, description=row.key, advance=work[row.key] * share)

        result = measure_rows(chosen, Settings(rounds, threads, quick, compile, with_memory), advance)
    console.print(console_table(CONSOLE_COLUMNS, result["rows"], machine_line(result["machine"])))
    if out is None and len(chosen) == len(ROWS) and not quick:
        out = RESULTS / "cpu"
    if out is not None:
        write_result(out, result, cpu_page(result))
        console.print(f"Written: {out}.json and {out}.md", highlight=False)

"""``python -m bench cpu``: the rows of :mod:`bench.rows` measured side by side on the CPU, a table, a result file."""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import memory, table
from ..baselines import MEANING
from ..measure import exponential_rate, interleave, machine, ratio
from .rows import MACHINE, ROWS, Row, Target, contender

WHOLE = table.ROOT / "bench" / "results" / "cpu"
"""Where the result of all rows goes, which README.md shows."""


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Results, without ending: .json and .md are written.  [default: bench/results/cpu for the whole benchmark; "
    "trials and single rows are only shown]",
)
@click.option("--rounds", type=click.IntRange(1), default=11, show_default=True, help="Samples of each contender.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads.")
@click.option("--rows", default="*", show_default=True, help="Rows to measure: glob patterns, comma-separated.")
@click.option("--quick", is_flag=True, help="Heights and widths an eighth: a trial of the benchmark, no measurement.")
@click.option("--compile/--no-compile", default=True, show_default=True, help="Measure torch.compile.")
@click.option("--memory/--no-memory", "with_memory", default=True, show_default=True, help="Measure peak memory.")
@click.option("--list", "show_list", is_flag=True, help="List the rows and stop.")
def cpu(
    out: Path | None,
    rounds: int,
    threads: int,
    rows: str,
    quick: bool,
    compile: bool,
    with_memory: bool,
    show_list: bool,
) -> None:
    """Time every operator against its rivals on the CPU; takes about 10 minutes on two cores.

    \b
    python -m bench cpu --quick --no-compile         does it run? (a minute)
    python -m bench cpu --rows 'cam*,confusion*'     some rows
    python -m bench readme                           take the whole result into README.md
    """
    console = Console()
    chosen = select(rows)
    if show_list:
        for row in chosen:
            console.print(f"{row.key:26} {row.title}", highlight=False)
        return
    columns = (TextColumn("{task.description:26}"), BarColumn(bar_width=None), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        # a row's share of the work, roughly: values at label resolution times contenders
        work = {row.key: row.classes * row.high[0] * row.high[1] * len(row.names) for row in chosen}
        bar = progress.add_task("", total=sum(work.values()))

        def begin(row: Row) -> None:
            progress.update(bar, description=row.key)
            if not console.is_terminal:
                console.print(row.key, highlight=False)

        def advance(row: Row, share: float) -> None:
            progress.advance(bar, work[row.key] * share)

        result = measure(
            chosen,
            rounds=rounds,
            threads=threads,
            quick=quick,
            compile=compile,
            with_memory=with_memory,
            begin=begin,
            advance=advance,
        )
    console.print(table.rich_table(result))
    if out is None and len(chosen) == len(ROWS) and not quick:
        out = WHOLE
    if out is not None:
        table.write(result, out)
        console.print(f"Written: {out}.json and {out}.md", highlight=False)


def select(patterns: str) -> list[Row]:
    """The rows whose key matches one of the comma-separated glob ``patterns``.

    Raises:
        click.BadParameter: a pattern matches none.
    """
    words = [word.strip() for word in patterns.split(",")]
    for word in words:
        if not any(fnmatch.fnmatchcase(row.key, word) for row in ROWS):
            raise click.BadParameter(f"{word!r} matches no row; --list shows them", param_hint="--rows")
    return [row for row in ROWS if any(fnmatch.fnmatchcase(row.key, word) for word in words)]


def measure(
    rows: Sequence[Row],
    *,
    rounds: int,
    threads: int,
    quick: bool = False,
    compile: bool = True,
    with_memory: bool = True,
    begin: Callable[[Row], None] = lambda row: None,
    advance: Callable[[Row, float], None] = lambda row, share: None,
) -> dict[str, Any]:
    """All that ``--out`` holds, as plain values.

    Args:
        rows: to be measured, in this order.
        rounds: samples of each contender.
        threads: CPU threads.
        quick: shrink the problems.
        compile: whether torch.compile takes part.
        with_memory: whether peak memory is measured, a process per row.
        begin: called before a row.
        advance: called with the row and the share of it that has been done since the last call.
    """
    before = torch.get_num_threads()
    try:
        rate = exponential_rate(threads)
        measured = []
        for row in rows:
            begin(row)
            measured.append(_row(row, rate, rounds, threads, quick, compile, with_memory, advance))
    finally:
        torch.set_num_threads(before)
    return {
        "benchmark": "cpu",
        "machine": machine(threads),
        "settings": {"rounds": rounds, "quick": quick},
        "exponentials_per_second": rate,
        "meaning": {name: MEANING[name] for row in measured for name in row["contenders"]},
        "rows": measured,
    }


def _row(
    row: Row,
    rate: float,
    rounds: int,
    threads: int,
    quick: bool,
    compile: bool,
    with_memory: bool,
    advance: Callable[[Row, float], None],
) -> dict[str, Any]:
    sized = row.shrunk() if quick else row
    contenders = []
    for name in sized.names:
        if name == "compile" and not compile:
            continue
        try:
            contenders.append(contender(sized, name))
        except ImportError:  # torchmetrics: the column stays empty
            continue
    share = 1 / (len(contenders) * (rounds + 1))
    samples = interleave(contenders, rounds, threads, lambda steps: advance(row, steps * share))
    names = list(samples)
    del contenders
    remembered = [name for name in names if name not in MACHINE]
    peaks = memory.peaks(row.key, remembered, quick, threads) if with_memory else {}
    median = {name: statistics.median(values) for name, values in samples.items()}
    return {
        "key": row.key,
        "title": sized.title,
        "ours": row.ours,
        "contenders": {
            name: {"median": median[name], "seconds": samples[name], "peak_bytes": peaks.get(name)} for name in names
        },
        "faster": {
            name: ratio(samples[name], samples[row.ours])
            for name in names
            if name == "copy" or name not in (row.ours, *MACHINE)
        },
        # what the other threads are worth to code that needs nothing but the processor, or nothing but the memory
        "machine_scaling": {
            name: ratio(samples[f"{name}, one thread"], samples[name])
            for name in names
            if f"{name}, one thread" in samples
        },
        "targets": [
            _reached(target, samples[row.ours], samples[target.rival])
            for target in row.targets
            if target.rival in samples
        ],
        "floor": _floor(sized, median, rate),
    }


def _reached(target: Target, ours: list[float], rival: list[float]) -> dict[str, Any]:
    value = ratio(ours, rival) if target.within else ratio(rival, ours)

    def met(goal: float | None) -> bool | None:
        return None if goal is None else (value <= goal if target.within else value >= goal)

    return {
        "rival": target.rival,
        "within": target.within,
        "value": value,
        "least": target.least,
        "least_met": met(target.least),
        "aim": target.aim,
        "aim_met": met(target.aim),
    }


def _floor(row: Row, median: dict[str, float], rate: float) -> dict[str, float]:
    """Seconds that bytes and exponentials take at the least; the two can overlap, so that the larger is the floor."""
    copied = 2 * 2 * row.classes * row.low[0] * row.low[1] * 4  # two images of float32, read and written
    by_bytes = median["copy"] * row.floor.bytes / copied
    by_exponentials = row.floor.exponentials / rate
    floor = max(by_bytes, by_exponentials)
    return {
        "seconds": floor,
        "bytes_seconds": by_bytes,
        "exponentials_seconds": by_exponentials,
        "share": floor / median[row.ours],
    }

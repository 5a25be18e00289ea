"""``python -m bench epoch``."""

from __future__ import annotations

import fnmatch
import time
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import table
from ..measure import machine
from . import memory, report
from .measure import measure, step_of
from .rows import CPU_ROWS, GPU_ROWS
from .variants import MEANING

RESULTS = table.ROOT / "bench" / "results"


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Results, without ending: .json, .md and .png.  [default: bench/results/epoch-cpu or -gpu for all rows; "
    "trials and single rows are only shown]",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to train.")
@click.option("--rows", default="*", show_default=True, help="Rows to measure: glob patterns, comma-separated.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Rounds of a row, at most.")
@click.option(
    "--minutes", type=click.FloatRange(0.1), default=2.5, show_default=True, help="Minutes a row; at least 3 rounds."
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads.")
@click.option("--memory/--no-memory", "with_memory", default=True, show_default=True, help="Measure peak memory.")
@click.option("--quick", is_flag=True, help="Tiny images and one batch: a trial of the benchmark, no measurement.")
@click.option("--list", "show_list", is_flag=True, help="List the rows and the variants, and stop.")
def epoch(
    out: Path | None,
    device: str,
    rows: str,
    rounds: int,
    minutes: float,
    threads: int,
    with_memory: bool,
    quick: bool,
    show_list: bool,
) -> None:
    """The time of a training epoch with validation: plain PyTorch, naive CAWASeg, and this library with it and without.

    \b
    python -m bench epoch                     all rows on the CPU: half an hour, quiet machine
    python -m bench epoch --rows '*ade20k'    some rows, shown and not written
    python -m bench epoch --device cuda       the paper's shapes on a GPU
    """
    console = Console()
    known = CPU_ROWS if device == "cpu" else GPU_ROWS
    if show_list:
        for row in known:
            console.print(f"{row.key:24} {row.title} on {row.data.title}", highlight=False)
        for name, text in MEANING.items():
            console.print(f"{name:24} {text}", highlight=False)
        return
    patterns = [pattern.strip() for pattern in rows.split(",")]
    wanted = [row for row in known if any(fnmatch.fnmatch(row.key, pattern) for pattern in patterns)]
    if not wanted:
        raise click.BadParameter(f"no row matches {rows!r}; --list shows them", param_hint="--rows")
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("torch sees no GPU here; leave out --device cuda")
    if out is None and len(wanted) == len(known) and not quick:
        out = RESULTS / ("epoch-cpu" if device == "cpu" else "epoch-gpu")
    torch.set_num_threads(threads)
    result: dict[str, Any] = {"benchmark": "epoch", "quick": quick, "device": device, "machine": machine(threads)}
    if device == "cuda":
        result["machine"]["gpu"] = torch.cuda.get_device_name()
    result["rows"] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for row in wanted:
            task = progress.add_task(row.key, total=None)
            measured = row.shrunk() if quick else row
            found = measure(
                measured,
                torch.device(device),
                1 if quick else rounds,
                time.monotonic() + 60 * minutes,
                lambda steps, task=task: progress.advance(task, steps),  # type: ignore[misc]
            )
            if with_memory and device == "cpu":
                found["peak_bytes"] = memory.peaks(row.key, quick, threads)
            elif with_memory:
                found["peak_bytes"] = {
                    name: memory.cuda_peak(step_of(measured, torch.device(device), name), torch.device(device))
                    for name in "acde"
                }
            progress.remove_task(task)
            result["rows"].append(found)
            console.print(f"{row.key}: {report.cells(found)[5]}, marginal {report.cells(found)[6]}", highlight=False)
            if out is not None:  # after each row: an interrupted benchmark has those that are done
                report.write(result, out)
    console.print(report.rich_table(result))
    if out is not None:
        console.print(f"Written: {out.with_suffix('.md')}, .json, .png", highlight=False)

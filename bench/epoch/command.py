"""``python -m bench epoch``."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from .. import options
from ..files import RESULTS, write_result
from ..measure import machine
from ..rows import select
from ..table import console_table, percent, spread
from . import memory
from .measure import measure_epoch
from .report import CONSOLE_COLUMNS, CONSOLE_TITLE, epoch_page, epoch_picture
from .rows import CPU_ROWS, GPU_ROWS
from .variants import MEANING


@click.command()
@options.out(
    "Results, without suffix: .json, .md and .png.  [default: bench/results/epoch-cpu or -gpu for all rows; trials "
    "and single rows are only shown]"
)
@options.rows
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to train.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Rounds of a row, at most.")
@click.option(
    "--minutes", type=click.FloatRange(0.1), default=2.5, show_default=True, help="Minutes a row; at least 3 rounds."
)
@options.threads
@options.memory
@options.quick
@options.show_list
def epoch(
    out: Path | None,
    rows: str,
    device: str,
    rounds: int,
    minutes: float,
    threads: int,
    with_memory: bool,
    quick: bool,
    show_list: bool,
) -> None:
    """Time a training epoch with validation: plain PyTorch, CAWASeg written by hand, and this library.

    \b
    python -m bench epoch                     all rows on the CPU: half an hour on an idle machine
    python -m bench epoch --rows '*ade20k'    some rows, shown and not written
    python -m bench epoch --device cuda       the paper's image sizes on a GPU
    """
    console = Console(markup=False, emoji=False)
    known = CPU_ROWS if device == "cpu" else GPU_ROWS
    chosen = select(known, rows)
    if show_list:
        for row in chosen:
            console.print(f"{row.key:30} {row.title} on {row.data.title}", highlight=False)
        for name, text in MEANING.items():
            console.print(f"variant {name:22} {text}", highlight=False)
        return
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("torch sees no GPU here; leave out --device cuda")
    if out is None and len(chosen) == len(known) and not quick:
        out = RESULTS / ("epoch-cpu" if device == "cpu" else "epoch-gpu")
    torch.set_num_threads(threads)
    result: dict[str, Any] = {"benchmark": "epoch", "quick": quick, "device": device, "machine": machine(threads)}
    if device == "cuda":
        result["machine"]["gpu"] = torch.cuda.get_device_name()
    result["rows"] = []
    where = torch.device(device)
    with options.progress(console) as progress:
        for row in chosen:
            task = progress.add_task(row.key, total=None)
            sized = row.shrunk() if quick else row
            until = time.monotonic() + 60 * minutes
            found = measure_epoch(
                sized, where, 1 if quick else rounds, until, functools.partial(progress.advance, task)
            )
            if with_memory:
                on_cpu = device == "cpu"
                peaks = memory.step_peaks(row, quick, threads) if on_cpu else memory.cuda_step_peaks(sized, where)
                found["peak_bytes"] = peaks
            progress.remove_task(task)
            result["rows"].append(found)
            net, marginal = spread(found["net"]), percent(found["marginal"]["median"], 2)
            console.print(f"{row.key}: net {net}, marginal {marginal}", highlight=False)
            if out is not None:  # after each row, so that an interrupted benchmark keeps what is done
                write_result(out, result, epoch_page(result, f"{out.name}.png"), epoch_picture(result))
    console.print(console_table(CONSOLE_COLUMNS, result["rows"], CONSOLE_TITLE))
    if out is not None:
        console.print(f"Written: {out}.json, .md and .png", highlight=False)

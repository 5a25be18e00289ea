"""Measures the rows of the CPU benchmark; everything that the result file holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..baselines import MEANING
from ..measure import exponential_rate, interleave, machine, ratio
from ..rows import Row, Target
from . import memory
from .rows import MACHINE, implementation_of

Advance = Callable[[Row, float], None]


@dataclass(frozen=True)
class Settings:
    """How rows are measured.

    Attributes:
        rounds: samples of each implementation.
        threads: CPU threads.
        quick: shrink the inputs.
        compile: whether torch.compile takes part.
        memory: whether peak memory is measured, in a process per row.
    """

    rounds: int
    threads: int
    quick: bool = False
    compile: bool = True
    memory: bool = True


def measure_rows(rows: Sequence[Row], settings: Settings, advance: Advance = lambda row, share: None) -> dict[str, Any]:
    """The result file of ``rows`` as plain values.

    ``advance`` is called with a row and the share of it that is done since the last call: 0 at its beginning.
    """
    before = torch.get_num_threads()
    try:
        rate = exponential_rate(settings.threads)
        measured = []
        for row in rows:
            advance(row, 0)
            measured.append(_measure_row(row, rate, settings, advance))
    finally:
        torch.set_num_threads(before)
    return {
        "benchmark": "cpu",
        "machine": machine(settings.threads),
        "settings": {"rounds": settings.rounds, "quick": settings.quick},
        "exponentials_per_second": rate,
        "meaning": {name: MEANING[name] for row in measured for name in row["contenders"]},
        "rows": measured,
    }


def _measure_row(row: Row, rate: float, settings: Settings, advance: Advance) -> dict[str, Any]:
    sized = row.shrunk() if settings.quick else row
    implementations = []
    for name in sized.names:
        if name == "compile" and not settings.compile:
            continue
        try:
            implementations.append(implementation_of(sized, name))
        except ImportError:  # torchmetrics is optional; its cell stays empty
            continue
    share = 1 / (len(implementations) * (settings.rounds + 1))
    samples = interleave(implementations, settings.rounds, settings.threads, lambda steps: advance(row, steps * share))
    del implementations
    operators = [name for name in samples if name not in MACHINE]
    peaks = memory.row_peaks(row.key, operators, settings.quick, settings.threads) if settings.memory else {}
    median = {name: statistics.median(values) for name, values in samples.items()}
    return {
        "key": row.key,
        "title": sized.title,
        "ours": row.ours,
        "contenders": {
            name: {"median": median[name], "seconds": values, "peak_bytes": peaks.get(name)}
            for name, values in samples.items()
        },
        "faster": {
            name: ratio(samples[name], samples[row.ours])
            for name in samples
            if name == "copy" or name not in (row.ours, *MACHINE)
        },
        # what the second thread brings to code that needs only the processor, or only the memory
        "machine_scaling": {
            name: ratio(samples[f"{name}, one thread"], samples[name])
            for name in samples
            if f"{name}, one thread" in samples
        },
        "targets": [
            target_reached(target, samples[row.ours], samples[target.baseline])
            for target in row.targets
            if target.baseline in samples
        ],
        "floor": floor_of(sized, median, rate),
    }


def target_reached(target: Target, ours: list[float], baseline: list[float]) -> dict[str, Any]:
    """The target, the measured ratio, and whether it is met."""
    value = ratio(ours, baseline) if target.within else ratio(baseline, ours)

    def met(goal: float | None) -> bool | None:
        return None if goal is None else (value <= goal if target.within else value >= goal)

    return {
        "rival": target.baseline,  # the key of the published results
        "within": target.within,
        "value": value,
        "least": target.least,
        "least_met": met(target.least),
        "aim": target.aim,
        "aim_met": met(target.aim),
    }


def floor_of(row: Row, median: dict[str, float], rate: float) -> dict[str, float]:
    """Seconds that bytes and exponentials take at least. They can overlap, so the floor is the larger of the two."""
    floor = row.floor(gather=False)
    copied = 2 * row.images * row.classes * row.low[0] * row.low[1] * 4  # float32, read and written
    by_bytes = median["copy"] * floor.bytes / copied
    by_exponentials = floor.exponentials / rate
    seconds = max(by_bytes, by_exponentials)
    return {
        "seconds": seconds,
        "bytes_seconds": by_bytes,
        "exponentials_seconds": by_exponentials,
        "share": seconds / median[row.ours],
    }

"""Measures the rows: both trainings of a row take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from ..baselines import Implementation
from ..measure import interleave, ratio
from . import memory
from .rows import NAMES, StackRow, Training, batch


def _implementation(name: str, training: Training) -> Implementation:
    return Implementation(name, lambda: (training.step(),))


def measure_stack(
    row: StackRow,
    *,
    rounds: int,
    threads: int,
    quick: bool,
    with_memory: bool,
    minutes: float,
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """The result of one row.

    Args:
        row: what.
        rounds: samples of each training, at most.
        threads: CPU threads.
        quick: shrink the inputs.
        with_memory: measure peaks too, in a process each.
        minutes: after them no round begins.
        advance: called with 1 after every sample.

    Raises:
        ImportError: the framework is not installed.
    """
    sized = row.shrunk() if quick else row
    data = batch(sized)
    trainings = {name: Training(sized, name, data) for name in NAMES}
    torch.set_num_threads(threads)
    own, ours = (trainings[name].loss().item() for name in NAMES)  # of the same network, before the first step
    implementations = [_implementation(name, training) for name, training in trainings.items()]
    until = time.monotonic() + 60 * minutes
    seconds = interleave(implementations, rounds, threads, advance, until=until)
    peaks = memory.stack_peaks(row, quick, threads) if with_memory else {}
    return {
        "key": row.key,
        **{name: getattr(row, name) for name in ("stack", "network", "own", "not_fused")},
        "lines": row.lines(),
        **{name: getattr(sized, name) for name in ("classes", "images")},
        "size": list(sized.size),
        "rounds": len(seconds["ours"]),
        "contenders": {
            name: {"median": statistics.median(values), "seconds": values, "peak_bytes": peaks.get(name)}
            for name, values in seconds.items()
        },
        "faster": ratio(seconds["own"], seconds["ours"]),
        "difference": abs(ours - own) / abs(own),
    }

"""Peak memory of a training and a validation step: ``python -m bench.epoch.memory ROW full|quick THREADS VARIANT``.

Network, optimizer state and batch exist before; the peak is what a step adds to them. On a CPU each variant runs in a
process of its own, because the peak is that of a process: see :mod:`bench.memory`.
"""

from __future__ import annotations

import json
import sys

import torch

from ..memory import in_a_process, peak
from .measure import step_of
from .rows import CPU_ROWS, GPU_ROWS, EpochRow


def step_peaks(row: EpochRow, quick: bool, threads: int) -> dict[str, int]:
    """Bytes by variant on the CPU; empty where the system cannot measure them."""
    found: dict[str, int] = {}
    for name in "acde":
        found |= in_a_process("bench.epoch.memory", row.key, "quick" if quick else "full", str(threads), name)
    return found


def cuda_step_peaks(row: EpochRow, device: torch.device) -> dict[str, int]:
    """Bytes by variant on a GPU."""
    found = {}
    for name in "acde":
        run = step_of(row, device, name)
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        found[name] = torch.cuda.max_memory_allocated(device) - before
    return found


def _peak_here(key: str, size: str, threads: str, name: str) -> dict[str, int]:
    row = next(row for row in (*CPU_ROWS, *GPU_ROWS) if row.key == key)
    torch.set_num_threads(int(threads))
    run = step_of(row.shrunk() if size == "quick" else row, torch.device("cpu"), name)
    run()  # creates the optimizer state and loads code
    return {name: peak(run)}


if __name__ == "__main__":
    print(json.dumps(_peak_here(*sys.argv[1:])))

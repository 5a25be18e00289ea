"""Peak memory of a training and a validation step of each variant: ``python -m bench.epoch.memory ROW``; prints JSON.

Each variant has a process of its own on a CPU, where the peak is the process's; see :mod:`bench.memory`. The network,
its optimizer's state, the batch are there before: what counts is what a step adds.
"""

from __future__ import annotations

import json
import sys

import torch

from .. import memory
from .measure import step_of
from .rows import CPU_ROWS, GPU_ROWS


def peaks(row: str, quick: bool, threads: int) -> dict[str, int]:
    """Bytes by variant on the CPU; empty where the system cannot tell."""
    found: dict[str, int] = {}
    for name in "acde":
        found |= memory.in_a_process("bench.epoch.memory", row, "quick" if quick else "full", str(threads), name)
    return found


def cuda_peak(run: object, device: torch.device) -> int:
    """Bytes that ``run()`` adds at its highest on a GPU."""
    assert callable(run)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _measure(key: str, quick: bool, threads: int, name: str) -> dict[str, int]:
    row = next(row for row in (*CPU_ROWS, *GPU_ROWS) if row.key == key)
    torch.set_num_threads(threads)
    run = step_of(row.shrunk() if quick else row, torch.device("cpu"), name)
    run()  # the optimizer's state is made, code is loaded
    return {name: memory.peak(run)}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2] == "quick", int(sys.argv[3]), sys.argv[4])))

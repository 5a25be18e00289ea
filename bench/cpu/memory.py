"""Peak memory of the implementations of a row: ``python -m bench.cpu.memory ROW full|quick THREADS NAME...``."""

from __future__ import annotations

import json
import sys

import torch

from ..memory import in_a_process, peak
from .rows import ROWS, implementation_of


def row_peaks(row: str, names: list[str], quick: bool, threads: int) -> dict[str, int]:
    """Bytes per implementation, measured in a process of its own; empty where the system cannot measure them."""
    return in_a_process("bench.cpu.memory", row, "quick" if quick else "full", str(threads), *names)


def _peaks_here(key: str, size: str, threads: str, *names: str) -> dict[str, int]:
    row = next(row for row in ROWS if row.key == key)
    torch.set_num_threads(int(threads))
    small, full = row.shrunk(), row.shrunk() if size == "quick" else row
    found = {}
    for name in names:
        # A small input loads the code and starts the threads, so that buffers kept for the next call are counted.
        # torch.compile needs the full input: its code fits one shape.
        measured = implementation_of(full, name)
        (measured if name == "compile" else implementation_of(small, name)).run()
        measured.reset()
        found[name] = peak(measured.run)
    return found


if __name__ == "__main__":
    print(json.dumps(_peaks_here(*sys.argv[1:])))

"""Peak memory of a training step: ``python -m bench.stacks.memory ROW full|quick THREADS NAME``."""

from __future__ import annotations

import json
import sys

import torch

from ..memory import in_a_process, peak
from .rows import NAMES, ROWS, StackRow, Training, batch


def stack_peaks(row: StackRow, quick: bool, threads: int) -> dict[str, int]:
    """Bytes by loss; empty where the system cannot measure them."""
    found: dict[str, int] = {}
    for name in NAMES:
        found |= in_a_process("bench.stacks.memory", row.key, "quick" if quick else "full", str(threads), name)
    return found


def _peak_of_step(key: str, size: str, threads: str, name: str) -> dict[str, int]:
    row = next(row for row in ROWS if row.key == key)
    torch.set_num_threads(int(threads))
    sized = row.shrunk() if size == "quick" else row
    training = Training(sized, name, batch(sized))
    training.step()  # loads code, and compares the layer that CAWA listens to with the output
    return {name: peak(training.step)}


if __name__ == "__main__":
    print(json.dumps(_peak_of_step(*sys.argv[1:])))

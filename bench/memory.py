"""Peak memory of each contender of a row, in a process of its own: ``python -m bench.memory ROW``; prints JSON.

What counts is the resident memory that one call adds at its highest to what was there before it: the inputs are not in
it, gradients and everything temporary are, whoever allocates it. Linux keeps that peak (``VmHWM``) and resets it on
request. So that memory that an earlier call freed is not used again unseen, the C library is told to give everything
larger than a page or so back at once. The process is its own because the peak is the whole process's.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from cawa_fast import _native

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}


def available() -> bool:
    """Whether this system can tell."""
    return os.access(_RESET, os.W_OK) and _STATUS.exists()


def peaks(row: str, names: list[str], quick: bool, threads: int) -> dict[str, int]:
    """Bytes per contender of the row with the key ``row``, measured in a new process; empty where that is not possible.

    Raises:
        RuntimeError: the process failed; the message has its output.
    """
    return in_a_process("bench.memory", row, "quick" if quick else "full", str(threads), *names)


def in_a_process(module: str, *arguments: str) -> dict[str, int]:
    """The JSON that ``python -m module arguments`` prints last, run so that freed memory shows; {} where it cannot.

    Raises:
        RuntimeError: the process failed; the message has its output.
    """
    if not available():
        return {}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | _ENVIRONMENT, cwd=Path(__file__).parents[1]
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(key: str, quick: bool, threads: int, names: list[str]) -> dict[str, int]:
    from .cpu.rows import ROWS, contender

    row = next(row for row in ROWS if row.key == key)
    torch.set_num_threads(threads)
    small, full = row.shrunk(), row.shrunk() if quick else row
    found = {}
    for name in names:
        # Code is loaded and threads are started on a small problem: what a kernel keeps for its next call shows. What
        # torch.compile makes fits one shape only.
        measured = contender(full, name)
        (measured if name == "compile" else contender(small, name)).run()
        measured.reset()
        found[name] = peak(measured.run)
    return found


def peak(run: object) -> int:
    """Bytes that ``run()`` adds at its highest to what this process holds."""
    assert callable(run)
    _native.release_gradient_memory()  # what is kept for the next step is part of what this one takes
    ctypes.CDLL(None).malloc_trim(0)
    _RESET.write_text("5")
    before = _kilobytes("VmRSS")
    result = run()
    highest = _kilobytes("VmHWM")
    del result
    return max(highest - before, 0) * 1024


def _kilobytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no {field}")


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2] == "quick", int(sys.argv[3]), sys.argv[4:])))

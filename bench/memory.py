"""Peak resident memory of a call, measured in a process of its own.

The peak is the most resident memory that a call adds at any time. It includes gradients and temporary memory, and not
the inputs. Linux keeps the peak of a process (``VmHWM``) and resets it on request. The C library is told to return
freed memory to the system at once, because memory that an earlier call freed could be used again without raising the
peak.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cawa_fast._ops import native

from .files import ROOT

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}


def available() -> bool:
    """Whether this system measures the peak."""
    return os.access(_RESET, os.W_OK) and _STATUS.exists()


def in_a_process(module: str, *arguments: str) -> dict[str, int]:
    """The JSON that ``python -m module arguments`` prints last; empty where peaks are not available.

    Raises:
        RuntimeError: the process failed; the message has its output.
    """
    if not available():
        return {}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | _ENVIRONMENT, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak(run: Callable[[], object]) -> int:
    """Peak bytes that ``run()`` adds to the memory of this process."""
    native.release_gradient_memory()  # a buffer kept from an earlier step counts as memory of this one
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

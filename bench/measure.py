"""Measuring: contenders in turn, what the machine can do at best, and what machine it is."""

from __future__ import annotations

import datetime
import gc
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cawa_fast import _native

from .baselines import Contender

SHORTEST = 0.01
"""Seconds that one sample takes at least; faster calls are repeated, so that the clock and interrupts do not show."""


def _nothing(steps: int) -> None:
    return None


def interleave(
    contenders: Sequence[Contender],
    rounds: int,
    threads: int,
    advance: Callable[[int], None] = _nothing,
    *,
    clock: Callable[[Contender, int], float] | None = None,
    until: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds per call of each contender, one value per round.

    In every round each contender is called in turn, so that a machine that slows down slows all of them, and the order
    rotates from round to round, so that none always inherits the same one's caches. Garbage collection is off.

    Args:
        contenders: at least one.
        rounds: at least 1.
        threads: of the contenders that do not set their own number.
        advance: called with 1 after every sample and every warm-up.
        clock: what times a contender's calls in succession: seconds per call of that many. By default the CPU's.
        until: when ``time.monotonic()`` has passed this, no other round begins but the first.
    """
    timed = clock or _time
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    repeats: dict[str, int] = {}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for contender in contenders:
            _set_threads(contender.threads or threads)
            timed(contender, 1)  # compiles, and touches memory and thread pools for the first time
            repeats[contender.name] = max(1, min(1000, math.ceil(SHORTEST / max(timed(contender, 1), 1e-9))))
            advance(1)
        for turn in range(rounds):
            if turn and time.monotonic() > until:
                break
            first = turn % len(contenders)
            for contender in (*contenders[first:], *contenders[:first]):
                _set_threads(contender.threads or threads)
                seconds[contender.name].append(timed(contender, repeats[contender.name]))
                advance(1)
    finally:
        if collecting:
            gc.enable()
        torch.set_num_threads(threads)
    return seconds


def _time(contender: Contender, repeats: int) -> float:
    total = 0.0
    for _ in range(repeats):
        contender.reset()
        begin = time.perf_counter()
        contender.run()
        total += time.perf_counter() - begin
    return total / repeats


def _set_threads(threads: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
        torch.ones(1 << 17).exp_()  # wakes the pool, which is then not timed


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the rounds' own ratios: what slows a whole round cancels."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def exponential_rate(threads: int) -> float:
    """Exponentials per second on ``threads`` threads: the faster of ``torch.exp`` and ``torch.exp2``, within the cache.

    PyTorch's are vectorised and accurate to an ulp or so. A kernel that needs less may be faster than this "floor".
    """
    _set_threads(threads)
    x = torch.linspace(-20, 0, threads * 32768)  # PyTorch gives a thread 32768 values: 128 KiB in, 128 KiB out
    out = torch.empty_like(x)
    best = math.inf
    for function in (torch.exp, torch.exp2):
        for _ in range(20):
            begin = time.perf_counter()
            for _ in range(10):
                function(x, out=out)
            best = min(best, (time.perf_counter() - begin) / 10)
    return x.numel() / best


def machine(threads: int) -> dict[str, Any]:
    """What a reader must know to place the numbers; nothing that names the computer or its owner."""
    build = _native.build_info() or {}
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "instruction_set": build.get("cpu"),  # of the compiled operators; None without them
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "compiler": build.get("compiler"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the sources, with a plus where they have been changed since; None outside a clone."""
    root = Path(__file__).parents[1]
    try:
        head = _git(root, "rev-parse", "--short=10", "HEAD")
        # results and texts do not change what is measured
        changed = _git(root, "status", "--porcelain", "--", "cawa_fast", "csrc", "bench/*.py", "CMakeLists.txt")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()

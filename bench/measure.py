"""Timing implementations in turn, the machine's rate of exponentials, and a description of the machine."""

from __future__ import annotations

import contextlib
import datetime
import gc
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from cawa_fast._ops import native

from .baselines import Implementation
from .files import ROOT

SHORTEST = 0.01
"""Seconds that one sample takes at least; faster calls are repeated within a sample."""


def interleave(
    implementations: Sequence[Implementation],
    rounds: int,
    threads: int,
    advance: Callable[[int], None] = lambda steps: None,
    *,
    clock: Callable[[Implementation, int], float] | None = None,
    until: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds per call of each implementation, one value per round.

    Every round calls each implementation in turn, so that a slow phase of the machine affects all of them. The order
    rotates from round to round, so that the cache contents that one leaves behind do not always affect the same other
    one. Garbage collection is off.

    Args:
        implementations: at least one.
        rounds: at least 1.
        threads: of the implementations that do not set their own number.
        advance: called with 1 after every sample and every warm-up.
        clock: times an implementation: seconds per call of so many calls in succession. By default the CPU's clock.
        until: after this value of ``time.monotonic()`` no round begins, except the first.
    """
    timed = clock or _time
    seconds: dict[str, list[float]] = {implementation.name: [] for implementation in implementations}
    repeats: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.enter_context(without_garbage_collection())
        for implementation in implementations:
            _set_threads(implementation.threads or threads)
            timed(implementation, 1)  # compiles, and touches memory and thread pools for the first time
            repeats[implementation.name] = max(1, min(1000, math.ceil(SHORTEST / max(timed(implementation, 1), 1e-9))))
            advance(1)
        for turn in range(rounds):
            if turn and time.monotonic() > until:
                break
            first = turn % len(implementations)
            for implementation in (*implementations[first:], *implementations[:first]):
                _set_threads(implementation.threads or threads)
                seconds[implementation.name].append(timed(implementation, repeats[implementation.name]))
                advance(1)
    return seconds


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collects once, then not again within the block: a collection would be timed with whatever it interrupts."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _time(implementation: Implementation, repeats: int) -> float:
    total = 0.0
    for _ in range(repeats):
        implementation.reset()
        begin = time.perf_counter()
        implementation.run()
        total += time.perf_counter() - begin
    return total / repeats


def _set_threads(threads: int) -> None:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
        torch.ones(1 << 17).exp_()  # starts the thread pool outside of the timed calls


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the rounds' own ratios, in which whatever slows a whole round cancels."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def exponential_rate(threads: int) -> float:
    """Exponentials per second on ``threads`` threads: the faster of ``torch.exp`` and ``torch.exp2``, within the cache.

    PyTorch's functions are vectorised and accurate to about an ulp. A kernel that needs less accuracy may be faster.
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
    """Hardware, versions, date and commit; nothing that identifies the computer or its owner."""
    build = native.build_info() or {}
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
        "commit": commit(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the sources, with a plus where they have been changed since; None outside of a clone."""
    try:
        head = _git("rev-parse", "--short=10", "HEAD")
        # only these affect what is measured
        measured = ("cawa_fast", "csrc", "kernels", "cmake", "CMakeLists.txt", "bench/*.py")
        changed = _git("status", "--porcelain", "--", *measured)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()

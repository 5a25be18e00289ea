"""Work on many files in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

_CHUNK = 16  # files per task. At some milliseconds a file, tasks cost nothing to hand out and progress is smooth.
_FILES_PER_PROCESS = 32  # at least. Fewer files are read in less time than a process takes to start.


def cpu_count() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_chunks(
    function: Callable[[list[_T]], list[_R]],
    items: Sequence[_T],
    *,
    workers: int | None = None,
    done: Callable[[int], object] | None = None,
) -> list[_R]:
    """Apply ``function`` to all items, a few at a time, in several processes where that is faster.

    Args:
        function: takes a list of items and returns one result for each. It must be picklable, as must the items.
        items: the input.
        workers: number of processes, >= 1; 1 works in the calling process. None takes one per core.
        done: called after every few items with the number of items that are done.

    Returns:
        One result per item, in the order of the items.

    Raises:
        ValueError: workers is less than 1.
        Exception: whatever ``function`` raised.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} must be at least 1; None takes one per core")
    workers = min(workers or cpu_count(), len(items) // _FILES_PER_PROCESS)
    starts = range(0, len(items), _CHUNK)
    results: dict[int, list[_R]] = {}
    finished = 0
    if workers <= 1:
        for start in starts:
            results[start] = function(list(items[start : start + _CHUNK]))
            finished += len(results[start])
            if done is not None:
                done(finished)
        return [result for start in starts for result in results[start]]
    # A forked process need not import torch again, which takes seconds. Only on Linux is forking safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupt) as pool:
        try:
            tasks = {pool.submit(function, list(items[start : start + _CHUNK])): start for start in starts}
            for task in as_completed(tasks):
                result = results[tasks[task]] = task.result()
                finished += len(result)
                if done is not None:
                    done(finished)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [result for start in starts for result in results[start]]


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers

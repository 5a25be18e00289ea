"""Work on many files at once, in processes that begin with what this one has imported."""

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

_CHUNK = 16  # files a task: a few milliseconds each, so that handing tasks out costs nothing and progress is smooth
_LEAST = 32  # files a process: fewer are read before a process has started


def cpu_count() -> int:
    """Cores that this process may use."""
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
    """``function`` of all items, a few at a time, in several processes where that pays.

    Args:
        function: from a list of items to one result for each; of a module's top level, so that it can be sent.
        items: what can be pickled.
        workers: processes, >= 1; 1 works in this one. None takes one per core.
        done: called with the number of items that are done, after every few.

    Returns:
        One result per item, in their order.

    Raises:
        ValueError: workers is less than 1.
        Exception: whatever ``function`` raised.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} must be at least 1; None takes one per core")
    workers = min(workers or cpu_count(), len(items) // _LEAST)
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
    # fork: a fresh process would import torch first, for seconds. Elsewhere than on Linux it is not safe.
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; this process's parent ends it

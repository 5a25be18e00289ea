"""Timing the parts of an epoch without synchronising with the GPU."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch


class Stopwatch:
    """Adds up the time of named parts. On CUDA it records events, which only :meth:`seconds` reads.

    Args:
        device: the device that the parts run on.

    Example:
        >>> import torch
        >>> watch = Stopwatch(torch.device("cpu"))
        >>> with watch.part("forward"):
        ...     pass
        >>> list(watch.seconds())
        ['forward', 'total']
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def part(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Time the block. ``host=True`` is for work of the CPU alone, such as waiting for data."""
        if self._cuda and not host:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            begin_time = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begin_time

    def seconds(self) -> dict[str, float]:
        """Seconds by part, and ``total``: the wall time since the stopwatch was created. Waits for the device."""
        if self._events:
            torch.cuda.synchronize(self._device)
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1e3
        self._events.clear()
        return {**self._seconds, "total": time.perf_counter() - self._start}

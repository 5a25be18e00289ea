"""Time, memory and graph replay on a GPU, and their stand-ins on the CPU for a rehearsal."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Protocol

import torch

from ..baselines import Implementation
from ..measure import interleave


class UncapturableError(RuntimeError):
    """A CUDA graph cannot capture the implementation; the message says why."""


class Machine(Protocol):
    """The device on which implementations run.

    Attributes:
        device: of the tensors.
        cache_bytes: inputs that together are smaller would stay in the cache.
    """

    device: torch.device
    cache_bytes: int

    def clock(self, implementation: Implementation, repeats: int) -> float:
        """Seconds per call of ``repeats`` calls in succession."""

    def peak(self, implementation: Implementation) -> int | None:
        """Peak bytes that one call adds, results included; None where that is unknown."""

    def replay(self, implementation: Implementation) -> Implementation:
        """The same calls captured in a CUDA graph, one for each of the implementation's copies.

        Raises:
            UncapturableError: the calls cannot be captured.
        """

    def synchronize(self) -> None:
        """Wait for the device; raises if it has failed."""

    def release(self) -> None:
        """Return freed memory to the device."""


class Gpu:
    """The current CUDA device, timed by its own events."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.properties = torch.cuda.get_device_properties(self.device)
        self.cache_bytes = int(self.properties.L2_cache_size)

    def clock(self, implementation: Implementation, repeats: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(repeats):
            implementation.reset()
            implementation.run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / repeats

    def peak(self, implementation: Implementation) -> int | None:
        implementation.reset()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = implementation.run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return peak

    def replay(self, implementation: Implementation) -> Implementation:
        # A call that waits for the device fails a capture and leaves the allocator unusable, so this is tested first.
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            implementation.reset()
            implementation.run()
        except RuntimeError as error:
            raise UncapturableError(first_line(error)) from None
        finally:
            torch.cuda.set_sync_debug_mode(before)

        def cycle() -> None:
            for _ in range(implementation.copies):
                implementation.reset()
                implementation.run()

        # captures run on another stream than the default one, and so does the warm-up
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            cycle()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            cycle()

        def replay() -> tuple[torch.Tensor, ...]:
            graph.replay()
            return ()

        return Implementation(implementation.name, replay, copies=implementation.copies)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


class Host:
    """The CPU, for a rehearsal. Its measurements have no meaning."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.cache_bytes = 5_000  # small, so that a rehearsal uses several inputs in turn too
        self._known: dict[Callable[[], object], float] = {}

    def clock(self, implementation: Implementation, repeats: int) -> float:
        # two calls of each implementation, whatever ``repeats`` is, because the interpreter is slow
        if implementation.run not in self._known:
            begin = time.perf_counter()
            for _ in range(2):
                implementation.reset()
                implementation.run()
            self._known[implementation.run] = (time.perf_counter() - begin) / 2
        return self._known[implementation.run]

    def peak(self, implementation: Implementation) -> int | None:
        implementation.reset()
        implementation.run()
        return None

    def replay(self, implementation: Implementation) -> Implementation:
        return implementation

    def synchronize(self) -> None:
        return None

    def release(self) -> None:
        gc.collect()


def first_line(error: BaseException) -> str:
    """Type and first line of an error's message, at most 200 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def copies_of(machine: Machine, size: int) -> int:
    """How many inputs of ``size`` bytes are used in turn, so that they exceed the cache twice."""
    return max(1, min(16, -(-2 * machine.cache_bytes // size)))


def samples(
    machine: Machine, implementations: list[Implementation], rounds: int, until: float = float("inf")
) -> dict[str, list[float]]:
    """Seconds per call of each implementation, one value per round; all take turns within a round."""
    return interleave(implementations, rounds, torch.get_num_threads(), clock=machine.clock, until=until)


def replayed(machine: Machine, implementation: Implementation, rounds: int) -> float:
    """Seconds per call replayed by a CUDA graph, without the gaps that Python leaves between kernels.

    Raises:
        UncapturableError: the calls cannot be captured.
    """
    graph = machine.replay(implementation)
    times = samples(machine, [graph], rounds)[implementation.name]
    return statistics.median(times) / implementation.copies

"""Time, memory and graph replay on a GPU; and on the CPU, where a rehearsal runs the same code."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Protocol

import torch

from ..baselines import Contender
from ..measure import interleave


class UncapturableError(RuntimeError):
    """A contender that a CUDA graph cannot hold; the message says why."""


class Machine(Protocol):
    """What contenders run on.

    Attributes:
        device: of the tensors.
        cache_bytes: inputs must be larger than that together, or a cache is measured.
        seconds_per_sample: what a sample shall take.
    """

    device: torch.device
    cache_bytes: int

    def clock(self, contender: Contender, repeats: int) -> float:
        """Seconds per call of ``repeats`` calls in succession."""

    def peak(self, contender: Contender) -> int | None:
        """Bytes that one call adds at its highest, results included; None where that is unknown."""

    def replay(self, contender: Contender) -> Contender:
        """The same calls captured in a CUDA graph, one for each of the contender's copies.

        Raises:
            UncapturableError: it does not work.
        """

    def synchronize(self) -> None:
        """Wait; raises if the device has failed."""

    def release(self) -> None:
        """Give freed memory back."""


class Gpu:
    """The current CUDA device, timed by its own events."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.properties = torch.cuda.get_device_properties(self.device)
        self.cache_bytes = int(self.properties.L2_cache_size)

    def clock(self, contender: Contender, repeats: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(repeats):
            contender.reset()
            contender.run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / repeats

    def peak(self, contender: Contender) -> int | None:
        contender.reset()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = contender.run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return peak

    def replay(self, contender: Contender) -> Contender:
        # A call that waits for the device ends a capture in a way that leaves the allocator unusable: found out first.
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            contender.reset()
            contender.run()
        except RuntimeError as error:
            raise UncapturableError(first_line(error)) from None
        finally:
            torch.cuda.set_sync_debug_mode(before)

        def cycle() -> None:
            for _ in range(contender.copies):
                contender.reset()
                contender.run()

        # warmed up on another stream than the default, as captures are
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

        return Contender(contender.name, replay, copies=contender.copies)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


class Host:
    """The CPU, for a rehearsal: nothing that is measured on it means anything."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.cache_bytes = 5_000  # so that a rehearsal's small inputs are taken in turn too
        self._known: dict[Callable[[], object], float] = {}

    def clock(self, contender: Contender, repeats: int) -> float:
        # each contender twice, whatever is asked for: the interpreter is slow
        if contender.run not in self._known:
            begin = time.perf_counter()
            for _ in range(2):
                contender.reset()
                contender.run()
            self._known[contender.run] = (time.perf_counter() - begin) / 2
        return self._known[contender.run]

    def peak(self, contender: Contender) -> int | None:
        contender.reset()
        contender.run()
        return None

    def replay(self, contender: Contender) -> Contender:
        return contender

    def synchronize(self) -> None:
        return None

    def release(self) -> None:
        gc.collect()


def first_line(error: BaseException) -> str:
    """Type and first line of an error's message, at most 200 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def copies_of(machine: Machine, size: int) -> int:
    """How many inputs of ``size`` bytes are taken in turn, so that they exceed the cache twice."""
    return max(1, min(16, -(-2 * machine.cache_bytes // size)))


def samples(
    machine: Machine, contenders: list[Contender], rounds: int, until: float = float("inf")
) -> dict[str, list[float]]:
    """Seconds per call of each contender, one value per round; all take turns within a round."""
    return interleave(contenders, rounds, torch.get_num_threads(), clock=machine.clock, until=until)


def replayed(machine: Machine, contender: Contender, rounds: int) -> float:
    """Seconds per call when a CUDA graph replays it: without the gaps that Python leaves between kernels.

    Raises:
        UncapturableError: it cannot be captured.
    """
    graph = machine.replay(contender)
    times = samples(machine, [graph], rounds)[contender.name]
    return statistics.median(times) / contender.copies

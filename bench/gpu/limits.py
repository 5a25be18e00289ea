"""The step "limits": measured rates of copies, exponentials, multiply-adds and launches; and what device it is."""

from __future__ import annotations

import time
from typing import Any

import torch
import triton
from torch import Tensor

from ..baselines import Implementation
from ..cases import Problem
from . import kernels
from .smi import LOAD, query
from .timing import Gpu, Machine, UncapturableError, first_line, replayed, samples

_WIDTH = 1024  # values of a program, in registers
_UNROLLED = 16  # operations on each value between two tests of the loop


def reads_labels(problems: list[Problem]) -> Implementation:
    """An implementation that only reads the uint8 labels once, those of the ``problems`` in turn."""
    width = 4096
    pixels = problems[0].labels.numel()
    sums = problems[0].labels.new_empty(-(-pixels // width), dtype=torch.int32)
    turn = 0

    def reset() -> None:
        nonlocal turn
        turn = (turn + 1) % len(problems)

    def run() -> tuple[Tensor, ...]:
        kernels.add_up[(len(sums),)](problems[turn].labels, sums, pixels, WIDTH=width, num_warps=4)
        return (sums,)

    return Implementation("labels", run, reset, copies=len(problems))


def measure_limits(machine: Machine) -> dict[str, Any]:
    """The device, its limits, and the clocks under load, as plain values."""
    gpu = isinstance(machine, Gpu)
    found: dict[str, Any] = {
        "bytes": _copy_rate(machine, (1 << 31) if gpu else (1 << 16)),
        "exponentials": _rate(machine, kernels.exponentials),
        "fmas": _rate(machine, kernels.multiply_adds),
    } | _launches(machine, 200 if gpu else 2)
    if isinstance(machine, Gpu):
        properties = machine.properties
        found["device"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": machine.cache_bytes,
            "cuda": torch.version.cuda,
        }
        found["clock"] = _clock_under_load(machine)
        megahertz = found["clock"].get("clocks.sm")
        if megahertz:
            per_clock = properties.multi_processor_count * megahertz * 1e6
            found["exponentials_per_clock"] = found["exponentials"] / per_clock
            found["fmas_per_clock"] = found["fmas"] / per_clock
    found["triton"] = triton.__version__
    return found


def _copy_rate(machine: Machine, size: int) -> float:
    """Bytes read plus bytes written per second by a copy within the device's memory."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    copy = Implementation("copy", lambda: (target.copy_(source),))
    return 2 * size / min(samples(machine, [copy], 7)["copy"])


def _arithmetic(machine: Machine, kernel: Any) -> tuple[Implementation, int]:
    """An implementation that computes only in registers, and its number of operations."""
    programs, loops, unrolled = 2, 1, 2
    if isinstance(machine, Gpu):
        # 32 programs of 1024 values on a multiprocessor, one after the other: many waves, milliseconds
        programs, loops, unrolled = 32 * machine.properties.multi_processor_count, 256, _UNROLLED
    out = torch.empty(programs * _WIDTH, device=machine.device)

    def run() -> tuple[Tensor, ...]:
        kernel[(programs,)](out, LOOPS=loops, WIDTH=_WIDTH, UNROLLED=unrolled, num_warps=4)
        return (out,)

    return Implementation("arithmetic", run), programs * _WIDTH * loops * unrolled


def _rate(machine: Machine, kernel: Any) -> float:
    implementation, operations = _arithmetic(machine, kernel)
    return operations / min(samples(machine, [implementation], 5)[implementation.name])


def _launches(machine: Machine, launches: int) -> dict[str, Any]:
    """Seconds per launch of an empty kernel: from Python, and replayed by a CUDA graph."""
    out = torch.empty(1, device=machine.device)

    def run() -> tuple[Tensor, ...]:
        for _ in range(launches):
            kernels.nothing[(1,)](out)
        return ()

    implementation = Implementation("launches", run)
    found: dict[str, Any] = {"launch": min(samples(machine, [implementation], 3)["launches"]) / launches}
    try:
        found["launch_in_graph"] = replayed(machine, implementation, 5) / launches
    except UncapturableError as error:
        found["launch_in_graph_failed"] = first_line(error)
    return found


def _clock_under_load(machine: Gpu) -> dict[str, Any]:
    """What nvidia-smi reports while the device computes exponentials."""
    implementation, _ = _arithmetic(machine, kernels.exponentials)
    calls = max(1, int(2.0 / machine.clock(implementation, 5)))
    begin = time.monotonic()
    for _ in range(min(calls, 900)):  # without synchronisation; about a thousand launches fit into the queue
        implementation.run()
    found = query(LOAD)
    found["queued_seconds"] = time.monotonic() - begin
    machine.synchronize()
    return found

"""The step "profile": the time of each kernel by PyTorch's profiler, and of the host, for ours and for eager."""

from __future__ import annotations

import functools
import re
import time
import warnings
from typing import Any

from torch.profiler import ProfilerActivity, profile

from ..baselines import Implementation
from .rows import ROWS, implementation_on, inputs_of, rehearsed
from .state import State
from .timing import Machine

MAIN = (
    *("ce-19", "resize-ce-150-x4", "resize-ce-19-x4", "confusion-19", "confusion-150", "cam-19", "cam-150"),
    *("ce-150", "ce-19-bf16", "ce-150-bf16", "resize-ce-150-x4-bf16", "resize-ce-19-x4-bf16"),
    *("ce-19-channels_last", "ce-150-channels_last", "resize-ce-19-x8", "resize-ce-150-x3.7"),
)
"""Keys of rows, the most important first."""

_REHEARSED = ("ce-19", "cam-19")
_CALLS = 12


def run_profiles(state: State, machine: Machine) -> None:
    """Profile row after row into ``state.data["rows"]`` until the time is up."""
    by_key = {row.key: row for row in ROWS}

    def piece(key: str) -> None:
        row = rehearsed(by_key[key]) if state.rehearse else by_key[key]
        found: dict[str, Any] = {"title": row.title}
        state.data["rows"][key] = found
        given = inputs_of(row, machine)
        for name in ("ours", "eager"):
            made = implementation_on(machine, row, name, given)
            found[name] = profile_calls(made, machine, 2 if state.rehearse else _CALLS)

    keys = _REHEARSED if state.rehearse else MAIN
    state.complete({key: functools.partial(piece, key) for key in keys}, machine, lambda: state.remaining() >= 1.5)


def profile_calls(made: Implementation, machine: Machine, calls: int) -> dict[str, Any]:
    """Seconds per call: ``host`` until the call returns, ``wall`` until the device has finished, and ``kernels``.

    The kernels are lists of name, launches and seconds per call, the longest first. On a CPU they are operators.
    """

    def run() -> None:
        for _ in range(calls):
            made.reset()
            made.run()

    run()  # compiles
    machine.synchronize()
    begin = time.perf_counter()
    run()
    host = time.perf_counter() - begin
    machine.synchronize()
    wall = time.perf_counter() - begin
    gpu = machine.device.type == "cuda"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about profiles of one cycle
        with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiled:
            run()
            machine.synchronize()
        events = profiled.key_averages()
    kernels = []
    for event in events:
        microseconds = event.self_device_time_total if gpu else event.self_cpu_time_total
        if microseconds > 0:
            kernels.append([short(event.key), event.count / calls, microseconds / 1e6 / calls])
    return {"host": host / calls, "wall": wall / calls, "kernels": sorted(kernels, key=lambda kernel: -kernel[2])}


def short(name: str) -> str:
    """A kernel's name without the common namespaces and without its parameters."""
    name = re.sub(r"\(anonymous namespace\)::|^void |at::native::|cawa_fast::cuda::|c10::", "", name)
    return name.partition("(")[0][:72]

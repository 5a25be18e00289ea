"""Where a call's time goes: each kernel's, by PyTorch's profiler, and the host's, ours beside eager PyTorch."""

from __future__ import annotations

import re
import time
import warnings
from typing import Any

from torch.profiler import ProfilerActivity, profile

from ..baselines import Contender
from .rows import ROWS, contender, problems, shrunk
from .state import State
from .timing import Machine, first_line

MAIN = (
    *("ce-19", "resize-ce-150-x4", "resize-ce-19-x4", "confusion-19", "confusion-150", "cam-19", "cam-150"),
    *("ce-150", "ce-19-bf16", "ce-150-bf16", "resize-ce-150-x4-bf16", "resize-ce-19-x4-bf16"),
    *("ce-19-channels_last", "ce-150-channels_last", "resize-ce-19-x8", "resize-ce-150-x3.7"),
)
"""Rows, the most important first."""

_REHEARSED = ("ce-19", "cam-19")
_CALLS = 12


def run(state: State, machine: Machine) -> None:
    """Profile row after row into ``state.data["rows"]`` until the time is up."""
    rows: dict[str, Any] = state.data.setdefault("rows", {})
    failed: dict[str, str] = state.data.setdefault("failed", {})
    by_key = {row.key: row for row in ROWS}
    for key in _REHEARSED if state.rehearse else MAIN:
        if state.remaining() < 1.5:
            state.data["note"] = f"out of time before {key}"
            break
        row = shrunk(by_key[key]) if state.rehearse else by_key[key]
        found = rows[key] = {"title": row.title}
        try:
            given = problems(row, machine)
            for name in ("ours", "eager"):
                made = contender(row, name, machine, given)
                found[name] = measure(made, machine, 2 if state.rehearse else _CALLS)
                print(f"{key}, {name}: {found[name]['host'] * 1e6:.0f} µs of the host's time", flush=True)
        except Exception as error:
            failed[key] = first_line(error)
        state.publish()
        made = given = None  # type: ignore[assignment]  # or their memory would stay
        machine.release()
        machine.synchronize()  # raises if the device has failed: then this process is of no more use


def measure(made: Contender, machine: Machine, calls: int) -> dict[str, Any]:
    """Seconds per call: ``host`` until the call returns, ``wall`` until the device has done it, ``kernels`` as lists of
    name, launches and seconds per call, the longest first (on a CPU PyTorch's operators)."""

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
        warnings.simplefilter("ignore")  # that a profile has one cycle
        with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiled:
            run()
            machine.synchronize()
        events = profiled.key_averages()
    kernels = [
        [
            short(event.key),
            event.count / calls,
            (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6,
        ]
        for event in events
    ]
    kernels = [[name, launches, seconds / calls] for name, launches, seconds in kernels if seconds > 0]
    return {"host": host / calls, "wall": wall / calls, "kernels": sorted(kernels, key=lambda kernel: -kernel[2])}


def short(name: str) -> str:
    """A kernel's name without what is the same for all, and without its parameters."""
    name = re.sub(r"\(anonymous namespace\)::|^void |at::native::|cawa_fast::cuda::|c10::", "", name)
    return name.partition("(")[0][:72]

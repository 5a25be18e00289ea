"""The headline: an epoch with this library and adaptive weights against plain PyTorch without, network by network."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import time
import traceback
from typing import Any

from ..epoch.measure import Epoch, summary
from ..epoch.rows import GPU_ROWS, Row
from .state import State
from .timing import Machine, first_line

MAIN = (
    *("segformer-ade20k", "torchvision-deeplab-cityscapes", "compact-cityscapes", "compact-ade20k"),
    *("torchvision-mobile-coco", "segformer-cityscapes", "compact-camvid"),
)
"""Rows of :data:`bench.epoch.rows.GPU_ROWS`, the most important first. The others need more packages."""

_REHEARSED = ("compact-camvid",)
_VARIANTS = "ade"  # plain PyTorch, ours, ours with adaptive weights
_ROUNDS = 7
_LONGEST = 12.0  # seconds of a row


def run(state: State, machine: Machine) -> None:
    """Measure all rows that are not in ``state`` yet, until its time is up; what there is, is published every round.

    A row that takes three times its time ends the process, and is not tried again by the next one.
    """
    rows: dict[str, Any] = state.data.setdefault("rows", {})
    failed: dict[str, str] = state.data.setdefault("failed", {})
    done: list[str] = state.data.setdefault("done", [])
    begun = state.data.pop("begun", None)
    if begun is not None and begun not in done:
        failed[begun] = "the process ended while this was measured; see the log"
        done.append(begun)
    by_key = {row.key: row for row in GPU_ROWS}
    keys = [key for key in (_REHEARSED if state.rehearse else MAIN) if key not in done]
    for place, key in enumerate(keys):
        seconds = min(_LONGEST, 1.6 * state.remaining() / (len(keys) - place))
        if seconds < 4 and not state.rehearse:
            state.data["note"] = f"out of time before {key}"
            break
        state.data["begun"] = key
        state.publish()
        row = by_key[key].shrunk() if state.rehearse else by_key[key]
        faulthandler.dump_traceback_later(max(3 * seconds, 20), exit=True)  # also where the host waits for the device
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(faulthandler.cancel_dump_traceback_later)
                measure(row, key, state, machine, time.monotonic() + min(seconds, state.remaining()))
        except Exception as error:
            failed[key] = first_line(error)
            traceback.print_exc()
        done.append(key)
        del state.data["begun"]
        state.publish()
        print(f"{key}: {rows[key]['rounds'] if key in rows else 'no'} rounds", flush=True)
        machine.release()
        machine.synchronize()  # a device that has failed ends this process; the next one goes on behind this row


def measure(row: Row, key: str, state: State, machine: Machine, until: float) -> None:
    """One row into ``state.data["rows"]``: after a round that compiles as many as there is time for, at least one."""
    epoch = Epoch(row, machine.device, _VARIANTS)
    epoch.round(0, lambda steps: None)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        rounds = []
        last = 0.0
        for turn in range(1 if state.rehearse else _ROUNDS):
            begin = time.monotonic()
            if turn and begin + last > until:
                break
            rounds.append(epoch.round(turn, lambda steps: None))
            last = time.monotonic() - begin
            state.data["rows"][key] = summary(row, rounds) | {"choices": epoch.choices}
            state.publish()
    finally:
        if collecting:
            gc.enable()

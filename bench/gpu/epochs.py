"""The step "epoch": epochs of networks with this library and adaptive weights, compared with plain PyTorch."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import time

from ..epoch.measure import Epoch, epoch_summary
from ..epoch.rows import GPU_ROWS, EpochRow
from ..measure import without_garbage_collection
from .state import State
from .timing import Machine

MAIN = (
    *("segformer-ade20k", "torchvision-deeplab-cityscapes", "compact-cityscapes", "compact-ade20k"),
    *("torchvision-mobile-coco", "segformer-cityscapes", "compact-camvid"),
)
"""Keys of :data:`bench.epoch.rows.GPU_ROWS`, the most important first. The other rows need more packages."""

_REHEARSED = ("compact-camvid",)
_VARIANTS = "ade"  # plain PyTorch, ours, ours with adaptive weights
_ROUNDS = 7
_LONGEST = 12.0  # seconds of a row


def run_epochs(state: State, machine: Machine) -> None:
    """Measure the rows that are not in ``state`` yet, until its time is up; every round is published.

    A row that takes three times its share ends the process, and the next process skips it.
    """
    done = state.resume()
    keys = [key for key in (_REHEARSED if state.rehearse else MAIN) if key not in done]

    def share() -> float:
        return min(_LONGEST, 1.6 * state.remaining() / sum(key not in done for key in keys))

    def piece(key: str) -> None:
        (row,) = (row for row in GPU_ROWS if row.key == key)
        seconds = share()
        # by a thread of its own, because it must also end a process that waits for the device
        faulthandler.dump_traceback_later(max(3 * seconds, 20), exit=True)
        with contextlib.ExitStack() as stack:
            stack.callback(faulthandler.cancel_dump_traceback_later)
            until = time.monotonic() + min(seconds, state.remaining())
            measure_network(row.shrunk() if state.rehearse else row, key, state, machine, until)

    pieces = {key: functools.partial(piece, key) for key in keys}
    state.complete(pieces, machine, lambda: state.rehearse or share() >= 4)


def measure_network(row: EpochRow, key: str, state: State, machine: Machine, until: float) -> None:
    """Measure one row into ``state.data["rows"]``: after a warm-up at least one round, and more while there is time."""
    epoch = Epoch(row, machine.device, _VARIANTS)
    epoch.round(0, lambda steps: None)
    rounds = []
    last = 0.0
    with without_garbage_collection():
        for turn in range(1 if state.rehearse else _ROUNDS):
            begin = time.monotonic()
            if turn and begin + last > until:
                break
            rounds.append(epoch.round(turn, lambda steps: None))
            last = time.monotonic() - begin
            state.data["rows"][key] = epoch_summary(row, rounds) | {"choices": epoch.choices}
            state.publish()

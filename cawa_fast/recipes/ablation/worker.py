"""The process that trains one run of an ablation; started by :mod:`cawa_fast.recipes.ablation.pool`.

The first line of standard input is the task. The end of the input means that the parent has ended, and ends this
process too. Standard output has one JSON object per event and line. Everything else that is printed goes to standard
error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, TextIO

from ..config import TrainConfig
from ..runs.folder import RunFolder
from ..training.trainer import Trainer

_PAUSE = 0.5  # seconds, at least, between two reports within an epoch


class Reporter:
    """Writes the progress of a run as lines of JSON.

    First ``{"event": "begin", "epoch": e, "pid": p}``; then ``{"event": "advance", "epoch": e}`` within epochs, where
    ``e`` is the number of epochs done, with a fraction; and ``{"event": "epoch", "epoch": e, "miou": m}`` after each.
    Implements :class:`cawa_fast.recipes.training.trainer.TrainingProgress`.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._images = 1
        self._epoch = self._done = 0
        self._last = 0.0

    def prepare(self, what: str, done: int, total: int) -> None: ...

    def begin(self, config: TrainConfig, trainer: Trainer) -> None:
        self._images = len(trainer.train_loader) * config.batch_size + len(trainer.val_set)
        self._images += 0 if trainer.test_set is None else len(trainer.test_set)
        self.write("begin", epoch=trainer.epochs_done, pid=os.getpid())

    def advance(self, phase: str, epoch: int, images: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._done = epoch, 0
        self._done += images
        if time.monotonic() - self._last > _PAUSE:
            self.write("advance", epoch=epoch - 1 + min(self._done / self._images, 1.0))

    def epoch_done(self, record: dict[str, Any]) -> None:
        self.write("epoch", epoch=record["epoch"], miou=record["miou"])

    def write(self, event: str, **values: Any) -> None:
        self._last = time.monotonic()
        self._out.write(json.dumps({"event": event, **values}) + "\n")
        self._out.flush()


def main() -> int:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    reporter = Reporter(out)
    try:
        folder = RunFolder(task["folder"])
        with folder.locked():
            Trainer(TrainConfig.from_dict(task["config"]), folder, reporter).fit()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        traceback.print_exc()
        reporter.write("failed", error=f"{type(error).__name__}: {error}")
        return 1
    return 0


def _die_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock, if held at the end of the interpreter, is a fatal error
        pass
    os._exit(1)  # no clean-up is needed, since files are written under temporary names


if __name__ == "__main__":
    sys.exit(main())

"""Runs killed at random moments, most of them while a file is written. Resumed, each ends with the same bits.

The disk of the killed processes is slow, so that a kill often finds one of them between two of its system calls.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cawa_fast.cli import main
from cawa_fast.recipes.runs import checkpoint
from cawa_fast.recipes.training import trainer
from tests.support.tiny_runs import TINY, arguments, assert_same_run
from tests.torture.outcome import Outcome

assert trainer  # imported before processes are forked, which saves each of them the time

_CONFIG = replace(TINY, epochs=8)
_WRITTEN = ("latest.pt", "latest.pt", "best.pt", "previous.pt", "metrics.jsonl", "confusion.json", "dataset.json")
_PATIENCE = 10.0  # seconds until a process is killed, whatever it does
_SLOW = 0.004  # seconds that a system call takes on a slow disk


def run(seed: int, n: int) -> Outcome:
    """Kill a run ``n`` times; whenever it reaches its last epoch, compare it with an undisturbed one and begin anew."""
    numbers = random.Random(seed)
    lost: list[str] = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory() as name:
        whole, torn, log = Path(name, "whole"), Path(name, "torn"), Path(name, "log")

        def live(folder: Path, moment: Callable[[], bool] | None) -> bool:
            """Train until the moment or to the end. Whether it was killed."""
            process = context.Process(target=_train, args=(folder, log, moment is not None), daemon=True)
            process.start()
            end = time.monotonic() + (_PATIENCE if moment is not None else 120)
            while process.is_alive() and time.monotonic() < end and not (moment is not None and moment()):
                time.sleep(0.0005)
            process.kill()
            process.join()
            killed = process.exitcode != 0
            process.close()
            return killed

        if live(whole, None):
            return Outcome(n, 0, [f"the undisturbed run failed: {log.read_text()[-500:]}"])
        kills = 0
        moments: list[str] = []
        while kills < n:
            what, moment = _moment(torn, numbers)
            killed = live(torn, moment)
            kills += killed
            moments.append(what)
            output = log.read_text()
            problem = output[-500:] if "Error" in output or "Traceback" in output else None
            if problem or not killed or kills == n:
                if problem := problem or _difference(whole, torn, live):
                    lost.append(f"kill {kills}, after {', '.join(moments)}: {problem}")
                shutil.rmtree(torn, ignore_errors=True)
                moments.clear()
    return Outcome(n, n - len(lost), lost)


def _moment(folder: Path, numbers: random.Random) -> tuple[str, Callable[[], bool]]:
    """A moment at random, in words, and whether it has come."""
    delay, started = numbers.random(), time.monotonic()
    if numbers.random() < 0.25:
        return f"{4 * delay:.2f} s", lambda: time.monotonic() > started + 4 * delay
    name = numbers.choice(_WRITTEN)
    seen: list[float] = []

    def writes() -> bool:
        with contextlib.suppress(OSError):
            if not seen and any(entry.startswith(f".{name}.") for entry in os.listdir(folder)):
                seen.append(time.monotonic())
        # some time later, since it takes the disk a while to write the file
        return bool(seen) and time.monotonic() > seen[0] + delay * 10 * _SLOW

    return f"writing {name}", writes


def _difference(whole: Path, torn: Path, live: Callable[[Path, None], bool]) -> str | None:
    """Resume the run to its end; how it then differs from the undisturbed one."""
    if live(torn, None):
        return "it does not go on"
    try:
        assert_same_run(whole, torn)
        for name in ("best.pt", "previous.pt"):
            first, second = (torch.load(path / name, weights_only=True) for path in (whole, torn))
            assert first["epoch"] == second["epoch"], name
            torch.testing.assert_close(second["model"], first["model"], rtol=0, atol=0)
        assert not list(torn.glob(".*")), "files are left over"
    except (AssertionError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _train(folder: Path, log: Path, slow: bool) -> None:
    """The process that is killed."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if slow:
        for name in ("fsync", "replace", "link", "unlink"):
            setattr(os, name, _slowly(getattr(os, name)))
        checkpoint._Summed.write = _slowly(checkpoint._Summed.write, 0.1)  # type: ignore[method-assign]
    sys.argv = ["cawa-fast", *arguments(_CONFIG, folder), "--resume"]
    main()


def _slowly(call: Callable[..., Any], part: float = 1.0) -> Callable[..., Any]:
    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(part * _SLOW)
        result = call(*args, **options)
        time.sleep(part * _SLOW)
        return result

    return slow

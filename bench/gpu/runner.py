"""Runs processes with a time limit; holds the log and the result of the whole command."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click

from ..files import ROOT, write_result
from . import report

LOG_BYTES = 400_000
"""Bytes that a step may add to the log; of more, the beginning and the end are kept."""

_numbers = itertools.count()
_GRACE = 8.0  # seconds that a process has to end after an interrupt
_REFRESH = 5.0  # seconds between two looks at what a running step has published


@dataclass(frozen=True)
class Done:
    """How a process ended.

    Attributes:
        code: the exit status; None if its time was up.
        output: of both streams.
        seconds: how long it took.
    """

    code: int | None
    output: str
    seconds: float

    @property
    def how(self) -> str:
        """In words, for notes."""
        if self.code is None:
            return f"stopped after {self.seconds:.0f} s"
        return f"exit status {self.code} after {self.seconds:.0f} s"


class Run:
    """One run of the command: its files, its time, its processes."""

    def __init__(self, out: Path, minutes: float, rehearse: bool, result: dict[str, Any]) -> None:
        self.out = out
        self.rehearse = rehearse
        self.result = result
        self.seconds = 60 * minutes
        self.report_failed = False
        self._begin = time.monotonic()
        self.log = out / "gpu.log"
        out.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")

    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self._begin

    def remaining(self) -> float:
        """Seconds until its time is up."""
        return self.seconds - self.elapsed()

    def say(self, text: str) -> None:
        """Print a line with the time, and write it into the log."""
        line = f"[{self.elapsed():4.0f} s, {max(self.remaining(), 0):4.0f} s left] {text}"
        click.echo(line)
        sys.stdout.flush()
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n=== {line}\n")

    def publish(self) -> None:
        """Rewrite ``gpu.json`` and ``gpu.md``."""
        try:
            page = report.gpu_page(self.result)
        except Exception:  # an error in the table must not end the measurement
            self.report_failed = True
            page = f"gpu.json holds the results; this table could not be made:\n\n```\n{traceback.format_exc()}```\n"
        write_result(self.out / "gpu", self.result, page)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of the processes: the device or the interpreter, and no settings of other test runs."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
        kept.pop("TRITON_INTERPRET", None)
        kept |= {"CAWA_FAST_TEST_DEVICE": "cpu" if self.rehearse else "cuda", "PYTHONUNBUFFERED": "1"}
        if self.rehearse:
            kept["TRITON_INTERPRET"] = "1"
        return kept | more

    def spawn(
        self,
        command: list[str],
        seconds: float,
        *,
        environment: dict[str, str] | None = None,
        refresh: Callable[[], None] | None = None,
    ) -> Done:
        """Run ``command`` in the repository for at most ``seconds``; its output goes into the log.

        When the time is up, the process and those that it has started get SIGINT, and a little later SIGKILL.

        Args:
            command: program and arguments.
            seconds: how long it may run.
            environment: by default :meth:`environment`.
            refresh: called every few seconds.
        """
        begin = time.monotonic()
        offset = self.log.stat().st_size
        code: int | None = None
        with self.log.open("ab") as log:
            process = self._start(command, log, environment)
            try:
                code = _wait(process, seconds, refresh)
            finally:
                if code is None:
                    _end(process)
        data = self.log.read_bytes()
        output = data[offset:].decode(errors="replace")
        if len(data) - offset > LOG_BYTES:
            half = LOG_BYTES // 2
            cut = b"\n... left out ...\n"
            self.log.write_bytes(data[: offset + half] + cut + data[-half:])
        return Done(code, output, time.monotonic() - begin)

    @contextlib.contextmanager
    def beside(
        self, command: list[str], *, environment: dict[str, str] | None = None
    ) -> Iterator[Callable[[float], Done]]:
        """Run ``command`` in the background of the block; yields a function that waits some seconds for its end.

        At the end of the block the process is killed if it still runs, and its output goes into the log.
        """
        begin = time.monotonic()
        path = self.out / f".beside-{next(_numbers)}.log"
        with path.open("wb") as log:
            process = self._start(command, log, environment)
        code: int | None = None

        def finish(seconds: float) -> Done:
            nonlocal code
            code = _wait(process, seconds, None)
            if code is None:
                _end(process)
            return Done(code, path.read_text(encoding="utf-8", errors="replace"), time.monotonic() - begin)

        try:
            yield finish
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its remaining output is not needed
                process.wait()
            data = path.read_bytes()[-LOG_BYTES // 4 :]
            with self.log.open("ab") as log:
                log.write(b"\n--- beside: " + " ".join(command[1:6]).encode() + b"\n" + data)
            path.unlink()

    def _start(self, command: list[str], log: BinaryIO, environment: dict[str, str] | None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment or self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that _end also reaches the processes that it starts
        )

    def child(self, step: str, seconds: float, into: dict[str, Any]) -> Done:
        """Run a step of :mod:`bench.gpu.child`, or continue it; ``into`` gets what the step publishes."""
        path = self.out / f".{step}.json"
        if "processes" not in into:
            path.unlink(missing_ok=True)  # from an earlier run of the command
        into["processes"] = into.get("processes", 0) + 1
        last = 0

        def refresh() -> None:
            nonlocal last
            if path.exists() and path.stat().st_mtime_ns != last:
                last = path.stat().st_mtime_ns
                into.update(json.loads(path.read_text(encoding="utf-8")))
                self.publish()

        # the limit of the child itself is tighter, so that it ends between two measurements
        command = [sys.executable, "-m", "bench.gpu.child", step, str(path), f"{max(seconds - 2, 1):.1f}"]
        done = self.spawn(command + (["--rehearse"] if self.rehearse else []), seconds + _GRACE, refresh=refresh)
        refresh()
        if done.code == 0:
            path.unlink(missing_ok=True)
        return done


def _wait(process: subprocess.Popen[bytes], seconds: float, refresh: Callable[[], None] | None) -> int | None:
    """The exit status, or None when the time is up."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            return process.wait(timeout=min(left, _REFRESH))
        except subprocess.TimeoutExpired:
            if refresh:
                refresh()
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt the process and all that it started, then kill them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_GRACE)
    with contextlib.suppress(ProcessLookupError):  # processes that it started may ignore the interrupt
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

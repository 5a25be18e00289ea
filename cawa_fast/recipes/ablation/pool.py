"""The processes of an ablation. Each trains one run and reports its progress as lines of JSON."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import TrainConfig

_GRACE = 20.0  # seconds between SIGTERM and SIGKILL

Event = dict[str, Any]


class Pool:
    """Trains runs in processes of their own, a few at a time. A run that fails does not affect the others.

    Args:
        out: the folder that holds the run folders.
        devices: one entry for each run at a time.
    """

    def __init__(self, out: Path, devices: Sequence[str]) -> None:
        self.out, self.devices = out, devices
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._stop = threading.Event()

    def run(self, configs: Mapping[str, TrainConfig]) -> Generator[tuple[str, Event], None, None]:
        """Train the runs in their order; yields ``(name of the folder, event)`` until all have ended.

        The events of a run are ``{"event": "start"}``, those of
        :class:`cawa_fast.recipes.ablation.worker.Reporter`, and ``{"event": "end", "error": None or the reason}``.
        Closing the iterator ends the processes.
        """
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name in configs:
            waiting.put(name)
        events: queue.SimpleQueue[tuple[str, Event] | None] = queue.SimpleQueue()
        threads = [
            threading.Thread(target=self._work, args=(configs, device, waiting, events), daemon=True)
            for device in self.devices[: len(configs)]
        ]
        try:
            for thread in threads:
                thread.start()
            running = len(threads)
            while running:
                item = events.get()
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            self._stop.set()
            self._end()
            for thread in threads:
                thread.join()

    def _work(
        self,
        configs: Mapping[str, TrainConfig],
        device: str,
        waiting: queue.SimpleQueue[str],
        events: queue.SimpleQueue[tuple[str, Event] | None],
    ) -> None:
        """The thread of one device: trains one run after the other and forwards the events of its process."""
        try:
            while not self._stop.is_set():
                try:
                    name = waiting.get_nowait()
                except queue.Empty:
                    return
                events.put((name, {"event": "start"}))
                try:
                    error = self._train(name, replace(configs[name], device=device), events)
                except Exception as problem:  # an exception in a thread would be lost
                    error = f"{type(problem).__name__}: {problem}"
                events.put((name, {"event": "end", "error": error}))
        finally:
            events.put(None)

    def _train(self, name: str, config: TrainConfig, events: queue.SimpleQueue[tuple[str, Event] | None]) -> str | None:
        """Train one run in a process. Returns what went wrong, or None."""
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "worker.log"
        error: str | None = None
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "cawa_fast.recipes.ablation.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,  # so that Ctrl-C reaches only this process, which then ends the others
            )
        assert process.stdin is not None
        assert process.stdout is not None
        self._processes[name] = process
        try:
            if self._stop.is_set():  # checked after the process is registered, so that _end() or this line ends it
                process.terminate()
            with contextlib.suppress(BrokenPipeError):  # the process is dead already; its exit status says why
                process.stdin.write(json.dumps({"config": config.as_dict(), "folder": str(folder)}) + "\n")
                process.stdin.flush()
            for line in process.stdout:
                event = json.loads(line)
                error = event.get("error", error)
                events.put((name, event))
            status = process.wait()
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # ends the process if it still runs
            process.stdout.close()
            del self._processes[name]
        if not log.stat().st_size or status == 0:
            log.unlink()
        if status == 0:
            return None
        if error is None and status < 0:
            cause = signal.Signals(-status).name
            error = f"killed by {cause}" + (", perhaps for lack of memory" if cause == "SIGKILL" else "")
        return f"{error or f'ended with exit status {status}'}{f' (see {log})' if log.exists() else ''}"

    def _end(self) -> None:
        for process in list(self._processes.values()):
            process.terminate()
        deadline = time.monotonic() + _GRACE
        while self._processes and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in list(self._processes.values()):
            process.kill()

"""What a process on the device has found, in a file that survives the process."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..files import write_text
from .timing import Machine, first_line


class State:
    """What a step has found so far, and how much time it has left."""

    def __init__(self, path: Path, seconds: float, rehearse: bool) -> None:
        self.path = path
        self.rehearse = rehearse
        self.data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds until the time is up."""
        return self._end - time.monotonic()

    def publish(self) -> None:
        """Write the file; a reader sees the old file or the new one."""
        write_text(self.path, json.dumps(self.data))

    def resume(self) -> list[str]:
        """The names of the pieces that are done. One during which an earlier process ended is recorded as failed."""
        self.data.setdefault("rows", {})
        failed = self.data.setdefault("failed", {})
        done: list[str] = self.data.setdefault("done", [])
        begun = self.data.pop("begun", None)
        if begun is not None and begun not in done:
            failed[begun] = "the process ended while this was measured; see the log"
            done.append(begun)
        return done

    def complete(
        self, pieces: Mapping[str, Callable[[], object]], machine: Machine, has_time: Callable[[], bool]
    ) -> None:
        """Run the pieces that are not done, while there is time, and publish after each.

        A piece that raises is recorded as failed. If the device has failed too, the synchronisation after the piece
        ends this process, and the next process continues with the next piece.
        """
        done = self.resume()
        for name, piece in pieces.items():
            if name in done:
                continue
            if not has_time():
                self.data["note"] = f"out of time before {name}"
                break
            self.data["begun"] = name
            self.publish()
            begin = time.monotonic()
            try:
                piece()
            except Exception as error:
                self.data["failed"][name] = first_line(error)
                traceback.print_exc()
            print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)
            done.append(name)
            del self.data["begun"]
            self.publish()
            machine.release()
            machine.synchronize()

"""What a process has found, in a file that outlives it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ..table import write_text


class State:
    """What a step has found so far, and how much time it has left."""

    def __init__(self, path: Path, seconds: float, rehearse: bool) -> None:
        self.path = path
        self.rehearse = rehearse
        self.data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def publish(self) -> None:
        """Write what there is; whoever reads meanwhile sees the old file or the new."""
        write_text(self.path, json.dumps(self.data))

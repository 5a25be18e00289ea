"""Where results live, and how they are written: a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cawa_fast.recipes.files import atomic

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"


def write_result(out: Path, result: Any, page: str, picture: bytes | None = None) -> None:
    """Write ``out``.json, ``out``.md and, if there is a picture, ``out``.png; ``out`` has no suffix."""
    write_text(out.with_name(out.name + ".json"), json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if picture is not None:
        write_bytes(out.with_name(out.name + ".png"), picture)
    write_text(out.with_name(out.name + ".md"), page)


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole; its folder is created."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file as a whole; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(content)

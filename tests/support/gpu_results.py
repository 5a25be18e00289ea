"""Made-up measurements of ``python -m bench gpu``."""

from __future__ import annotations

from typing import Any

from bench.gpu.rows import ROWS


def fake_row(ours: float = 0.2e-3, **more: Any) -> dict[str, Any]:
    """The row "ce-19" with our implementation alone, which took ``ours`` seconds; ``more`` replaces or adds fields."""
    (row,) = (row for row in ROWS if row.key == "ce-19")
    floor = row.floor(gather=True)
    return {
        "title": row.title,
        "contenders": {"ours": {"median": ours, "seconds": [ours], "peak_bytes": 318_767_104 + 4096}},
        "faster": {},
        "graph": {},
        "failed": {},
        "floor": {"bytes": floor.bytes, "exponentials": floor.exponentials, "fmas": floor.fmas},
    } | more

"""Queries of nvidia-smi about the first device. No setting is changed."""

from __future__ import annotations

import subprocess
from typing import Any

LOAD = ("clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw")
"""Fields that change under load."""

IDENTITY = ("name", "compute_cap", "driver_version", "memory.total")
"""Fields that identify the kind of device."""


def query(fields: tuple[str, ...]) -> dict[str, Any]:
    """What nvidia-smi reports about the first device, numbers as floats; empty where it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_query(fields, done.stdout)


def parse_query(fields: tuple[str, ...], output: str) -> dict[str, Any]:
    """The first line of nvidia-smi's comma-separated answer."""
    found: dict[str, Any] = {}
    for field, text in zip(fields, output.splitlines()[0].split(",") if output.strip() else [], strict=False):
        try:
            found[field] = float(text)
        except ValueError:
            found[field] = text.strip()
    return found

"""What a compiled kernel needs of a GPU: registers, spills, stack, shared memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Bytes that a block may use, by compute capability without the point (CUDA programming guide)."""


@dataclass(frozen=True, order=True)
class Resources:
    """One kernel, compiled for one architecture."""

    kernel: str
    configuration: str
    architecture: int  # compute capability without the point
    registers: int  # per thread
    spills: int  # bytes stored and loaded
    stack: int  # bytes per thread in local memory
    shared_memory: int  # bytes per block, without what a launch adds


def faults(table: Iterable[Resources]) -> list[str]:
    """Spills, local memory, and more shared memory than the architecture has, in words."""
    found = []
    for row in table:
        name = f"{row.kernel} ({row.configuration}) on sm_{row.architecture}"
        if row.spills:
            found.append(f"{name} spills {row.spills} bytes")
        if row.stack:
            found.append(f"{name} has {row.stack} bytes of local memory")
        if row.shared_memory > SHARED_MEMORY[row.architecture]:
            found.append(f"{name} needs {row.shared_memory} bytes of shared memory")
    return found

"""How much work each program does: tables with one entry per configuration that may be chosen.

``python -m bench gpu`` times every entry and reports which should come first. ``maxnreg`` is the register limit:
without it ptxas on sm_90 spills a register or two to fit one more warp on a multiprocessor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor

from ._launch import cdiv, power_of_2

TABLES: dict[str, list[dict[str, int]]] = {
    "label_histogram": [
        {"BLOCK": 2048, "DISTINCT": 6, "num_warps": 4},
    ],
    "confusion_matrix": [
        {"ROWS": 8, "COLUMNS": 32, "DISTINCT": 4, "num_warps": 1, "maxnreg": 112},
        {"ROWS": 16, "COLUMNS": 32, "DISTINCT": 6, "num_warps": 2, "maxnreg": 112},
        {"ROWS": 16, "COLUMNS": 64, "DISTINCT": 6, "num_warps": 4, "maxnreg": 112},
    ],
    "cam_counts": [
        {"ROWS": 8, "COLUMNS": 32, "num_warps": 1},
        {"ROWS": 16, "COLUMNS": 32, "num_warps": 2},
        {"ROWS": 16, "COLUMNS": 64, "num_warps": 4},
    ],
    "cam_extremes": [
        {"ROWS": 8, "COLUMNS": 32, "TILES": 64, "num_warps": 1},
        {"ROWS": 16, "COLUMNS": 32, "TILES": 32, "num_warps": 2},
    ],
    # ITEMS is 32 * num_warps: one cell per lane
    "cross_entropy": [
        {"ITEMS": 128, "CLASSES": 4, "PHASES": 4, "num_warps": 4},
        {"ITEMS": 64, "CLASSES": 4, "PHASES": 4, "num_warps": 2},
        {"ITEMS": 128, "CLASSES": 4, "PHASES": 2, "num_warps": 4},
        {"ITEMS": 128, "CLASSES": 8, "PHASES": 2, "num_warps": 4},
    ],
    # One warp, so that all pixels and classes of a lane are in its own registers.
    "cross_entropy_backward": [
        {"CLASSES": 4, "PHASES": 4, "ROWS": 8, "num_warps": 1, "maxnreg": 255},
        {"CLASSES": 4, "PHASES": 2, "ROWS": 8, "num_warps": 1, "maxnreg": 255},
        {"CLASSES": 4, "PHASES": 1, "ROWS": 8, "num_warps": 1, "maxnreg": 255},
        {"CLASSES": 4, "PHASES": 4, "ROWS": 16, "num_warps": 1, "maxnreg": 255},
    ],
    "cross_entropy_same": [
        {"ITEMS": 256, "CLASSES": 4, "num_warps": 4},
        {"ITEMS": 128, "CLASSES": 8, "num_warps": 4},
    ],
}
"""Configurations by kernel, the preferred one first."""

_MAX_PATCH = 256  # samples; checking a larger patch costs more than interpolating the pixels that it could decide

_forced: dict[str, Mapping[str, int]] = {}


def choose(kernel: str) -> Mapping[str, int]:
    """The configuration in which ``kernel``, a key of :data:`TABLES`, runs."""
    return _forced.get(kernel) or TABLES[kernel][0]


@contextlib.contextmanager
def forced(kernel: str, configuration: Mapping[str, int]) -> Iterator[None]:
    """Context in which ``kernel`` runs in ``configuration``, for tests and for tuning."""
    previous = _forced.get(kernel)
    _forced[kernel] = configuration
    try:
        yield
    finally:
        if previous is None:
            del _forced[kernel]
        else:
            _forced[kernel] = previous


def step(in_size: int, out_size: int, align_corners: bool) -> float:
    """Distance of neighbouring output positions, in input samples."""
    return (in_size - 1) / max(out_size - 1, 1) if align_corners else in_size / max(out_size, 1)


def most_outputs(in_size: int, out_size: int, align_corners: bool) -> int:
    """Upper bound of the number of output positions in a cell (_cells.py)."""
    if align_corners:
        return cdiv(out_size - 1, in_size - 1) if in_size > 1 and out_size > 1 else out_size
    return cdiv(out_size, in_size)


def stats_size(input: Tensor, target: Tensor, gamma: float, align_corners: bool) -> int:
    """Float32 values that ``cross_entropy`` stores for the backward pass: two per pixel, of a focal loss three, plus
    padding of cells.

    ``input``: ``(N, C, h, w)``. ``target``: ``(N, H, W)``.
    """
    per_pixel = 3 if gamma > 0 else 2
    if input.shape[2:] == target.shape[1:]:
        return per_pixel * target.numel()
    (_, width), (out_height, out_width) = input.shape[2:], target.shape[1:]
    return per_pixel * target.shape[0] * out_height * (width + 1) * most_outputs(width, out_width, align_corners)


def patch(tile: Mapping[str, int], low: tuple[int, int], high: tuple[int, int], align_corners: bool) -> tuple[int, int]:
    """``(rows, columns)``, powers of two, of the patch of samples that a tile of pixels reads.

    ``low``: ``(h, w)`` of the samples. ``high``: ``(H, W)`` of the pixels. (0, 0) if the patch is too large to pay off.
    """

    def samples(in_size: int, out_size: int, pixels: int) -> int:
        distance = (min(pixels, out_size) - 1) * step(in_size, out_size, align_corners)
        return power_of_2(min(int(distance + 1e-3) + 3, in_size))

    rows = samples(low[0], high[0], tile["ROWS"])
    columns = samples(low[1], high[1], tile["COLUMNS"])
    return (rows, columns) if rows * columns <= _MAX_PATCH else (0, 0)

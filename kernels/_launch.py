"""How kernels are launched. Every launch goes through one function, so that tests can record it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], tile: Mapping[str, int], *, fuse: bool = False
) -> None:
    """Run ``kernel`` on ``grid`` with ``arguments`` by name; an empty grid launches nothing.

    ``tile`` may hold compiler options: num_warps, maxnreg. Without ``fuse``, every product and every sum is rounded, as
    the specification requires where pixels are counted. With ``fuse``, the compiler may form fused multiply-adds, which
    are faster and round once.
    """
    if all(grid):
        kernel[grid](**arguments, **compiler_options(tile, fuse))


def compiler_options(tile: Mapping[str, int], fuse: bool) -> dict[str, Any]:
    return {name: tile[name] for name in ("num_warps", "maxnreg") if name in tile} | {"enable_fp_fusion": fuse}


FOUR_WARPS = {"num_warps": 4}


def warps_of(block: int) -> dict[str, int]:
    """``num_warps`` for a program that holds ``block`` values, each in several registers: thousands would spill."""
    return {"num_warps": min(max(block // 256, 4), 32)}


def needs_64_bits(tensor: Tensor) -> bool:
    """Whether offsets within the last two dimensions of ``tensor`` exceed 32 bits."""
    return (
        sum((size - 1) * stride for size, stride in zip(tensor.shape[-2:], tensor.stride()[-2:], strict=True)) >= 2**31
    )


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The least power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()

"""How kernels are launched: in one place, where tests can see each launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], tile: Mapping[str, int], *, fuse: bool = False
) -> None:
    """Run ``kernel`` with ``arguments`` by name, and of ``tile`` what is the compiler's: num_warps, maxnreg.

    Without ``fuse`` products and sums are rounded one by one, as the specification does where pixels are counted; with
    it they are fused, which is faster and rounds less.
    """
    if all(grid):
        kernel[grid](**arguments, **compiler_options(tile, fuse))


def compiler_options(tile: Mapping[str, int], fuse: bool) -> dict[str, Any]:
    return {name: tile[name] for name in ("num_warps", "maxnreg") if name in tile} | {"enable_fp_fusion": fuse}


FOUR_WARPS = {"num_warps": 4}


def warps_of(block: int) -> dict[str, int]:
    """For a program that holds ``block`` values at once in several registers each, which thousands would overflow."""
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

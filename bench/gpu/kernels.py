# mypy: allow-untyped-defs
# (Triton reads annotations as its own, so that kernels have none.)
"""Kernels that measure the limits of a device.

The number of loops is a constant, because the interpreter of Triton 3.6 cannot loop to an argument with NumPy 2.4.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exponentials(out, LOOPS: tl.constexpr, WIDTH: tl.constexpr, UNROLLED: tl.constexpr):
    """``UNROLLED * LOOPS`` times exp2 of each of ``WIDTH`` values in registers, then a store."""
    offsets = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    x = offsets.to(tl.float32) * 1e-9
    for _ in range(LOOPS):
        for _ in tl.static_range(UNROLLED):
            x = tl.exp2(-x)  # converges to 0.64, so nothing overflows; the minus needs no instruction of its own
    tl.store(out + offsets, x)


@triton.jit
def multiply_adds(out, LOOPS: tl.constexpr, WIDTH: tl.constexpr, UNROLLED: tl.constexpr):
    """The same with a fused multiply-add."""
    offsets = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    x = offsets.to(tl.float32) * 1e-9
    factor = tl.full((WIDTH,), 0.75, tl.float32)
    addend = tl.full((WIDTH,), 0.25, tl.float32)
    for _ in range(LOOPS):
        for _ in tl.static_range(UNROLLED):
            x = tl.fma(x, factor, addend)
    tl.store(out + offsets, x)


@triton.jit
def nothing(out):
    """Does nothing: the time of a launch."""


@triton.jit
def add_up(labels, sums, pixels, WIDTH: tl.constexpr):
    """Each program adds up ``WIDTH`` of the uint8 ``labels``."""
    offsets = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    values = tl.load(labels + offsets, mask=offsets < pixels, other=0)
    tl.store(sums + tl.program_id(0), tl.sum(values.to(tl.int32)))

"""Cells along one axis, for the kernels of resized cross-entropy.

"Samples" are the low-resolution logits along the axis: ``in_size`` of them, at positions 0, 1, ... "Outputs" are the
``out_size`` positions of the labels. Output i lies at ``(i * scale + shift) / unit`` among the samples. Cell s is the
set of outputs in [s, s + 1); s runs from -1, left of the first sample, to ``in_size - 1``.

Positions are integers, because double precision is slow on most GPUs and float32 would make the interpolation weights
inexact.
"""

import triton
import triton.language as tl


@triton.jit
def line_of(in_size, out_size, ALIGN_CORNERS: tl.constexpr, WIDE: tl.constexpr):
    """``(scale, shift, unit)`` of an axis: int64 if WIDE, for axes whose products overflow int32."""
    if WIDE:
        in_size = in_size.to(tl.int64)
        out_size = out_size.to(tl.int64)
    if ALIGN_CORNERS:
        return in_size - 1, in_size * 0, tl.maximum(out_size - 1, 1)
    else:
        return 2 * in_size, in_size - out_size, 2 * out_size


@triton.jit
def first_output(cell, out_size, line):
    """The first output in ``cell``, int32. If the cell is empty: the first in a later cell, or ``out_size``."""
    scale, shift, unit = line
    ahead = cell * unit - shift  # output i lies left of the cell if i * scale < ahead
    first = (tl.maximum(ahead, 0) + scale - 1) // tl.maximum(scale, 1)
    first = tl.where(scale > 0, first, tl.where(cell > 0, out_size, 0))  # scale 0: one sample, one cell
    return tl.minimum(first, out_size).to(tl.int32)


@triton.jit
def weight_of(out, left, in_size, line):
    """Interpolation weight of sample ``left + 1`` at outputs ``out``, float32; in [0, 1] between these two samples.

    Outputs outside the samples are clamped to the border.
    """
    scale, shift, unit = line
    position = tl.minimum(tl.maximum(out * scale + shift, 0), (in_size - 1) * unit)
    return (position - left * unit).to(tl.float32) * (1 / unit.to(tl.float32))


@triton.jit
def cell_of(out, in_size, line):
    """The cells of outputs ``out``, int32. Outputs outside the samples are clamped to the border."""
    scale, shift, unit = line
    return (tl.minimum(tl.maximum(out * scale + shift, 0), (in_size - 1) * unit) // unit).to(tl.int32)


@triton.jit
def fused(a, b, c):
    """``a * b + c`` with one rounding, for shapes that broadcast."""
    a, b = tl.broadcast(a, b)
    a, c = tl.broadcast(a, c)
    a, b = tl.broadcast(a, b)
    return tl.fma(a, b, c)


@triton.jit
def blend(a, b, weight):
    """``a * (1 - weight) + b * weight``. The form ``a + (b - a) * weight`` would be NaN for two equal infinities."""
    return fused(b, weight, a * (1 - weight))

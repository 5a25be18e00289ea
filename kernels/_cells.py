"""Cells: the pixels between two neighbouring samples along one axis, for the kernels of resized cross-entropy.

Cell s has the output positions that lie in [s, s + 1) among the samples, s from -1 (left of the first sample) to the
last sample. In integers, since double precision is slow on most GPUs and float32 would blur the weights: output i lies
at ``(i * scale + shift) / unit``.
"""

import triton
import triton.language as tl


@triton.jit
def line_of(in_size, out_size, ALIGN_CORNERS: tl.constexpr, WIDE: tl.constexpr):
    """``(scale, shift, unit)`` of an axis."""
    if WIDE:
        in_size = in_size.to(tl.int64)
        out_size = out_size.to(tl.int64)
    if ALIGN_CORNERS:
        return in_size - 1, in_size * 0, tl.maximum(out_size - 1, 1)
    else:
        return 2 * in_size, in_size - out_size, 2 * out_size


@triton.jit
def first_output(cell, out_size, line):
    """The first output position in ``cell``, or else in a later one."""
    scale, shift, unit = line
    ahead = cell * unit - shift  # in front of it the position is smaller
    first = (tl.maximum(ahead, 0) + scale - 1) // tl.maximum(scale, 1)
    first = tl.where(scale > 0, first, tl.where(cell > 0, out_size, 0))  # a single sample: everything is in cell 0
    return tl.minimum(first, out_size).to(tl.int32)


@triton.jit
def weight_of(out, left, in_size, line):
    """Of the sample behind ``left`` at output positions; positions outside the samples count as on the border."""
    scale, shift, unit = line
    position = tl.minimum(tl.maximum(out * scale + shift, 0), (in_size - 1) * unit)
    return (position - left * unit).to(tl.float32) * (1 / unit.to(tl.float32))


@triton.jit
def cell_of(out, in_size, line):
    """Of output positions."""
    scale, shift, unit = line
    return (tl.minimum(tl.maximum(out * scale + shift, 0), (in_size - 1) * unit) // unit).to(tl.int32)


@triton.jit
def fused(a, b, c):
    """``a * b + c`` rounded once, of shapes that broadcast to each other."""
    a, b = tl.broadcast(a, b)
    a, c = tl.broadcast(a, c)
    a, b = tl.broadcast(a, b)
    return tl.fma(a, b, c)


@triton.jit
def blend(a, b, weight):
    """``a * (1 - weight) + b * weight``, without a difference: of two equal infinities that would be no number."""
    return fused(b, weight, a * (1 - weight))

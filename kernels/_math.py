"""What several kernels share: labels, sample positions, bilinear patches, counting by keys.

Pixels and low-resolution samples are one-dimensional blocks everywhere (``index // columns``, ``index % columns``), so
that no reduction needs a change of layout.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

# A resized value lies within MARGIN * |v| + TINY of [least, largest] of the four samples that it mixes, v being either
# of these: two products and a sum, twice, make less than 6 half ulps, the weights another 2; TINY is for products that
# underflow. Beyond it the samples of a patch decide about all its pixels.
MARGIN = tl.constexpr(2.0**-20)
TINY = tl.constexpr(1e-37)
INFINITY = tl.constexpr(float("inf"))
LEAST_INT64 = tl.constexpr(-(2**63))
LARGEST_INT64 = tl.constexpr(2**63 - 1)


@triton.jit
def exp2(x):
    """2 ** x, zero instead of a subnormal number: to get those right takes three instructions more."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def somewhat_less(v):
    return v - (tl.abs(v) * MARGIN + TINY)


@triton.jit
def somewhat_more(v):
    return v + (tl.abs(v) * MARGIN + TINY)


@triton.jit
def class_of(label, num_classes, ignore_index):
    """Labels as int32 classes, -1 where ignored or outside the classes."""
    if label.dtype.primitive_bitwidth < 64:
        label = label.to(tl.int32)  # before any comparison: a narrow type would wrap ignore_index
        ignore_index = tl.where((ignore_index >= 0) & (ignore_index < num_classes), ignore_index, -1).to(tl.int32)
    valid = (label >= 0) & (label < num_classes) & (label != ignore_index)
    return tl.where(valid, label, -1).to(tl.int32)


@triton.jit
def report_bad(label, bad, report):
    """Adds labels (int64) that are ``bad`` to ``report``, ``(3,)`` int64: how many, the least, the largest."""
    number = tl.sum(bad.to(tl.int32))
    if number > 0:
        tl.atomic_add(report, number.to(tl.int64), sem="relaxed")
        tl.atomic_min(report + 1, tl.min(tl.where(bad, label, LARGEST_INT64)), sem="relaxed")
        tl.atomic_max(report + 2, tl.max(tl.where(bad, label, LEAST_INT64)), sem="relaxed")


@triton.jit
def taps(out, step, in_size, ALIGN_CORNERS: tl.constexpr):
    """``(low, high, high_weight)`` of output positions: the bits of ``reference.bilinear_taps``.

    ``step``: input samples from one output position to the next, rounded to float32; the position is rounded once.
    """
    out = out.to(tl.float32)
    if ALIGN_CORNERS:
        position = out * step
    else:
        half = tl.zeros_like(out) + 0.5
        position = tl.fma(out + half, tl.zeros_like(out) + step, -half)
    position = tl.maximum(position, 0.0)
    low = tl.minimum(position.to(tl.int32), in_size - 1)
    weight = tl.minimum(tl.maximum(position - low.to(tl.float32), 0.0), 1.0)
    return low, tl.minimum(low + 1, in_size - 1), weight


@triton.jit
def offset_of(y, x, stride_y, stride_x, WIDE: tl.constexpr):
    """Of a sample within its plane; WIDE where 32 bits do not hold it."""
    if WIDE:
        return y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    else:
        return y * stride_y + x * stride_x


@triton.jit
def patch_offsets(
    y, x, rows, columns, stride_y, stride_x, height, width, out_height, out_width, step_y, step_x,
    PATCH_ROWS: tl.constexpr, PATCH_COLUMNS: tl.constexpr, ALIGN_CORNERS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Offsets of all samples that a tile of output pixels mixes; the last ones repeat where the patch is smaller.

    The tile begins at ``(y, x)``, inside, and has ``rows`` and ``columns``; what lies outside does not count.
    """
    top, _, _ = taps(y, step_y, height, ALIGN_CORNERS)
    _, bottom, _ = taps(tl.minimum(y + rows, out_height) - 1, step_y, height, ALIGN_CORNERS)
    left, _, _ = taps(x, step_x, width, ALIGN_CORNERS)
    _, right, _ = taps(tl.minimum(x + columns, out_width) - 1, step_x, width, ALIGN_CORNERS)
    index = tl.arange(0, PATCH_ROWS * PATCH_COLUMNS)
    patch_y = tl.minimum(top + index // PATCH_COLUMNS, bottom)
    patch_x = tl.minimum(left + index % PATCH_COLUMNS, right)
    return offset_of(patch_y, patch_x, stride_y, stride_x, WIDE)


@triton.jit
def mix(a, b, c, d, column_weight, row_weight):
    """The bilinear mixture of (a b / c d) in the specification's order of rounding: columns first, nothing fused."""
    top = a * (1 - column_weight) + b * column_weight
    bottom = c * (1 - column_weight) + d * column_weight
    return top * (1 - row_weight) + bottom * row_weight


@triton.jit
def add_counts(keys, counts, DISTINCT: tl.constexpr):
    """``counts[key] += `` how often the key occurs; negative keys do not count.

    Neighbouring pixels mostly agree: one addition per distinct key, where millions of additions to the one counter of
    a frequent class would wait for each other. What is left after DISTINCT keys is so mixed that each pixel may add its
    own.
    """
    key = tl.max(keys)
    for _ in tl.static_range(DISTINCT):
        if key >= 0:
            same = keys == key
            tl.atomic_add(counts + key, tl.sum(same.to(tl.int32)).to(tl.int64), sem="relaxed")
            keys = tl.where(same, -1, keys)
            key = tl.max(keys)
    if key >= 0:
        tl.atomic_add(counts + keys, tl.full(keys.shape, 1, tl.int64), mask=keys >= 0, sem="relaxed")

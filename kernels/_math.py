"""Functions that several kernels share: labels, sample positions, bilinear patches, counting by key.

Pixels and low-resolution samples are one-dimensional blocks in every kernel (row ``index // columns``, column
``index % columns``), so that no reduction needs a layout conversion.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

# Rounding error of the bilinear resize. A resized value lies in [smallest, largest] of its four samples, widened by
# MARGIN * |v| + TINY at each end v. Two products and a sum, twice, round by less than 6 half ulps, and the weights add
# another 2; TINY covers products that underflow. A comparison that holds beyond this margin for all samples of a patch
# holds for all its pixels.
MARGIN = tl.constexpr(2.0**-20)
TINY = tl.constexpr(1e-37)
INFINITY = tl.constexpr(float("inf"))
LOG2E = tl.constexpr(1.4426950408889634)
LEAST = tl.constexpr(1.1754943508222875e-38)  # the least normal float32
LEAST_INT64 = tl.constexpr(-(2**63))
LARGEST_INT64 = tl.constexpr(2**63 - 1)


@triton.jit
def exp2(x):
    """2 ** x in float32. Subnormal results become 0: computing them would take three more instructions."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def focal_of(gamma, negative_log):
    """``(factor, derivative)``: (1 - p)^gamma and, if f(n) = (1 - p)^gamma n is the focal loss of n = -log p, f'(n):

    (1 - p)^gamma + gamma (1 - p)^(gamma - 1) p n
    """
    n = tl.maximum(negative_log, 0.0)  # rounding may have made it negative
    p = exp2(n * -LOG2E)
    # Near p = 1 the difference 1 - p consists of rounding errors, and 0^(gamma - 1) is infinite.
    miss = tl.where(n < 2.0**-5, n * (1 - n * (0.5 - n * (1 / 6))), 1 - p)
    log_miss = tl.log2(tl.maximum(miss, LEAST))
    scaled = tl.where(p > 0, gamma * p * n, 0.0)  # 0 * inf
    factor = exp2(gamma * log_miss)
    return factor, factor + exp2((gamma - 1) * log_miss) * scaled


@triton.jit
def somewhat_less(v):
    return v - (tl.abs(v) * MARGIN + TINY)


@triton.jit
def somewhat_more(v):
    return v + (tl.abs(v) * MARGIN + TINY)


@triton.jit
def class_of(label, num_classes, ignore_index):
    """Labels of any integer dtype as int32 classes: -1 where ``ignore_index`` or outside [0, num_classes)."""
    if label.dtype.primitive_bitwidth < 64:
        label = label.to(tl.int32)  # widen before comparing: a narrow dtype would wrap ignore_index
        ignore_index = tl.where((ignore_index >= 0) & (ignore_index < num_classes), ignore_index, -1).to(tl.int32)
    valid = (label >= 0) & (label < num_classes) & (label != ignore_index)
    return tl.where(valid, label, -1).to(tl.int32)


@triton.jit
def report_bad(label, bad, report):
    """Add the labels (int64) where ``bad`` to ``report``, ``(3,)`` int64: their number, minimum and maximum."""
    number = tl.sum(bad.to(tl.int32))
    if number > 0:
        tl.atomic_add(report, number.to(tl.int64), sem="relaxed")
        tl.atomic_min(report + 1, tl.min(tl.where(bad, label, LARGEST_INT64)), sem="relaxed")
        tl.atomic_max(report + 2, tl.max(tl.where(bad, label, LEAST_INT64)), sem="relaxed")


@triton.jit
def taps(out, step, in_size, ALIGN_CORNERS: tl.constexpr):
    """``(low, high, high_weight)`` of output positions: two int32 sample indices, and a float32 weight in [0, 1].

    The same bits as ``reference.bilinear_taps``: ``step``, the distance of neighbouring output positions in samples, is
    rounded to float32, and the position is rounded once.
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
    """Offset in elements of sample ``(y, x)`` within its plane; WIDE where it may exceed 32 bits."""
    if WIDE:
        return y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    else:
        return y * stride_y + x * stride_x


@triton.jit
def patch_offsets(
    y, x, rows, columns, stride_y, stride_x, height, width, out_height, out_width, step_y, step_x,
    PATCH_ROWS: tl.constexpr, PATCH_COLUMNS: tl.constexpr, ALIGN_CORNERS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Offsets of all samples that a tile of output pixels reads: ``(PATCH_ROWS * PATCH_COLUMNS,)``.

    The tile has ``rows`` by ``columns`` pixels from ``(y, x)`` on, which is inside the output; its pixels outside the
    output are disregarded. If the tile reads a smaller patch, the last row and column of samples repeat.
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
    """Bilinear interpolation of the samples (a b / c d), rounded as specified: columns first, nothing fused."""
    top = a * (1 - column_weight) + b * column_weight
    bottom = c * (1 - column_weight) + d * column_weight
    return top * (1 - row_weight) + bottom * row_weight


@triton.jit
def add_counts(keys, counts, DISTINCT: tl.constexpr):
    """Add to ``counts`` (int64) how often each of ``keys`` (int32) occurs. Negative keys are not counted.

    Neighbouring pixels mostly share a key, and millions of atomic additions to the counter of a frequent class would
    serialise. So each distinct key is added once. What remains after DISTINCT keys is so mixed that each pixel adds
    itself.
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

"""Weighted cross-entropy of bilinearly resized logits: the loss. Full-resolution logits are never stored.

A lane handles one cell (_cells.py) in one row of pixels. The cell's pixels in that row are its phases. The lane loads
the cell's samples once for PHASES pixels, which it computes together, CLASSES classes at a time.

Cost per class and pixel when upsampling by 4, as compiled for sm_90: one exponential here and one in the backward pass,
1 / CLASSES exponentials for the running maximum, 13 instructions forward and 20 to 28 backward, and one load in each
pass. An H100 issues 16 exponentials and 128 other instructions per clock and multiprocessor, so the exponentials are
the lower bound: at 8x150x512x512 twice 315 million take 0.15 ms. Measured there: 1.54 ms in a CUDA graph, with a label
count that was slower than today's (bench/results/gpu-h100-triton.json). The CUDA C++ kernels, which compute four
exponentials per cell and class, took 0.37 ms.

Storing the exponentials for the backward pass would cost 4 bytes each, written and read: 0.8 ms. This kernel stores 8
bytes per pixel: the maximum and the inverse sum. It stores two numbers because a single log-sum-exp loses float32
precision at logits of 1e4.

For equal sizes the same kernel runs with one pixel per cell and without interpolation. It is the fallback where the
CUDA C++ kernel is not built. Its lower bound is to read the logits twice and write the gradient once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._cells import blend, cell_of, first_output, line_of, weight_of
from ._math import LEAST, LOG2E, class_of, exp2, focal_of, offset_of

LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1e38)  # initial running maximum; finite, so that no difference to it is NaN
NO_CLASS = tl.constexpr(-3e38)  # logit of padding classes; below LOWEST, so that their exponentials are 0
NEVER = tl.constexpr(3e38)  # stored as the maximum of an ignored pixel: all its exponentials become 0


@triton.jit
def _shifted(value, offset, c, mask, OFFSET: tl.constexpr):
    """``value`` plus the offsets of classes ``c``.

    Forward and backward pass add them at the same place, so that a pixel's largest exponential is exactly 1 in both.
    """
    if OFFSET:
        value += tl.load(offset + c, mask=mask, other=0.0)
    return value


@triton.jit
def _logits(
    at, right, below, mask, offset, c, row_weight, column_weight, SAME: tl.constexpr, OFFSET: tl.constexpr
):  # fmt: skip
    """Resized logits of classes ``c`` at pixels, float32; NO_CLASS where ``mask`` is false.

    ``at``: pointers to the upper left samples. ``right``, ``below``: offsets to the neighbouring samples.
    """
    if SAME:
        z = _shifted(tl.load(at, mask=mask, other=0.0).to(tl.float32), offset, c, mask, OFFSET)
        return tl.where(mask, z, NO_CLASS)
    else:
        a = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(at + right, mask=mask, other=0.0).to(tl.float32)
        a_below = tl.load(at + below, mask=mask, other=0.0).to(tl.float32)
        b_below = tl.load(at + below + right, mask=mask, other=0.0).to(tl.float32)
        # Mask here: earlier, as ``other`` of the load, float16 could not hold NO_CLASS; later there would be PHASES
        # pixels to mask instead of two columns.
        a = tl.where(mask, _shifted(blend(a, a_below, row_weight), offset, c, mask, OFFSET), NO_CLASS)
        b = tl.where(mask, _shifted(blend(b, b_below, row_weight), offset, c, mask, OFFSET), NO_CLASS)
        return blend(a, b, column_weight)


@triton.jit(
    do_not_specialize=[
        "items", "height", "width", "out_height", "out_width", "num_classes", "ignore_index"
    ]
)  # fmt: skip
def _forward(
    logits, target, weight, offset, scale, loss, stats, stride_n, stride_c, stride_y, stride_x, below, right,
    items, height, width, out_height, out_width, num_classes, ignore_index, stats_plane,
    keep, smooth, gamma,
    ITEMS: tl.constexpr, CLASSES: tl.constexpr, PHASES: tl.constexpr, MAX_PHASES: tl.constexpr,
    SAME: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
    WEIGHTED: tl.constexpr, OFFSET: tl.constexpr, SMOOTHED: tl.constexpr, FOCAL: tl.constexpr,
    PER_PIXEL: tl.constexpr, SAVE: tl.constexpr, LONG: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store losses in ``loss`` and, with SAVE, statistics for the backward pass in ``stats``.

    logits: ``(N, C, h, w)`` float32, bfloat16 or float16; strides in elements. ``below``, ``right``: offsets to the
        neighbouring samples, 0 if an axis has a single sample.
    target: ``(N, H, W)`` contiguous uint8, int16, int32 or int64. Labels outside [0, C) count as ignored.
    weight, offset, scale: ``(C,)`` float32; weight None without WEIGHTED, offset without OFFSET.
    loss: float32; ``(N, H, W)`` unscaled losses with PER_PIXEL, else one scaled sum per program.
    stats: ``(2, N * H, MAX_PHASES, w + 1)`` float32, with SAME ``(2, N * H * W)``: maximum and inverse sum of
        exponentials; NEVER and 0 where ignored. With FOCAL 3 instead of 2: the derivative of the focal loss, 0 where
        ignored.
    keep, smooth: 1 - s and s / C, with s the label smoothing in [0, 1].
    gamma: exponent of the focal loss, positive with FOCAL, which excludes SMOOTHED.

    Grid: (ceil(items / ITEMS),). An item is a cell in one row of pixels; with SAME it is a pixel.
    """
    item = tl.arange(0, ITEMS)
    if LONG:
        item += tl.program_id(0).to(tl.int64) * ITEMS
    else:
        item += tl.program_id(0) * ITEMS
    exists = (item < items)[None, None, :]
    item = tl.where(item < items, item, 0)
    cells = out_width if SAME else width + 1
    row = item // cells  # over all images
    y = (row % out_height).to(tl.int32)
    image = (row // out_height).to(tl.int64)
    cell = (item % cells).to(tl.int32)
    pixel = (row.to(tl.int64) * out_width)[None, None, :]
    if SAME:
        base = logits + image * stride_n + offset_of(y, cell, stride_y, stride_x, WIDE)
        begin = cell
        end = cell + 1
        row_weight = 0.0
        column_weight = 0.0
    else:
        columns = line_of(width, out_width, ALIGN_CORNERS, WIDE)
        rows = line_of(height, out_height, ALIGN_CORNERS, WIDE)
        cell -= 1
        begin = first_output(cell, out_width, columns)
        end = first_output(cell + 1, out_width, columns)
        # Pixels interpolate between columns left and left + 1. In the half cells at the borders the weights are 0 or 1.
        left = tl.minimum(tl.maximum(cell, 0), tl.maximum(width - 2, 0))
        top = tl.minimum(cell_of(y, height, rows), tl.maximum(height - 2, 0))
        row_weight = weight_of(y, top, height, rows)[None, None, :]
        base = logits + image * stride_n + offset_of(top, left, stride_y, stride_x, WIDE)

    class_stride = tl.cast(stride_c, tl.int64)
    base = base[None, None, :]
    k = tl.arange(0, CLASSES)[None, :, None]
    total = tl.zeros([PHASES, 1, ITEMS], tl.float32)
    for phase in range(0, MAX_PHASES, PHASES):
        phase_at = phase + tl.arange(0, PHASES)[:, None, None]
        x = begin[None, None, :] + phase_at
        inside = (x < end[None, None, :]) & exists
        label = tl.load(target + pixel + x, mask=inside, other=0)
        label = tl.where(inside, class_of(label, num_classes, ignore_index), -1)
        valid = label >= 0
        if not SAME:
            column_weight = weight_of(x, left[None, None, :], width, columns)

        # 1. maximum and sum of exponentials, CLASSES at a time
        largest = tl.full([PHASES, 1, ITEMS], LOWEST, tl.float32)
        sum_ = tl.zeros([PHASES, 1, ITEMS], tl.float32)
        weighted = tl.zeros([PHASES, 1, ITEMS], tl.float32)  # sum of weight * (logit - maximum)
        weight_sum = 0.0
        # max_contiguous: neighbours along the last axis are neighbours in memory, except at borders. This makes the
        # compiler assign that axis to the lanes of a warp. Without the hint Triton 3.6 assigns the first axis, and sums
        # over classes go through shuffles: 391 instructions in this loop instead of 216. The hint must be repeated for
        # every result and is lost across a function call. It does not cause vector loads, since it promises nothing
        # about alignment.
        at = tl.max_contiguous(base + k * class_stride, [1, 1, 32])
        for start in range(0, num_classes, CLASSES):
            c = start + k
            is_class = c < num_classes
            z = _logits(at, right, below, is_class, offset, c, row_weight, column_weight, SAME, OFFSET)
            before = largest
            largest = tl.maximum(largest, tl.max(z, 1, keep_dims=True))
            z -= largest  # rounded on its own, so that the exponential of the largest class is exactly 1
            sum_ = sum_ * exp2((before - largest) * LOG2E) + tl.sum(exp2(z * LOG2E), 1, keep_dims=True)
            if SMOOTHED:
                w = tl.where(is_class, 1.0, 0.0)
                if WEIGHTED:
                    w = tl.load(weight + c, mask=is_class, other=0.0)
                weighted += weight_sum * (before - largest)
                weighted += tl.sum(tl.where(is_class, w * z, 0.0), 1, keep_dims=True)
                weight_sum += tl.sum(tl.sum(tl.sum(w, 0), 0), 0)
            at = tl.max_contiguous(at + CLASSES * class_stride, [1, 1, 32])

        # 2. the label's logit, rounded as in stage 1, and the loss
        class_at = tl.where(valid, label, 0)
        label_at = base + class_at * class_stride
        z = _logits(label_at, right, below, valid, offset, class_at, row_weight, column_weight, SAME, OFFSET)
        log_sum = tl.log2(sum_) * LN2
        value = log_sum - (z - largest)
        if FOCAL:
            factor, derivative = focal_of(gamma, value)
            value *= factor
        if WEIGHTED:
            value *= tl.load(weight + class_at)
        if SMOOTHED:
            value = value * keep + smooth * (weight_sum * log_sum - weighted)
        value = tl.where(valid, value, 0.0)
        if PER_PIXEL:
            tl.store(loss + pixel + x, value, mask=inside)
        else:
            total += value * tl.load(scale + class_at)  # scale is NaN for the mean over no valid pixel

        # 3. statistics for the backward pass; phase is the outer axis, so that lanes store to neighbouring addresses
        if SAVE:
            to = (row * MAX_PHASES * cells + item % cells)[None, None, :] + phase_at * cells
            kept = exists & (phase_at < MAX_PHASES)
            tl.store(stats + to, tl.where(valid, largest, NEVER), mask=kept)
            tl.store(
                stats + stats_plane + to,
                tl.where(valid, tl.div_rn(tl.full(sum_.shape, 1.0, tl.float32), sum_), 0.0),
                mask=kept,
            )
            if FOCAL:
                tl.store(stats + 2 * stats_plane + to, tl.where(valid, derivative, 0.0), mask=kept)
    if not PER_PIXEL:
        tl.store(loss + tl.program_id(0), tl.sum(tl.sum(tl.sum(total, 0), 0), 0))


@triton.jit(do_not_specialize=["parts"])
def _total(partial, scale, loss, parts, BLOCK: tl.constexpr):
    """Sum the programs' losses in float64 and in a fixed order.

    partial: ``(parts,)`` float32. scale: ``(C,)`` float32. loss: ``()`` float32, the result.
    """
    sum_ = tl.zeros([BLOCK], tl.float64)
    for start in range(0, parts, BLOCK):
        at = start + tl.arange(0, BLOCK)
        sum_ += tl.load(partial + at, mask=at < parts, other=0.0).to(tl.float64)
    # 0 * NaN: the mean over no pixel at all is NaN too
    tl.store(loss, (tl.sum(sum_)).to(tl.float32) + 0.0 * tl.load(scale))


COUNTED = ("mean", "valid_mean", "class_mean")  # reductions that need the pixels of each class
MEAN, VALID_MEAN = tl.constexpr(0), tl.constexpr(1)


@triton.jit(do_not_specialize=["images", "num_classes"])
def _scale(counts, weight, scale, images, num_classes, BLOCK: tl.constexpr, HOW: tl.constexpr, WEIGHTED: tl.constexpr):
    """``reference.reduction_scale`` for the reductions in COUNTED.

    counts: ``(N, C)`` int64, valid pixels per image and class. weight: ``(C,)`` float32 or None.
    scale: ``(C,)`` float32, the result. Grid: (1,).
    """
    c = tl.arange(0, BLOCK)
    inside = c < num_classes
    pixels = tl.zeros([BLOCK], tl.int64)
    for image in range(images):
        pixels += tl.load(counts + image * tl.cast(num_classes, tl.int64) + c, mask=inside, other=0)
    if HOW == MEAN:
        sum_ = pixels.to(tl.float32)
        if WEIGHTED:
            sum_ *= tl.load(weight + c, mask=inside, other=0.0)
        divisor = tl.zeros([BLOCK], tl.float32) + tl.sum(sum_)
        # Weights of 0 give 0, and so do those whose sum is below the least normal float32: its inverse could overflow.
        without = tl.where(tl.zeros([BLOCK], tl.int64) + tl.sum(pixels) > 0, 0.0, float("nan"))
        value = tl.where(divisor >= LEAST, tl.div_rn(tl.full([BLOCK], 1.0, tl.float32), divisor), without)
    else:
        if HOW == VALID_MEAN:
            pixels = tl.zeros([BLOCK], tl.int64) + tl.sum(pixels)
        divisor = tl.maximum(pixels, 1).to(tl.float32)
        value = tl.where(pixels > 0, tl.div_rn(tl.full([BLOCK], 1.0, tl.float32), divisor), 0.0)
    tl.store(scale + c, value, mask=inside)

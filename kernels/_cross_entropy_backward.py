"""Weighted cross-entropy of bilinearly resized logits: the gradient, gathered, so that there are no atomics.

Resized: a program owns CLASSES classes of 31 cells in a strip of ROWS rows of samples, and one cell more at the left,
whose right-hand part belongs to the first of them; likewise the row of cells above the strip is computed for its lower
part. Per row of samples and class a lane has four sums (left and right, upper and lower); the lower ones wait for the
next row of cells, the right ones move to the next lane. The order of all sums is fixed.

Cost: 32 / 31 * (ROWS + 1) / ROWS exponentials per class and pixel. Per class and pixel of an upsampling by 4: about 3
instructions of interpolation, 2 and the exponential for the probability, 2 for the sums, and 5 for the label where one
of the program's classes is a label in this row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._cells import blend, first_output, line_of, weight_of
from ._cross_entropy_forward import LOG2E, NEVER, fused
from ._math import class_of, offset_of

MODERATE = tl.constexpr(1e30)


@triton.jit
def _moderate(at, mask):
    """Samples without NaN and infinities: pixels that see them get theirs from the inverse sum, which is NaN there, and
    an ignored pixel must not multiply them with its 0."""
    v = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    v = tl.where(v == v, v, 0.0)
    return tl.minimum(tl.maximum(v, -MODERATE), MODERATE)


@triton.jit
def _factors(
    label, inverse_sum, weight, scale, upstream, keep, smooth, weight_sum,
    WEIGHTED: tl.constexpr, SMOOTHED: tl.constexpr,
):  # fmt: skip
    """Of a pixel's gradient: of its exponentials, at its label, and what smoothing takes from every class's weight."""
    valid = label >= 0
    class_at = tl.where(valid, label, 0)
    factor = tl.where(valid, upstream * tl.load(scale + class_at), 0.0)
    at_label = factor * keep
    if WEIGHTED:
        at_label *= tl.load(weight + class_at)
    smoothing = factor * smooth
    of_exponentials = at_label
    if SMOOTHED:
        of_exponentials += smoothing * weight_sum
    return of_exponentials * inverse_sum, at_label, smoothing


@triton.jit
def _weight_sum(weight, num_classes, WEIGHTED: tl.constexpr, SMOOTHED: tl.constexpr):
    sum_ = num_classes.to(tl.float32)
    if WEIGHTED and SMOOTHED:
        total = tl.zeros([128], tl.float32)
        for start in range(0, num_classes, 128):
            c = start + tl.arange(0, 128)
            total += tl.load(weight + c, mask=c < num_classes, other=0.0)
        sum_ = tl.sum(total)
    return sum_


@triton.jit(
    do_not_specialize=[
        "items", "height", "width", "out_height", "out_width", "num_classes", "ignore_index", "max_phases", "max_rows",
        "strips",
    ]
)  # fmt: skip
def _backward(
    logits, target, weight, scale, grad, stats, grad_input, stride_n, stride_c, stride_y, stride_x, below, right,
    grad_n, grad_c, grad_y, grad_x,
    items, height, width, out_height, out_width, num_classes, ignore_index, max_phases, max_rows, strips, stats_plane,
    keep, smooth,
    CLASSES: tl.constexpr, PHASES: tl.constexpr, ROWS: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
    WEIGHTED: tl.constexpr, SMOOTHED: tl.constexpr, PER_PIXEL: tl.constexpr, LONG: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # (blocks of 31 items * chunks of classes,); an item is a cell of a strip. Chunks of one block run beside each
    # other and find its labels and statistics in the cache.
    chunks = tl.cdiv(num_classes, CLASSES)
    start = tl.program_id(0) % chunks * CLASSES
    lane = tl.arange(0, 32)
    item = lane
    if LONG:
        item += (tl.program_id(0) // chunks).to(tl.int64) * 31
    else:
        item += (tl.program_id(0) // chunks) * 31
    exists = item < items
    item = tl.where(exists, item, 0)
    cells = width + 1
    cell = (item % cells).to(tl.int32) - 1
    strip = (item // cells % strips).to(tl.int32)
    image = (item // cells // strips).to(tl.int64)

    columns = line_of(width, out_width, ALIGN_CORNERS, WIDE)
    rows = line_of(height, out_height, ALIGN_CORNERS, WIDE)
    x_begin = first_output(cell, out_width, columns)
    x_end = first_output(cell + 1, out_width, columns)
    left = tl.minimum(tl.maximum(cell, 0), tl.maximum(width - 2, 0))
    c = start + tl.arange(0, CLASSES)[:, None]
    is_class = c < num_classes
    class_stride = tl.cast(stride_c, tl.int64)
    plane = logits + (image * stride_n)[None, :] + c * class_stride
    owner = (lane > 0) & exists & (cell >= 0)
    out = grad_input + (image * grad_n + offset_of(tl.zeros_like(cell), cell, 0, grad_x, WIDE))[None, :]
    out += c * tl.cast(grad_c, tl.int64)
    weight_sum = _weight_sum(weight, num_classes, WEIGHTED, SMOOTHED)
    class_weight = tl.full([CLASSES, 1], 1.0, tl.float32)
    if WEIGHTED and SMOOTHED:
        class_weight = tl.load(weight + c, mask=is_class, other=0.0)
    upstream = 1.0
    if not PER_PIXEL:
        upstream = tl.load(grad)

    before_left = tl.zeros([CLASSES, 32], tl.float32)  # what the row of cells above adds to this row of samples
    before_right = tl.zeros([CLASSES, 32], tl.float32)
    for r in range(ROWS + 1):
        cell_y = strip * ROWS + r - 1
        inside_y = cell_y < height
        y_begin = first_output(cell_y, out_height, rows)
        y_end = tl.where(inside_y, first_output(cell_y + 1, out_height, rows), 0)
        top = tl.minimum(tl.maximum(cell_y, 0), tl.maximum(height - 2, 0))
        corner = plane + offset_of(top, left, stride_y, stride_x, WIDE)[None, :]
        a = _moderate(corner, is_class)
        b = _moderate(corner + right, is_class)
        a_below = _moderate(corner + below, is_class)
        b_below = _moderate(corner + below + right, is_class)
        upper_left = tl.zeros([CLASSES, 32], tl.float32)
        upper_right = tl.zeros([CLASSES, 32], tl.float32)
        lower_left = tl.zeros([CLASSES, 32], tl.float32)
        lower_right = tl.zeros([CLASSES, 32], tl.float32)
        for dy in range(max_rows):
            y = y_begin + dy
            row_weight = weight_of(y, top, height, rows)[None, :]
            z_left = blend(a, a_below, row_weight)[None, :, :]
            z_right = blend(b, b_below, row_weight)[None, :, :]
            row = image * out_height + y
            row_left = tl.zeros([CLASSES, 32], tl.float32)
            row_right = tl.zeros([CLASSES, 32], tl.float32)
            for phase in range(0, max_phases, PHASES):
                phase_at = phase + tl.arange(0, PHASES)[:, None, None]
                x = x_begin[None, None, :] + phase_at
                inside = (x < x_end[None, None, :]) & (y < y_end)[None, None, :]
                pixel = (row * out_width)[None, None, :] + x
                label = tl.load(target + pixel, mask=inside, other=0)
                label = tl.where(inside, class_of(label, num_classes, ignore_index), -1)
                kept = (row * max_phases * cells + item % cells)[None, None, :] + phase_at * cells
                largest = tl.load(stats + kept, mask=inside, other=NEVER)
                inverse_sum = tl.load(stats + stats_plane + kept, mask=inside, other=0.0)
                if PER_PIXEL:
                    upstream = tl.load(grad + pixel, mask=inside, other=0.0)
                of_exponentials, at_label, smoothing = _factors(
                    label, inverse_sum, weight, scale, upstream, keep, smooth, weight_sum, WEIGHTED, SMOOTHED
                )
                mix_weight = weight_of(x, left[None, None, :], width, columns)
                u = weight_of(x, cell[None, None, :], width, columns)  # of the sample at the right, for the sums
                z = blend(z_left, z_right, mix_weight)
                e = tl.exp2(fused(z, LOG2E, -largest))
                row_left += tl.sum(e * (of_exponentials * (1 - u)), 0)
                row_right += tl.sum(e * (of_exponentials * u), 0)
                if tl.max(tl.max(tl.max(((label >= start) & (label < start + CLASSES)).to(tl.int32), 0), 0), 0) > 0:
                    hit = tl.where(label == c[None, :, :], at_label, 0.0)
                    row_left -= tl.sum(hit * (1 - u), 0)
                    row_right -= tl.sum(hit * u, 0)
                if SMOOTHED:
                    row_left -= class_weight * tl.sum(smoothing * (1 - u), 0)
                    row_right -= class_weight * tl.sum(smoothing * u, 0)
            v = weight_of(y, cell_y, height, rows)[None, :]
            upper_left += (1 - v) * row_left
            upper_right += (1 - v) * row_right
            lower_left += v * row_left
            lower_right += v * row_right

        upper_left += before_left
        upper_right += before_right
        before_left = lower_left
        before_right = lower_right
        # the right-hand sums of the lane before
        from_left = tl.gather(upper_right, tl.broadcast_to(tl.maximum(lane - 1, 0)[None, :], [CLASSES, 32]), 1)
        value = upper_left + from_left
        mask = (owner & inside_y & (r > 0))[None, :] & is_class
        row_out = out + offset_of(tl.maximum(cell_y, 0), cell_y, grad_y, 0, WIDE)[None, :]
        tl.store(row_out, value.to(grad_input.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["items", "out_height", "out_width", "num_classes", "ignore_index"])
def _backward_same(
    logits, target, weight, scale, grad, stats, grad_input, stride_n, stride_c, stride_y, stride_x,
    grad_n, grad_c, grad_y, grad_x, items, out_height, out_width, num_classes, ignore_index, keep, smooth,
    ITEMS: tl.constexpr, CLASSES: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTHED: tl.constexpr,
    PER_PIXEL: tl.constexpr, LONG: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # (blocks of ITEMS pixels,)
    item = tl.arange(0, ITEMS)
    if LONG:
        item += tl.program_id(0).to(tl.int64) * ITEMS
    else:
        item += tl.program_id(0) * ITEMS
    inside = item < items
    item = tl.where(inside, item, 0)
    x = (item % out_width).to(tl.int32)
    y = (item // out_width % out_height).to(tl.int32)
    image = (item // out_width // out_height).to(tl.int64)
    label = tl.load(target + item, mask=inside, other=0)
    label = tl.where(inside, class_of(label, num_classes, ignore_index), -1)
    largest = tl.load(stats + item)
    inverse_sum = tl.load(stats + items + item)
    upstream = tl.load(grad + item) if PER_PIXEL else tl.load(grad)
    weight_sum = _weight_sum(weight, num_classes, WEIGHTED, SMOOTHED)
    of_exponentials, at_label, smoothing = _factors(
        label, inverse_sum, weight, scale, upstream, keep, smooth, weight_sum, WEIGHTED, SMOOTHED
    )
    class_stride = tl.cast(stride_c, tl.int64)
    base = (logits + image * stride_n + offset_of(y, x, stride_y, stride_x, WIDE))[None, :]
    out = (grad_input + image * grad_n + offset_of(y, x, grad_y, grad_x, WIDE))[None, :]
    for start in range(0, num_classes, CLASSES):
        c = start + tl.arange(0, CLASSES)[:, None]
        mask = (c < num_classes) & inside[None, :]
        z = _moderate(base + c * class_stride, mask)
        value = tl.exp2(fused(z, LOG2E, -largest[None, :])) * of_exponentials[None, :]
        value -= tl.where(label[None, :] == c, at_label[None, :], 0.0)
        if SMOOTHED:
            if WEIGHTED:
                value -= smoothing[None, :] * tl.load(weight + c, mask=c < num_classes, other=0.0)
            else:
                value -= smoothing[None, :]
        tl.store(out + c * tl.cast(grad_c, tl.int64), value.to(grad_input.dtype.element_ty), mask=mask)

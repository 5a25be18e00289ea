"""Weighted cross-entropy of bilinearly resized logits: the gradient with respect to the low-resolution logits.

Each gradient value is gathered by one lane. There are no atomics, and every sum has a fixed order.

``_backward`` serves different sizes of logits and labels. A program is one warp with one cell (_cells.py) per lane. It
computes CLASSES classes for 31 neighbouring cells in a strip of ROWS rows of samples. Its first lane computes the cell
to their left, because the right half of that cell contributes to the first of the 31. For the same reason the program
also computes the row of cells above the strip, for its lower half. Per row of samples and class a lane holds four sums:
left and right, upper and lower. The right sums move to the next lane, and the lower sums wait for the next row of
cells.

Cost: 32 / 31 * (ROWS + 1) / ROWS exponentials per class and pixel. Compiled for sm_90 with PHASES 4 and CLASSES 4,
upsampling by 4 takes 20 instructions per class and pixel; a third of them compute what all classes share (label,
statistics, weights). Where a label is one of the program's classes, it takes 8 more. With CLASSES 8 it would be 14
instructions, but half the warps.

Two choices keep values in registers: a program has one warp, and the phases (the output columns of a cell) are
unrolled. With the phases as a block axis the compiler chose a layout that exchanges values through shared memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._cells import blend, first_output, fused, line_of, weight_of
from ._cross_entropy_forward import NEVER, _shifted
from ._math import LOG2E, class_of, exp2, offset_of

MODERATE = tl.constexpr(1e30)


@triton.jit
def _moderate(at, mask):
    """Samples as finite float32: NaN becomes 0, and values are clamped to [-MODERATE, MODERATE]. 0 where masked.

    Where NaN or infinities make a pixel's probabilities NaN, its stored inverse sum is NaN and carries that into the
    gradient. An ignored pixel multiplies by 0 instead, which must not meet NaN or an infinity.
    """
    v = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    v = tl.where(v == v, v, 0.0)
    return tl.minimum(tl.maximum(v, -MODERATE), MODERATE)


@triton.jit
def _factors(label, weight, scale, upstream, keep, smooth, WEIGHTED: tl.constexpr):
    """``(at_label, smoothing)``: the factors in the gradient of pixels (see :func:`_of_logit`), 0 where ignored.

    ``label``: classes, int32, -1 where ignored. ``weight``, ``scale``: ``(C,)`` float32. ``upstream``: float32.
    """
    valid = label >= 0
    class_at = tl.where(valid, label, 0)
    factor = tl.where(valid, upstream * tl.load(scale + class_at), 0.0)
    at_label = factor * keep
    if WEIGHTED:
        at_label *= tl.load(weight + class_at)
    return at_label, factor * smooth


@triton.jit
def _of_logit(e, inverse_sum, is_label, at_label, smoothing, class_weight, weight_sum, SMOOTHED: tl.constexpr):
    """The gradient of logits from their exponentials ``e``, with p = e * inverse_sum and class weights w:

    at_label * (p - is_label) + smoothing * (p * sum(w) - w)

    The first term is one fused multiply-add, because p - 1 is tiny where the network is right.
    """
    probability = e * inverse_sum
    g = fused(probability, at_label, -tl.where(is_label, at_label, 0.0))
    if SMOOTHED:
        g += smoothing * (probability * weight_sum - class_weight)
    return g


@triton.jit
def _weight_sum(weight, num_classes, WEIGHTED: tl.constexpr, SMOOTHED: tl.constexpr):
    """The sum of the class weights ``(C,)`` float32, each 1 without WEIGHTED. Only smoothing needs it."""
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
        "items", "height", "width", "out_height", "out_width", "num_classes", "ignore_index", "max_rows",
        "strips",
    ]
)  # fmt: skip
def _backward(
    logits, target, weight, offset, scale, grad, stats, grad_input,
    stride_n, stride_c, stride_y, stride_x, below, right, grad_n, grad_c, grad_y, grad_x,
    items, height, width, out_height, out_width, num_classes, ignore_index, max_rows, strips, stats_plane,
    keep, smooth,
    CLASSES: tl.constexpr, PHASES: tl.constexpr, MAX_PHASES: tl.constexpr, ROWS: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr, WEIGHTED: tl.constexpr, OFFSET: tl.constexpr, SMOOTHED: tl.constexpr,
    FOCAL: tl.constexpr, PER_PIXEL: tl.constexpr, LONG: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store the gradient ``grad_input``.

    logits: ``(N, C, h, w)`` float32, bfloat16 or float16; strides in elements, ``below`` and ``right`` as in
        _cross_entropy_forward.py.
    target: ``(N, H, W)`` contiguous uint8, int16, int32 or int64.
    weight, offset, scale: ``(C,)`` float32; weight None without WEIGHTED, offset without OFFSET.
    grad: the upstream gradient, float32, ``(N, H, W)`` contiguous with PER_PIXEL, else ``()``.
    stats: from the forward pass.
    grad_input: ``(N, C, h, w)``, dtype of logits, strides ``grad_*``.
    """
    # 1. The lane's cell and the program's classes. Grid: (ceil((items - 1) / 31) * chunks of classes,). An item is a
    # cell in a strip. The chunks of one block of items are neighbours in the grid, so that they find its labels and
    # statistics in the cache.
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
    image_start = logits + image * stride_n
    owner = (lane > 0) & exists & (cell >= 0)
    out = grad_input + (image * grad_n + offset_of(tl.zeros_like(cell), cell, 0, grad_x, WIDE))[None, :]
    out += c * tl.cast(grad_c, tl.int64)
    weight_sum = _weight_sum(weight, num_classes, WEIGHTED, SMOOTHED)
    class_weight = tl.full([CLASSES, 1], 1.0, tl.float32)
    if WEIGHTED and SMOOTHED:
        class_weight = tl.load(weight + c, mask=is_class, other=0.0)
    if not PER_PIXEL:
        common_upstream = tl.load(grad)

    before_left = tl.zeros([CLASSES, 32], tl.float32)  # the lower sums of the row of cells above
    before_right = tl.zeros([CLASSES, 32], tl.float32)
    for r in range(ROWS + 1):
        cell_y = strip * ROWS + r - 1
        inside_y = cell_y < height
        y_begin = first_output(cell_y, out_height, rows)
        y_end = tl.where(inside_y, first_output(cell_y + 1, out_height, rows), 0)
        top = tl.minimum(tl.maximum(cell_y, 0), tl.maximum(height - 2, 0))
        corner = (image_start + offset_of(top, left, stride_y, stride_x, WIDE))[None, :]
        # 2. The corners of the lane's cell. _cross_entropy_forward.py explains max_contiguous.
        corner = tl.max_contiguous(corner + c * class_stride, [1, 32])
        a = _moderate(corner, is_class)
        b = _moderate(corner + right, is_class)
        a_below = _moderate(corner + below, is_class)
        b_below = _moderate(corner + below + right, is_class)
        upper_left = tl.zeros([CLASSES, 32], tl.float32)
        upper_right = tl.zeros([CLASSES, 32], tl.float32)
        lower_left = tl.zeros([CLASSES, 32], tl.float32)
        lower_right = tl.zeros([CLASSES, 32], tl.float32)
        # 3. The gradients of the cell's pixels, summed with their four bilinear weights.
        for dy in range(max_rows):
            y = y_begin + dy
            row_weight = weight_of(y, top, height, rows)[None, :]
            z_left = _shifted(blend(a, a_below, row_weight), offset, c, is_class, OFFSET)
            z_right = _shifted(blend(b, b_below, row_weight), offset, c, is_class, OFFSET)
            row = image * out_height + y
            row_left = tl.zeros([CLASSES, 32], tl.float32)
            row_right = tl.zeros([CLASSES, 32], tl.float32)
            for start_phase in range(0, MAX_PHASES, PHASES):
                for p in tl.static_range(PHASES):
                    phase = start_phase + p
                    x = x_begin + phase
                    inside = (x < x_end) & (y < y_end)
                    pixel = row * out_width + x
                    label = tl.load(target + pixel, mask=inside, other=0)
                    label = tl.where(inside, class_of(label, num_classes, ignore_index), -1)
                    kept = (row * MAX_PHASES + phase) * cells + (cell + 1)
                    largest = tl.load(stats + kept, mask=inside, other=NEVER)
                    inverse_sum = tl.load(stats + stats_plane + kept, mask=inside, other=0.0)
                    if PER_PIXEL:
                        upstream = tl.load(grad + pixel, mask=inside, other=0.0)
                    else:
                        upstream = common_upstream
                    if FOCAL:
                        upstream *= tl.load(stats + 2 * stats_plane + kept, mask=inside, other=0.0)
                    at_label, smoothing = _factors(label, weight, scale, upstream, keep, smooth, WEIGHTED)
                    u = weight_of(x, cell, width, columns)  # weight of the right sample in the sums
                    z = blend(z_left, z_right, weight_of(x, left, width, columns)[None, :])
                    e = exp2((z - largest[None, :]) * LOG2E)
                    any_label = tl.max(((label >= start) & (label < start + CLASSES)).to(tl.int32)) > 0
                    if any_label or SMOOTHED:
                        # Subtract 1 before summing: where the network is right, the differences are tiny.
                        g = _of_logit(
                            e, inverse_sum[None, :], label[None, :] == c, at_label[None, :], smoothing[None, :],
                            class_weight, weight_sum, SMOOTHED,
                        )  # fmt: skip
                        row_left = fused(g, (1 - u)[None, :], row_left)
                        row_right = fused(g, u[None, :], row_right)
                    else:
                        factor = at_label * inverse_sum
                        row_left = fused(e, (factor * (1 - u))[None, :], row_left)
                        row_right = fused(e, (factor * u)[None, :], row_right)
            v = weight_of(y, cell_y, height, rows)[None, :]
            upper_left += (1 - v) * row_left
            upper_right += (1 - v) * row_right
            lower_left += v * row_left
            lower_right += v * row_right

        upper_left += before_left
        upper_right += before_right
        before_left = lower_left
        before_right = lower_right
        # 4. Add the right sums of the previous lane, and store.
        from_left = tl.gather(upper_right, tl.broadcast_to(tl.maximum(lane - 1, 0)[None, :], [CLASSES, 32]), 1)
        value = upper_left + from_left
        mask = (owner & inside_y & (r > 0))[None, :] & is_class
        row_out = tl.max_contiguous(out + offset_of(tl.maximum(cell_y, 0), cell_y, grad_y, 0, WIDE)[None, :], [1, 32])
        tl.store(tl.max_contiguous(row_out, [1, 32]), value.to(grad_input.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["items", "out_height", "out_width", "num_classes", "ignore_index"])
def _backward_same(
    logits, target, weight, offset, scale, grad, stats, grad_input, stride_n, stride_c, stride_y, stride_x,
    grad_n, grad_c, grad_y, grad_x, items, out_height, out_width, num_classes, ignore_index, keep, smooth,
    ITEMS: tl.constexpr, CLASSES: tl.constexpr, WEIGHTED: tl.constexpr, OFFSET: tl.constexpr,
    SMOOTHED: tl.constexpr, FOCAL: tl.constexpr, PER_PIXEL: tl.constexpr, LONG: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store the gradient ``grad_input`` for logits of the labels' size.

    Arguments as in :func:`_backward`. Grid: (ceil(items / ITEMS),); an item is a pixel.
    """
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
    if FOCAL:
        upstream *= tl.load(stats + 2 * items + item)
    weight_sum = _weight_sum(weight, num_classes, WEIGHTED, SMOOTHED)
    at_label, smoothing = _factors(label, weight, scale, upstream, keep, smooth, WEIGHTED)
    class_stride = tl.cast(stride_c, tl.int64)
    grad_class_stride = tl.cast(grad_c, tl.int64)
    k = tl.arange(0, CLASSES)[:, None]
    at = (logits + image * stride_n + offset_of(y, x, stride_y, stride_x, WIDE))[None, :]
    at = tl.max_contiguous(at + k * class_stride, [1, 32])
    to = (grad_input + image * grad_n + offset_of(y, x, grad_y, grad_x, WIDE))[None, :]
    to = tl.max_contiguous(to + k * grad_class_stride, [1, 32])
    for start in range(0, num_classes, CLASSES):
        c = start + k
        mask = (c < num_classes) & inside[None, :]
        z = _shifted(_moderate(at, mask), offset, c, c < num_classes, OFFSET)
        e = exp2((z - largest[None, :]) * LOG2E)
        class_weight = tl.full([CLASSES, 1], 1.0, tl.float32)
        if WEIGHTED and SMOOTHED:
            class_weight = tl.load(weight + c, mask=c < num_classes, other=0.0)
        value = _of_logit(
            e, inverse_sum[None, :], label[None, :] == c, at_label[None, :], smoothing[None, :],
            class_weight, weight_sum, SMOOTHED,
        )  # fmt: skip
        tl.store(to, value.to(grad_input.dtype.element_ty), mask=mask)
        at = tl.max_contiguous(at + CLASSES * class_stride, [1, 32])
        to = tl.max_contiguous(to + CLASSES * grad_class_stride, [1, 32])

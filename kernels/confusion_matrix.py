"""Confusion matrix of resized logits. Labels and low-resolution logits are read; full-resolution ones are never stored.

A program handles a tile of pixels, which reads a patch of samples of each class. The resized values of a class lie
between the smallest and the largest sample of its patch. Where one class's smallest sample exceeds another's largest,
the other cannot win. Stages:

  1. One sweep over the patches of all classes finds the largest of their smallest samples and the two largest of their
     largest samples.
  2. If only one class can win, its pixels need no interpolation. Otherwise a second sweep interpolates the few classes
     that can win, for the argmax at each pixel.
  3. The pairs (label, prediction) are counted, with one addition per distinct pair.

Lower bound of the memory traffic: logits and labels once. Per class and tile of 512 pixels at ratio 4 (a patch of 128
samples), sweep 1 costs 4 loads and about 30 instructions in a warp. Measured on an H100
(bench/results/gpu-h100-triton.json): 0.13 ms at 8x19x512x1024 with realistic data, and 0.47 ms at 8x150x512x512,
where the lower bound is 6 % of that; the CUDA C++ kernel took 0.047 and 0.095 ms.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import _tiling
from ._launch import cdiv, launch, needs_64_bits
from ._math import (
    INFINITY,
    add_counts,
    class_of,
    mix,
    offset_of,
    patch_offsets,
    report_bad,
    somewhat_less,
    somewhat_more,
    taps,
)


@triton.jit
def _largest(plane, patch):
    """A class's samples in the patch, float32, and the largest of them.

    A sample that is not finite makes that infinite, since interpolation with it can give any value.
    """
    v = tl.load(plane + patch).to(tl.float32)
    return v, tl.max(tl.where(tl.abs(v) < INFINITY, v, INFINITY))


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "num_classes", "ignore_index"])
def _confusion_matrix(
    logits, target, counts, report, stride_n, stride_c, stride_y, stride_x,
    height, width, out_height, out_width, step_y, step_x, num_classes, ignore_index,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PATCH_ROWS: tl.constexpr, PATCH_COLUMNS: tl.constexpr,
    DISTINCT: tl.constexpr, CHECK: tl.constexpr, SAME: tl.constexpr, ALIGN_CORNERS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Add pairs of label and argmax to ``counts``.

    logits: ``(N, C, h, w)`` float32, bfloat16 or float16; strides in elements.
    target: ``(N, H, W)`` contiguous uint8, int16, int32 or int64. counts: ``(C, C)`` int64.
    report: ``(3,)`` int64 with CHECK, else None.

    Grid: (images * tiles,). With PATCH_ROWS 0 every class is interpolated at every pixel.
    """
    class_stride = tl.cast(stride_c, tl.int64)
    tiles_x = tl.cdiv(out_width, COLUMNS)
    tiles = tiles_x * tl.cdiv(out_height, ROWS)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    first_y = tile // tiles_x * ROWS
    first_x = tile % tiles_x * COLUMNS
    index = tl.arange(0, ROWS * COLUMNS)
    y, x = first_y + index // COLUMNS, first_x + index % COLUMNS
    inside = (y < out_height) & (x < out_width)
    label = tl.load(target + (image * out_height + y) * out_width + x, mask=inside, other=0).to(tl.int64)
    if CHECK:
        bad = inside & ((label < 0) | (label >= num_classes)) & (label != ignore_index)
        report_bad(label, bad, report)
    label = tl.where(inside, class_of(label, num_classes, ignore_index), -1)
    if tl.max(label) >= 0:
        y, x = tl.minimum(y, out_height - 1), tl.minimum(x, out_width - 1)
        plane = logits + image * stride_n

        # 1. the classes that can win
        winner = 0
        decided = False
        bound = -INFINITY
        if PATCH_ROWS > 0:
            patch = patch_offsets(
                first_y, first_x, ROWS, COLUMNS, stride_y, stride_x, height, width, out_height, out_width,
                step_y, step_x, PATCH_ROWS, PATCH_COLUMNS, ALIGN_CORNERS, WIDE,
            )  # fmt: skip
            first = -INFINITY
            second = -INFINITY
            for c in range(num_classes):
                v, largest = _largest(plane + c * class_stride, patch)
                bound = tl.maximum(bound, tl.min(tl.where(tl.abs(v) < INFINITY, v, -INFINITY)))
                winner = tl.where(largest > first, c, winner)
                second = tl.maximum(second, tl.minimum(first, largest))
                first = tl.maximum(first, largest)
            bound = somewhat_less(bound)
            decided = somewhat_more(second) < bound

        # 2. the predictions
        prediction = tl.zeros_like(label) + winner
        if not decided:
            if SAME:
                at = offset_of(y, x, stride_y, stride_x, WIDE)
            else:
                top, bottom, row_weight = taps(y, step_y, height, ALIGN_CORNERS)
                left, right, column_weight = taps(x, step_x, width, ALIGN_CORNERS)
                top_left = offset_of(top, left, stride_y, stride_x, WIDE)
                top_right = offset_of(top, right, stride_y, stride_x, WIDE)
                bottom_left = offset_of(bottom, left, stride_y, stride_x, WIDE)
                bottom_right = offset_of(bottom, right, stride_y, stride_x, WIDE)
            best = tl.full(label.shape, -INFINITY, tl.float32)
            prediction = tl.zeros_like(label)
            for c in range(num_classes):
                logit = plane + c * class_stride
                largest = INFINITY
                if PATCH_ROWS > 0:
                    _, largest = _largest(logit, patch)
                if somewhat_more(largest) >= bound:
                    if SAME:
                        z = tl.load(logit + at).to(tl.float32)
                    else:
                        z = mix(
                            tl.load(logit + top_left).to(tl.float32),
                            tl.load(logit + top_right).to(tl.float32),
                            tl.load(logit + bottom_left).to(tl.float32),
                            tl.load(logit + bottom_right).to(tl.float32),
                            column_weight,
                            row_weight,
                        )
                    better = (z > best) | ((z != z) & (best == best))  # NaN is the largest logit; the first wins
                    best = tl.where(better, z, best)
                    prediction = tl.where(better, c, prediction)

        # 3. the counts
        add_counts(tl.where(label >= 0, label * num_classes + prediction, -1), counts, DISTINCT)


def confusion_matrix(
    input: Tensor, target: Tensor, counts: Tensor, report: Tensor | None, ignore_index: int, align_corners: bool
) -> None:
    """Add pairs of label and argmax of the resized logits to ``counts``.

    Args:
        input: ``(N, C, h, w)`` logits, float32, bfloat16 or float16, any values, any strides; C in [1, 46340].
        target: ``(N, H, W)`` uint8, int16, int32 or int64 labels; those outside [0, C) count as ignored.
        counts: ``(C, C)`` int64; rows are labels, columns are predictions.
        report: ``(3,)`` int64 to which bad labels are added (labels.py), or None.
        ignore_index: label of pixels that are not counted, any 64-bit integer.
        align_corners: as in ``F.interpolate``.
    """
    target = target.contiguous()
    images, num_classes, height, width = input.shape
    out_height, out_width = target.shape[1:]
    tile, wide = _tiling.choose("confusion_matrix"), needs_64_bits(input)
    if wide and "maxnreg" in tile:
        tile = {**tile, "maxnreg": 168}  # 64-bit offsets need twice the registers
    same = (height, width) == (out_height, out_width)
    patch = (0, 0) if same else _tiling.patch(tile, (height, width), (out_height, out_width), align_corners)
    arguments = {
        "logits": input,
        "target": target,
        "counts": counts,
        "report": report,
        "CHECK": report is not None,
        "stride_n": input.stride(0),
        "stride_c": input.stride(1),
        "stride_y": input.stride(2),
        "stride_x": input.stride(3),
        "height": height,
        "width": width,
        "out_height": out_height,
        "out_width": out_width,
        "step_y": _tiling.step(height, out_height, align_corners),
        "step_x": _tiling.step(width, out_width, align_corners),
        "num_classes": num_classes,
        "ignore_index": ignore_index,
        "ROWS": tile["ROWS"],
        "COLUMNS": tile["COLUMNS"],
        "PATCH_ROWS": patch[0],
        "PATCH_COLUMNS": patch[1],
        "DISTINCT": tile["DISTINCT"],
        "SAME": same,
        "ALIGN_CORNERS": align_corners,
        "WIDE": wide,
    }
    tiles = cdiv(out_height, tile["ROWS"]) * cdiv(out_width, tile["COLUMNS"])
    launch(_confusion_matrix, (images * tiles,), arguments, tile)

"""True and false positives of thresholded activation maps. Full-resolution maps are never stored.

Launches, in this order, after the label histogram of labels.py:
  ranges      only "minmax" and "gradcam": smallest value and span of each wanted map at its own resolution
  extremes    only "max" and "gradcam": the largest value of each wanted map at label resolution ("gradcam": the
              smallest as well)
  thresholds  per image the list of wanted classes, and for each the largest value that is still outside its mask
  counts      per tile of pixels: the labels are read once for all classes; the samples of a class's patch decide
              whether the tile is entirely outside the mask, entirely inside, or must be interpolated

"Wanted" are the classes of an image's ground truth, or all classes. Lower bound of the memory traffic: the labels
twice, the second time from the cache, and the wanted maps twice. At 8x19x128x256 to 512x1024 the maps are 11 MB and the
labels 4 MB. Measured there on an H100 (bench/results/gpu-h100-triton.json): 0.42 ms in a CUDA graph, with a label count
that was slower than today's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _tiling
from ._launch import FOUR_WARPS, cdiv, launch, needs_64_bits, power_of_2, warps_of
from ._math import INFINITY, class_of, mix, offset_of, patch_offsets, somewhat_less, somewhat_more, taps

NORMALIZATIONS = ("max", "minmax", "gradcam", "none")
_MAX, _MINMAX, _GRADCAM, _NONE = range(4)
# values of the constexpr NORMALIZE
MAX, MINMAX, GRADCAM = tl.constexpr(_MAX), tl.constexpr(_MINMAX), tl.constexpr(_GRADCAM)
# bits of float32
INFINITY_BITS = tl.constexpr(0x7F800000)
NAN_BITS = tl.constexpr(0x7FC00000)
LARGEST_BITS = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _scaled(v, shift, span, NORMALIZE: tl.constexpr):
    """Samples as float32 before the resize: "minmax" and "gradcam" normalise them, and a map with span 0 becomes 0."""
    v = v.to(tl.float32)
    if NORMALIZE == GRADCAM:
        v = tl.where(v > 0, v, 0.0)
    if NORMALIZE == MINMAX or NORMALIZE == GRADCAM:
        v = tl.where(span > 0, tl.div_rn(v - shift, tl.where(span > 0, span, 1.0)), 0.0)
    return v


@triton.jit
def _resized(
    plane, y, x, shift, span, stride_y, stride_x, height, width, step_y, step_x,
    NORMALIZE: tl.constexpr, SAME: tl.constexpr, ALIGN_CORNERS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Values, float32, of the resized map at pixels ``(y, x)``. ``plane`` points to the map."""
    if SAME:
        at = offset_of(y, x, stride_y, stride_x, WIDE)
        return _scaled(tl.load(plane + at), shift, span, NORMALIZE)
    else:
        top, bottom, row_weight = taps(y, step_y, height, ALIGN_CORNERS)
        left, right, column_weight = taps(x, step_x, width, ALIGN_CORNERS)
        return mix(
            _scaled(tl.load(plane + offset_of(top, left, stride_y, stride_x, WIDE)), shift, span, NORMALIZE),
            _scaled(tl.load(plane + offset_of(top, right, stride_y, stride_x, WIDE)), shift, span, NORMALIZE),
            _scaled(tl.load(plane + offset_of(bottom, left, stride_y, stride_x, WIDE)), shift, span, NORMALIZE),
            _scaled(tl.load(plane + offset_of(bottom, right, stride_y, stride_x, WIDE)), shift, span, NORMALIZE),
            column_weight,
            row_weight,
        )


@triton.jit(do_not_specialize=["height", "width", "num_classes"])
def _ranges(
    maps, truth, ranges, stride_n, stride_c, stride_y, stride_x, height, width, num_classes,
    BLOCK: tl.constexpr, NORMALIZE: tl.constexpr, ALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store the smallest value and the span of each wanted map at its own resolution in ``ranges``.

    maps: ``(N, C, h, w)`` float32, bfloat16 or float16; strides in elements.
    truth: ``(N, C)`` int64, valid pixels of each class in each image.
    ranges: ``(N, C, 2)`` float32. The span is 0 if it is not a positive finite number or the map holds a NaN.

    Grid: (images * classes,).
    """
    which = tl.program_id(0)
    if ALL or tl.load(truth + which) > 0:
        plane = (
            maps + (which // num_classes).to(tl.int64) * stride_n + (which % num_classes) * tl.cast(stride_c, tl.int64)
        )
        least = tl.full([BLOCK], INFINITY, tl.float32)
        largest = tl.full([BLOCK], -INFINITY, tl.float32)
        strange = tl.zeros([BLOCK], tl.int32)
        for start in range(0, height * width, BLOCK):
            index = tl.minimum(start + tl.arange(0, BLOCK), height * width - 1)
            at = offset_of(index // width, index % width, stride_y, stride_x, WIDE)
            v = tl.load(plane + at).to(tl.float32)
            strange |= (v != v).to(tl.int32)
            if NORMALIZE == GRADCAM:
                v = tl.where(v > 0, v, 0.0)
            least = tl.minimum(least, v)
            largest = tl.maximum(largest, v)
        shift = tl.min(least)
        span = tl.max(largest) - shift
        good = (span > 0) & (span < INFINITY) & (tl.max(strange) == 0)
        tl.store(ranges + 2 * which, shift)
        tl.store(ranges + 2 * which + 1, tl.where(good, span, 0.0))


@triton.jit
def _extreme_bits(z, LEAST: tl.constexpr):
    """The largest of values ``z`` (float32) as int32 whose order is that of positive floats, NaN above infinity.

    Negative values become 0: a map's maximum counts only if it is positive. With LEAST, for values in [0, 1], the order
    is reversed, and the result stands for the smallest value.
    """
    bits = tl.where(z > 0, z.to(tl.int32, bitcast=True), 0)
    bits = tl.where(z != z, NAN_BITS, bits)
    if LEAST:
        bits = -bits + LARGEST_BITS
    return tl.max(bits)


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "num_classes", "groups"])
def _extremes(
    maps, truth, ranges, extremes, stride_n, stride_c, stride_y, stride_x,
    height, width, out_height, out_width, step_y, step_x, num_classes, groups,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PATCH_ROWS: tl.constexpr, PATCH_COLUMNS: tl.constexpr,
    TILES: tl.constexpr, NORMALIZE: tl.constexpr, LEAST: tl.constexpr, ALL: tl.constexpr, SAME: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Store the largest value of each wanted map at label resolution, with LEAST the smallest, in ``extremes``.

    maps, truth, ranges: as in :func:`_ranges`. extremes: ``(N, C)`` int32 by :func:`_extreme_bits`, initially 0.

    Grid: (images * classes * groups,); a group has TILES tiles. The program resizes the tile with the largest sample
    first, and then only tiles whose largest sample exceeds the largest value found so far.
    """
    which = tl.program_id(0) // groups
    if ALL or tl.load(truth + which) > 0:
        plane = (
            maps + (which // num_classes).to(tl.int64) * stride_n + (which % num_classes) * tl.cast(stride_c, tl.int64)
        )
        shift = 0.0
        span = 1.0
        if NORMALIZE == GRADCAM:
            shift = tl.load(ranges + 2 * which)
            span = tl.load(ranges + 2 * which + 1)
        tiles_x = tl.cdiv(out_width, COLUMNS)
        begin = tl.program_id(0) % groups * TILES
        end = tl.minimum(begin + TILES, tiles_x * tl.cdiv(out_height, ROWS))
        index = tl.arange(0, ROWS * COLUMNS)
        found = tl.cast(0, tl.int32)
        if PATCH_ROWS > 0:
            peak = -INFINITY
            at_peak = begin
            for tile in range(begin, end):
                patch = patch_offsets(
                    tile // tiles_x * ROWS, tile % tiles_x * COLUMNS, ROWS, COLUMNS, stride_y, stride_x,
                    height, width, out_height, out_width, step_y, step_x,
                    PATCH_ROWS, PATCH_COLUMNS, ALIGN_CORNERS, WIDE,
                )  # fmt: skip
                v = _scaled(tl.load(plane + patch), shift, span, NORMALIZE)
                if LEAST:
                    v = -v
                largest = tl.max(tl.where(tl.abs(v) < INFINITY, v, INFINITY))
                at_peak = tl.where(largest > peak, tile, at_peak)
                peak = tl.maximum(peak, largest)
            y = tl.minimum(at_peak // tiles_x * ROWS + index // COLUMNS, out_height - 1)
            x = tl.minimum(at_peak % tiles_x * COLUMNS + index % COLUMNS, out_width - 1)
            z = _resized(
                plane, y, x, shift, span, stride_y, stride_x, height, width, step_y, step_x,
                NORMALIZE, SAME, ALIGN_CORNERS, WIDE,
            )  # fmt: skip
            found = _extreme_bits(z, LEAST)
        for tile in range(begin, end):
            worth = True
            if PATCH_ROWS > 0:
                patch = patch_offsets(
                    tile // tiles_x * ROWS, tile % tiles_x * COLUMNS, ROWS, COLUMNS, stride_y, stride_x,
                    height, width, out_height, out_width, step_y, step_x,
                    PATCH_ROWS, PATCH_COLUMNS, ALIGN_CORNERS, WIDE,
                )  # fmt: skip
                v = _scaled(tl.load(plane + patch), shift, span, NORMALIZE)
                if LEAST:
                    least = tl.min(tl.where(tl.abs(v) < INFINITY, v, -INFINITY))
                    worth = somewhat_less(least) < (-found + LARGEST_BITS).to(tl.float32, bitcast=True)
                else:
                    largest = tl.max(tl.where(tl.abs(v) < INFINITY, v, INFINITY))
                    worth = somewhat_more(largest) > found.to(tl.float32, bitcast=True)
            if worth:
                y = tl.minimum(tile // tiles_x * ROWS + index // COLUMNS, out_height - 1)
                x = tl.minimum(tile % tiles_x * COLUMNS + index % COLUMNS, out_width - 1)
                z = _resized(
                    plane, y, x, shift, span, stride_y, stride_x, height, width, step_y, step_x,
                    NORMALIZE, SAME, ALIGN_CORNERS, WIDE,
                )  # fmt: skip
                found = tl.maximum(found, _extreme_bits(z, LEAST))
        tl.atomic_max(extremes + which, found, sem="relaxed")


@triton.jit(do_not_specialize=["images", "num_classes"])
def _thresholds(
    truth, ranges, largest, least, wanted, number, threshold, tp, fp, fn, tau, images, num_classes,
    BLOCK: tl.constexpr, NORMALIZE: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Store per image the wanted classes, their number, and for each the largest value outside its mask.

    Also initialises the counts: tp and fp are 0, and every pixel of a class is a false negative.

    truth, ranges: as in :func:`_ranges`. largest, least: ``(N, C)`` int32 by :func:`_extreme_bits`.
    wanted: ``(N, C)`` int32, per image the wanted classes in ascending order. number: ``(N,)`` int32, how many.
    threshold: ``(N, C)`` float32, in the order of ``wanted``; infinity where nothing is in the mask.
    tp, fp, fn: ``(C,)`` int64.

    Grid: (images,).
    """
    row = tl.program_id(0).to(tl.int64) * num_classes
    c = tl.arange(0, BLOCK)
    inside = c < num_classes
    pixels = tl.load(truth + row + c, mask=inside, other=0)
    is_wanted = inside
    if not ALL:
        is_wanted = inside & (pixels > 0)
    limit = tl.zeros([BLOCK], tl.float32) + tau
    if NORMALIZE == MAX or NORMALIZE == GRADCAM:
        # A pixel is in the mask if (v - shift) / span > tau. Bisection over the bits finds the largest float32 outside.
        shift = tl.zeros([BLOCK], tl.float32)
        span = tl.load(largest + row + c, mask=inside, other=0).to(tl.float32, bitcast=True)
        if NORMALIZE == GRADCAM:
            shift = (-tl.load(least + row + c, mask=inside, other=0) + LARGEST_BITS).to(tl.float32, bitcast=True)
            span = span - shift
        good = (span > 0) & (span < INFINITY)
        divisor = tl.where(good, span, 1.0)
        below = tl.where(good, shift, 0.0).to(tl.int32, bitcast=True)  # always outside the mask
        above = tl.zeros([BLOCK], tl.int32) + INFINITY_BITS  # always inside
        for _ in range(31):
            middle = below + (above - below) // 2
            v = middle.to(tl.float32, bitcast=True)
            outside = tl.div_rn(v - tl.where(good, shift, 0.0), divisor) <= tau
            below = tl.where(outside, middle, below)
            above = tl.where(outside, above, middle)
        limit = tl.where(good, below.to(tl.float32, bitcast=True), INFINITY)
    elif NORMALIZE == MINMAX:
        span = tl.load(ranges + 2 * (row + c) + 1, mask=is_wanted, other=0.0)
        limit = tl.where(span > 0, limit, INFINITY)
    rank = tl.cumsum(is_wanted.to(tl.int32), 0) - 1
    tl.store(wanted + row + rank, c, mask=is_wanted)
    tl.store(threshold + row + rank, limit, mask=is_wanted)
    tl.store(number + tl.program_id(0), tl.sum(is_wanted.to(tl.int32)))
    if tl.program_id(0) == 0:
        tl.store(tp + c, tl.zeros_like(pixels), mask=inside)
        tl.store(fp + c, tl.zeros_like(pixels), mask=inside)
        total = pixels
        for image in range(1, images):
            total += tl.load(truth + image * tl.cast(num_classes, tl.int64) + c, mask=inside, other=0)
        tl.store(fn + c, total, mask=inside)


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "num_classes", "ignore_index"])
def _counts(
    maps, target, wanted, number, threshold, ranges, tp, fp, fn, stride_n, stride_c, stride_y, stride_x,
    height, width, out_height, out_width, step_y, step_x, num_classes, ignore_index,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PATCH_ROWS: tl.constexpr, PATCH_COLUMNS: tl.constexpr,
    NORMALIZE: tl.constexpr, SAME: tl.constexpr, ALIGN_CORNERS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Add true and false positives to ``tp`` and ``fp``, and subtract true positives from ``fn``.

    maps, ranges: as in :func:`_ranges`. target: ``(N, H, W)`` contiguous uint8, int16, int32 or int64.
    wanted, number, threshold, tp, fp, fn: from :func:`_thresholds`.

    Grid: (images * tiles,).
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
    label = tl.load(target + (image * out_height + y) * out_width + x, mask=inside, other=0)
    label = tl.where(inside, class_of(label, num_classes, ignore_index), -1)
    valid = tl.sum((label >= 0).to(tl.int32))
    y, x = tl.minimum(y, out_height - 1), tl.minimum(x, out_width - 1)
    if PATCH_ROWS > 0:
        patch = patch_offsets(
            first_y, first_x, ROWS, COLUMNS, stride_y, stride_x, height, width, out_height, out_width, step_y, step_x,
            PATCH_ROWS, PATCH_COLUMNS, ALIGN_CORNERS, WIDE,
        )  # fmt: skip
    row = image * num_classes
    end = tl.where(valid > 0, tl.load(number + image), 0)
    for k in range(end):
        c = tl.load(wanted + row + k)
        limit = tl.load(threshold + row + k)
        plane = maps + image * stride_n + c * class_stride
        shift = 0.0
        span = 1.0
        if NORMALIZE == MINMAX or NORMALIZE == GRADCAM:
            shift = tl.load(ranges + 2 * (row + c))
            span = tl.load(ranges + 2 * (row + c) + 1)
        some = True
        every = False
        if PATCH_ROWS > 0:
            v = _scaled(tl.load(plane + patch), shift, span, NORMALIZE)
            # Comparisons with NaN are false, so that neither holds for all samples. Both counts share one reduction;
            # a patch has at most 256 samples.
            out = (somewhat_more(v) <= limit).to(tl.int32)
            in_ = (somewhat_less(v) > limit).to(tl.int32)
            agree = tl.sum(out + in_ * 65536)
            some = agree != PATCH_ROWS * PATCH_COLUMNS
            every = agree == PATCH_ROWS * PATCH_COLUMNS * 65536
        if some:
            hit = label >= 0
            if not every:
                z = _resized(
                    plane, y, x, shift, span, stride_y, stride_x, height, width, step_y, step_x,
                    NORMALIZE, SAME, ALIGN_CORNERS, WIDE,
                )  # fmt: skip
                hit = hit & (z > limit)
            predicted = tl.sum(hit.to(tl.int32))
            right = tl.sum((hit & (label == c)).to(tl.int32))
            if right > 0:
                tl.atomic_add(tp + c, right.to(tl.int64), sem="relaxed")
                tl.atomic_add(fn + c, -right.to(tl.int64), sem="relaxed")
            if predicted > right:
                tl.atomic_add(fp + c, (predicted - right).to(tl.int64), sem="relaxed")


def cam_counts(
    cam: Tensor,
    target: Tensor,
    truth: Tensor,
    tau: float,
    normalize: str,
    classes: str,
    ignore_index: int,
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(tp, fp, fn)``, each ``(C,)`` int64: true positives, false positives and false negatives of the pseudo masks.

    Args:
        cam: ``(N, C, h, w)`` maps, float32, bfloat16 or float16, any values, any strides.
        target: ``(N, H, W)`` uint8, int16, int32 or int64 labels; those outside [0, C) count as ignored.
        truth: ``(N, C)`` int64, the valid pixels of each class in each image.
        tau, normalize, classes, ignore_index, align_corners: as in ``cawa_fast.functional.cam_counts``.
    """
    target = target.contiguous()
    images, num_classes, height, width = cam.shape
    out_height, out_width = target.shape[1:]
    how, every = NORMALIZATIONS.index(normalize), classes == "all"
    same = (height, width) == (out_height, out_width)
    strides = dict(zip(("stride_n", "stride_c", "stride_y", "stride_x"), cam.stride(), strict=True))
    low = {"height": height, "width": width}
    high = {"out_height": out_height, "out_width": out_width}
    high["step_y"] = _tiling.step(height, out_height, align_corners)
    high["step_x"] = _tiling.step(width, out_width, align_corners)
    common = {"num_classes": num_classes, "NORMALIZE": how}
    wide = {"WIDE": needs_64_bits(cam)}
    counts = tuple(torch.empty(num_classes, dtype=torch.int64, device=cam.device) for _ in range(3))
    extremes = torch.zeros(2, images, num_classes, dtype=torch.int32, device=cam.device)
    ranges = torch.empty(images, num_classes, 2, dtype=torch.float32, device=cam.device)
    if how in (_MINMAX, _GRADCAM):
        arguments = {"maps": cam, "truth": truth, "ranges": ranges, "BLOCK": 1024, "ALL": every}
        arguments |= strides | low | common | wide
        launch(_ranges, (images * num_classes,), arguments, FOUR_WARPS)
    if how in (_MAX, _GRADCAM):
        tile = _tiling.choose("cam_extremes")
        patch = (0, 0) if same else _tiling.patch(tile, (height, width), (out_height, out_width), align_corners)
        groups = cdiv(cdiv(out_height, tile["ROWS"]) * cdiv(out_width, tile["COLUMNS"]), tile["TILES"])
        for least in (False, True) if how == _GRADCAM else (False,):
            arguments = {"maps": cam, "truth": truth, "ranges": ranges, "extremes": extremes[int(least)]}
            arguments |= {key: tile[key] for key in ("ROWS", "COLUMNS", "TILES")}
            arguments |= {"PATCH_ROWS": patch[0], "PATCH_COLUMNS": patch[1], "LEAST": least, "ALL": every}
            arguments |= {"groups": groups}
            arguments |= {"SAME": same, "ALIGN_CORNERS": align_corners} | strides | low | high | common | wide
            launch(_extremes, (groups * images * num_classes,), arguments, tile)

    wanted = torch.empty(images, num_classes, dtype=torch.int32, device=cam.device)
    number = torch.empty(images, dtype=torch.int32, device=cam.device)
    threshold = torch.empty(images, num_classes, dtype=torch.float32, device=cam.device)
    arguments = {"truth": truth, "ranges": ranges, "largest": extremes[0], "least": extremes[1], "wanted": wanted}
    arguments |= {"number": number, "threshold": threshold, "tp": counts[0], "fp": counts[1], "fn": counts[2]}
    arguments |= {"tau": tau, "images": images, "ALL": every, "BLOCK": power_of_2(num_classes)} | common
    launch(_thresholds, (images,), arguments, warps_of(power_of_2(num_classes)))

    tile = _tiling.choose("cam_counts")
    patch = (0, 0) if same else _tiling.patch(tile, (height, width), (out_height, out_width), align_corners)
    arguments = {"maps": cam, "target": target, "wanted": wanted, "number": number, "threshold": threshold}
    arguments |= {"ranges": ranges, "tp": counts[0], "fp": counts[1], "fn": counts[2], "ignore_index": ignore_index}
    arguments |= {"ROWS": tile["ROWS"], "COLUMNS": tile["COLUMNS"], "PATCH_ROWS": patch[0], "PATCH_COLUMNS": patch[1]}
    arguments |= {"SAME": same, "ALIGN_CORNERS": align_corners} | strides | low | high | common | wide
    tiles = cdiv(out_height, tile["ROWS"]) * cdiv(out_width, tile["COLUMNS"])
    launch(_counts, (images * tiles,), arguments, tile)
    return counts[0], counts[1], counts[2]

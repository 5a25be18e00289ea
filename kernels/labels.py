"""Pixels of each class in each image, and labels that are neither classes nor ignored: one read of the labels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import _tiling
from ._launch import cdiv, launch, power_of_2
from ._math import add_counts, class_of, report_bad

PROGRAMS = 1056  # 8 for each multiprocessor of an H100
MOST_BINS = 1024


@triton.jit(do_not_specialize=["pixels", "parts", "num_classes", "ignore_index"])
def _label_histogram(
    target, counts, report, pixels, parts, num_classes, ignore_index,
    BLOCK: tl.constexpr, BINS: tl.constexpr, DISTINCT: tl.constexpr, COUNT: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    # (images * parts,); a part takes every so manieth block of its image. It counts in registers: millions of additions
    # to the one counter of a frequent class would wait for each other.
    image = (tl.program_id(0) // parts).to(tl.int64)
    total = tl.zeros([BINS], tl.int32)
    for block in range(tl.program_id(0) % parts, tl.cdiv(pixels, BLOCK), parts):
        offset = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = offset < pixels
        label = tl.load(target + image * pixels + offset, mask=inside, other=0).to(tl.int64)
        kept = inside & (label != ignore_index)
        is_class = (label >= 0) & (label < num_classes)
        if COUNT:
            if BINS > 1:
                # the last bin is for what does not count
                total += tl.histogram(tl.where(kept & is_class, label, BINS - 1).to(tl.int32), BINS)
            else:
                keys = tl.where(kept & is_class, label, -1).to(tl.int32)
                add_counts(keys, counts + image * num_classes, DISTINCT)
        if CHECK:
            report_bad(label, kept & (is_class == 0), report)
    if COUNT and BINS > 1:
        c = tl.arange(0, BINS)
        found = (c < num_classes) & (total > 0)
        tl.atomic_add(counts + image * num_classes + c, total.to(tl.int64), mask=found, sem="relaxed")


def label_histogram(
    target: Tensor, counts: Tensor | None, report: Tensor | None, num_classes: int, ignore_index: int
) -> None:
    """Add to ``counts`` and ``report`` what is in the labels.

    Args:
        target: ``(N, ...)`` labels.
        counts: ``(N, num_classes)`` int64, or None.
        report: ``(3,)`` int64: how many labels are neither in ``[0, num_classes)`` nor ``ignore_index``, the least and
            the largest of them; or None.
        num_classes: number of classes.
        ignore_index: label that does not count, any 64-bit integer.
    """
    target = target.contiguous()
    images = target.shape[0]
    pixels = target.numel() // max(images, 1)
    tile = _tiling.choose("label_histogram")
    parts = min(cdiv(pixels, tile["BLOCK"]), max(1, PROGRAMS // max(images, 1)))
    bins = power_of_2(num_classes + 1)
    arguments = {
        "target": target,
        "counts": counts,
        "report": report,
        "pixels": pixels,
        "parts": parts,
        "num_classes": num_classes,
        "ignore_index": ignore_index,
        "BLOCK": tile["BLOCK"],
        "BINS": bins if bins <= MOST_BINS else 1,
        "DISTINCT": tile["DISTINCT"],
        "COUNT": counts is not None,
        "CHECK": report is not None,
    }
    launch(_label_histogram, (images * parts,), arguments, tile)


@triton.jit(do_not_specialize=["pixels", "num_classes", "ignore_index"])
def _confusion_matrix_labels(
    prediction, target, counts, report, pixels, num_classes, ignore_index,
    BLOCK: tl.constexpr, DISTINCT: tl.constexpr,
):  # fmt: skip
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < pixels
    label = tl.load(target + offset, mask=inside, other=0)
    label = tl.where(inside, class_of(label, num_classes, ignore_index), -1)
    guess = tl.load(prediction + offset, mask=inside, other=0).to(tl.int64)
    is_class = (guess >= 0) & (guess < num_classes)
    keys = tl.where((label >= 0) & is_class, label * num_classes + guess.to(tl.int32), -1)
    add_counts(keys, counts, DISTINCT)
    report_bad(guess, (label >= 0) & (is_class == 0), report)


def confusion_matrix_labels(
    prediction: Tensor, target: Tensor, counts: Tensor, report: Tensor, num_classes: int, ignore_index: int
) -> None:
    """Add pairs of label and integer prediction to ``counts`` ``(C, C)`` int64.

    Args:
        prediction: classes, of the shape of ``target``; those of ignored pixels are not looked at.
        target: labels.
        counts: ``(num_classes, num_classes)`` int64, rows are labels.
        report: ``(3,)`` int64, as in :func:`label_histogram`, of predictions outside the classes.
        num_classes: at most 46340, so that 32 bits number the pairs.
        ignore_index: label that does not count.
    """
    prediction, target = prediction.contiguous(), target.contiguous()
    pixels = target.numel()
    tile = _tiling.choose("label_histogram")
    arguments = {
        "prediction": prediction,
        "target": target,
        "counts": counts,
        "report": report,
        "pixels": pixels,
        "num_classes": num_classes,
        "ignore_index": ignore_index,
        "BLOCK": tile["BLOCK"],
        "DISTINCT": tile["DISTINCT"],
    }
    launch(_confusion_matrix_labels, (cdiv(pixels, tile["BLOCK"]),), arguments, tile)

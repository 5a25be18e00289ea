"""Pixels of each class in each image, and labels that are neither classes nor ignored, from one read of the labels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import _tiling
from ._launch import cdiv, launch, power_of_2
from ._math import add_counts, class_of, report_bad

PROGRAMS = 1056  # 8 per multiprocessor of an H100
MOST_BINS = 1024  # up to here a program counts in registers


@triton.jit(do_not_specialize=["pixels", "parts", "num_classes", "ignore_index"])
def _label_histogram(
    target, counts, report, pixels, parts, num_classes, ignore_index,
    BLOCK: tl.constexpr, BINS: tl.constexpr, DISTINCT: tl.constexpr, COUNT: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Add to ``counts`` with COUNT and to ``report`` with CHECK; tensors as in :func:`label_histogram`.

    Grid: (images * parts,). A program reads every parts-th block of its image and counts in registers, because millions
    of atomic additions to the counter of a frequent class would serialise.
    """
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
                # the last bin takes labels that are not counted
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
    """Add the pixels of each class to ``counts`` and the bad labels to ``report``.

    Args:
        target: ``(N, ...)`` uint8, int16, int32 or int64 labels.
        counts: ``(N, num_classes)`` int64, or None.
        report: ``(3,)`` int64: number, minimum and maximum of the labels that are neither in ``[0, num_classes)`` nor
            ``ignore_index``; or None.
        num_classes: number of classes.
        ignore_index: label of pixels that are not counted, any 64-bit integer.
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
    """Tensors as in :func:`confusion_matrix_labels`. Grid: (ceil(pixels / BLOCK),)."""
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
    """Add pairs of label and integer prediction to ``counts``.

    Args:
        prediction: classes in ``[0, num_classes)``, uint8, int16, int32 or int64, in the shape of ``target``. Those of
            ignored pixels are disregarded.
        target: labels of any shape, uint8, int16, int32 or int64; those outside ``[0, num_classes)`` count as ignored.
        counts: ``(num_classes, num_classes)`` int64; rows are labels, columns are predictions.
        report: ``(3,)`` int64, as in :func:`label_histogram`, of predictions outside the classes.
        num_classes: at most 46340, so that a pair fits into 32 bits.
        ignore_index: label of pixels that are not counted, any 64-bit integer.
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

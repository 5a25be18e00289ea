"""What one reports of a segmentation network, from its confusion matrix."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SegmentationMetrics(NamedTuple):
    """Shares in ``[0, 1]``; NaN where a class has no pixels.

    Attributes:
        miou: mean IoU over the classes that have one.
        mean_accuracy: mean of ``accuracy`` over the classes with ground truth.
        pixel_accuracy: share of the pixels that are right.
        iou: ``(C,)`` float64, ``TP / (TP + FP + FN)``.
        accuracy: ``(C,)`` float64, ``TP / (TP + FN)``.
    """

    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    iou: Tensor
    accuracy: Tensor


def segmentation_metrics(matrix: Tensor) -> SegmentationMetrics:
    """mIoU, accuracies and per-class IoU from a confusion matrix.

    The numbers are torchmetrics' ``MulticlassJaccardIndex`` and ``MulticlassAccuracy`` (mIoU and mean accuracy of all
    classes that occur: ``average=None``, then the mean of those that are not NaN).

    Args:
        matrix: ``(C, C)`` counts, rows = target, as :func:`cawa_fast.functional.confusion_matrix` returns them.

    Example:
        >>> import torch
        >>> metrics = segmentation_metrics(torch.tensor([[3, 1], [0, 4]]))
        >>> metrics.iou.tolist(), metrics.miou, metrics.pixel_accuracy
        ([0.75, 0.8], 0.775, 0.875)
    """
    matrix = matrix.double()
    hit, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou = hit / (truth + predicted - hit)
    accuracy = hit / truth
    return SegmentationMetrics(
        iou.nanmean().item(), accuracy.nanmean().item(), (hit.sum() / truth.sum()).item(), iou, accuracy
    )

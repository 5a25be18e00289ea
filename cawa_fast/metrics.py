"""mIoU, accuracies and per-class IoU of a segmentation network, computed from its confusion matrix."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from . import _validate


class MetricValues(NamedTuple):
    r"""Metrics of a confusion matrix, as :func:`segmentation_metrics` returns them.

    All values are fractions in ``[0, 1]``, or NaN where they are undefined. With TP, FP and FN of class i,

    .. math:: IoU_i = \frac{TP_i}{TP_i + FP_i + FN_i}, \quad Acc_i = \frac{TP_i}{TP_i + FN_i}

    Source: Long, Shelhamer and Darrell 2015 (FCN), section 5.

    Attributes:
        miou: mean IoU over the classes whose IoU is defined.
        mean_accuracy: mean accuracy over the classes that have ground truth.
        pixel_accuracy: fraction of the counted pixels that are predicted correctly.
        iou: ``(C,)`` float64; NaN for a class that occurs neither in the labels nor in the predictions.
        accuracy: ``(C,)`` float64; NaN for a class without ground truth.

    Example:
        >>> import torch
        >>> metrics = segmentation_metrics(torch.tensor([[4, 0, 0], [2, 2, 0], [0, 0, 0]]))  # class 2 does not occur
        >>> round(metrics.miou, 4), metrics.iou.isnan().tolist()
        (0.5833, [False, False, True])
    """

    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    iou: Tensor
    accuracy: Tensor


def segmentation_metrics(matrix: Tensor) -> MetricValues:
    r"""mIoU, accuracies and per-class IoU from a confusion matrix.

    .. math:: IoU_i = \frac{M_{ii}}{\sum_j M_{ij} + \sum_j M_{ji} - M_{ii}}, \quad
        Acc_i = \frac{M_{ii}}{\sum_j M_{ij}}, \quad PA = \frac{\sum_i M_{ii}}{\sum_{ij} M_{ij}}

    The values of a class equal those of torchmetrics' ``MulticlassJaccardIndex`` and ``MulticlassAccuracy`` with
    ``average=None``; where nothing is counted, they are NaN here and 0 there. The means are over the values that are
    not NaN. A class that is predicted but occurs in no label is thus left out of ``mean_accuracy``, as in
    MMSegmentation; torchmetrics' ``average="macro"`` counts it with accuracy 0. In ``miou`` it counts with IoU 0
    everywhere. On a GPU this function synchronises, since it returns Python floats.

    Source: Long, Shelhamer and Darrell 2015 (FCN), section 5.

    Args:
        matrix: ``(C, C)`` pixel counts, any dtype, at least 0; rows = target, columns = prediction, as
            :func:`cawa_fast.functional.confusion_matrix` returns them.

    Returns:
        :class:`MetricValues`, computed in float64. Undefined values are NaN; nothing is raised for them.

    Raises:
        TypeError: ``matrix`` is not a tensor of real numbers.
        ValueError: ``matrix`` is not square, or holds negative or infinite numbers.

    Example:
        >>> import torch
        >>> metrics = segmentation_metrics(torch.tensor([[3, 1], [0, 4]]))
        >>> metrics.iou.tolist(), metrics.miou, metrics.pixel_accuracy
        ([0.75, 0.8], 0.775, 0.875)
    """
    _validate.check_matrix("segmentation_metrics", matrix)
    matrix = matrix.double()
    if not bool(((matrix >= 0) & matrix.isfinite()).all()):
        raise ValueError(
            "segmentation_metrics: matrix must hold finite numbers of pixels, at least 0, got "
            f"{matrix.min().item():g} to {matrix.max().item():g}; pass the result of confusion_matrix"
        )
    hit, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    iou = hit / (truth + predicted - hit)
    accuracy = hit / truth
    return MetricValues(
        iou.nanmean().item(), accuracy.nanmean().item(), (hit.sum() / truth.sum()).item(), iou, accuracy
    )

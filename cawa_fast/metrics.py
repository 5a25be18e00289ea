"""mIoU, Dice and accuracies of a segmentation network, computed from its confusion matrix."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from . import _validate


class MetricValues(NamedTuple):
    r"""Metrics of a confusion matrix, as :func:`segmentation_metrics` returns them.

    All values are fractions in ``[0, 1]``, or NaN where they are undefined. With TP, FP and FN of class i,

    .. math:: IoU_i = \frac{TP_i}{TP_i + FP_i + FN_i}, \quad Acc_i = \frac{TP_i}{TP_i + FN_i}, \quad
        Dice_i = \frac{2\, TP_i}{2\, TP_i + FP_i + FN_i}, \quad
        FWIoU = \frac{\sum_i (TP_i + FN_i)\, IoU_i}{\sum_i (TP_i + FN_i)}

    Source: Long, Shelhamer and Darrell 2015 (FCN), section 5; Dice 1945, which is also called F1.

    Attributes:
        miou: mean IoU over the classes whose IoU is defined.
        mean_accuracy: mean accuracy over the classes that have ground truth.
        pixel_accuracy: fraction of the counted pixels that are predicted correctly.
        iou: ``(C,)`` float64; NaN for a class that occurs neither in the labels nor in the predictions.
        accuracy: ``(C,)`` float64; NaN for a class without ground truth.
        mean_dice: mean Dice over the classes whose Dice is defined, as ``miou``.
        dice: ``(C,)`` float64; NaN where ``iou`` is.
        frequency_weighted_iou: mean IoU, weighted by the pixels of the ground truth.
        confusion: ``(C, C)``, the matrix: rows = target, columns = prediction.

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
    mean_dice: float
    dice: Tensor
    frequency_weighted_iou: float
    confusion: Tensor


def segmentation_metrics(matrix: Tensor) -> MetricValues:
    r"""mIoU, Dice and accuracies from a confusion matrix, over all classes and by class.

    .. math:: IoU_i = \frac{M_{ii}}{\sum_j M_{ij} + \sum_j M_{ji} - M_{ii}}, \quad
        Acc_i = \frac{M_{ii}}{\sum_j M_{ij}}, \quad PA = \frac{\sum_i M_{ii}}{\sum_{ij} M_{ij}}

    The means are over the values that are not NaN. Where torchmetrics and MMSegmentation define a value alike, theirs
    is the same; docs/metrics.md lists where they do not. On a GPU this function synchronises, since it returns Python
    floats.

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
    counts = matrix.double()
    if not bool(((counts >= 0) & counts.isfinite()).all()):
        raise ValueError(
            "segmentation_metrics: matrix must hold finite numbers of pixels, at least 0, got "
            f"{counts.min().item():g} to {counts.max().item():g}; pass the result of confusion_matrix"
        )
    hit, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou = hit / (truth + predicted - hit)
    accuracy = hit / truth
    dice = 2 * hit / (truth + predicted)
    return MetricValues(
        miou=iou.nanmean().item(),
        mean_accuracy=accuracy.nanmean().item(),
        pixel_accuracy=(hit.sum() / truth.sum()).item(),
        iou=iou,
        accuracy=accuracy,
        mean_dice=dice.nanmean().item(),
        dice=dice,
        frequency_weighted_iou=((truth * iou).nansum() / truth.sum()).item(),
        confusion=matrix,
    )

"""What the adapters share: the error for a missing framework, and what they log."""

from __future__ import annotations

import logging
import math

from ..adaptive import AdaptiveClassWeights
from ..metrics import MetricValues

log = logging.getLogger("cawa_fast")


def missing(extra: str, error: ImportError) -> ImportError:
    """The error for a framework that cannot be imported, with the command that installs it.

    Example:
        >>> print(missing("lightning", ModuleNotFoundError("No module named 'lightning'")))
        cawa_fast.integrations.lightning: No module named 'lightning'; install it: pip install "cawa_fast[lightning]"
    """
    text = f'cawa_fast.integrations.{extra}: {error}; install it: pip install "cawa_fast[{extra}]"'
    return ModuleNotFoundError(text, name=error.name)


def of_step(weights: AdaptiveClassWeights) -> dict[str, float]:
    """Weight, CSPS and IoU of each class at the last step, for a logger. Undefined values are left out.

    Example:
        >>> import torch
        >>> weights = AdaptiveClassWeights(2, class_names=["road", "pole"])
        >>> of_step(weights)
        {'cawa/weight/road': 1.0, 'cawa/weight/pole': 1.0}
    """
    kinds = ("weight", "csps", "iou")
    return _by_class(weights, {f"cawa/{kind}": getattr(weights, kind).tolist() for kind in kinds})


def of_metrics(weights: AdaptiveClassWeights, metrics: MetricValues, *, by_class: bool = True) -> dict[str, float]:
    """mIoU, accuracies, and IoU of each class, for a logger. Undefined values are left out.

    Example:
        >>> import torch, cawa_fast as cf
        >>> metrics = cf.segmentation_metrics(torch.tensor([[3, 1], [0, 4]]))
        >>> of_metrics(AdaptiveClassWeights(2), metrics)
        {'miou': 0.775, 'mean_accuracy': 0.875, 'pixel_accuracy': 0.875, 'iou/0': 0.75, 'iou/1': 0.8}
    """
    means = {name: getattr(metrics, name) for name in ("miou", "mean_accuracy", "pixel_accuracy")}
    means = {name: value for name, value in means.items() if not math.isnan(value)}
    return means | (_by_class(weights, {"iou": metrics.iou.tolist()}) if by_class else {})


def _by_class(weights: AdaptiveClassWeights, values: dict[str, list[float]]) -> dict[str, float]:
    names = weights.class_names or [str(number) for number in range(weights.num_classes)]
    return {
        f"{kind}/{name}": value
        for kind, row in values.items()
        for name, value in zip(names, row, strict=True)
        if not math.isnan(value)
    }

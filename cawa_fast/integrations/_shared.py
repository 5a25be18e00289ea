"""What the adapters share: checks and errors, the score of handed-over logits, and what they log."""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any

from torch import Tensor

from .. import _validate
from ..adaptive import AdaptiveClassWeights
from ..cawa import CAWA
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


def unhooked(who: str, num_classes: int, options: dict[str, Any]) -> CAWA:
    """A CAWA for logits that the framework hands over, with a message for each option that does not fit.

    Example:
        >>> unhooked("CawaHook", 5, {"dleta": 0.5})
        Traceback (most recent call last):
        TypeError: CawaHook: dleta is no argument of CAWA
    """
    unknown = sorted(set(options) - set(inspect.signature(CAWA).parameters))
    if unknown:
        raise TypeError(f"{who}: {unknown[0]} is no argument of CAWA")
    # a network to listen to, a schedule, and metrics are the framework's
    for name in ("model", "classifier", "verify", "method", "budget", "every", "metrics"):
        if name in options:
            raise TypeError(f"{who}: {name}={options[name]!r} has no meaning here; leave it out")
    if num_classes < 2:
        raise ValueError(
            f"{who}: the network has {num_classes} class, for which there is nothing to weight; use two classes, "
            "background and the object"
        )
    return CAWA(None, num_classes, **options)


def observe(cawa: CAWA, target: Tensor, logits: Tensor, bias: Tensor | None) -> None:
    """Score logits of a validation batch: Grad-CAM at the input of the layer that has added ``bias`` to them.

    That is ``ReLU(z_c - b_c)``, also where the logits ``z`` are means of windows or scales, whose weights sum to 1.
    Without a bias it is ``ReLU(z_c)``.

    Args:
        cawa: which has no hook.
        target: labels ``(N, H, W)``.
        logits: ``(N, C, h, w)``.
        bias: ``(C,)``, or None.
    """
    _validate.check_float("observe", "logits", logits)
    logits = logits.detach()
    scored = logits
    if cawa.weights.source == "cam":
        scored = (logits if bias is None else logits - bias.detach().to(logits.dtype).view(-1, 1, 1)).relu()
    cawa._score(target, logits, scored)


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

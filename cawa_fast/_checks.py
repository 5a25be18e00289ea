"""Checks of values: labels outside the classes, and the error that waits on the device until someone reads it.

Shapes, dtypes and ranges of plain arguments are checked where they enter, in :mod:`cawa_fast.functional`. What needs
the values of a tensor is checked here, inside the operators, so that it neither breaks a compiled graph nor forces a
GPU to wait: there, bad labels are only counted, and the error is raised at the next natural synchronisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

MODES = ("auto", "sync", "deferred", "off")
_INT64 = torch.iinfo(torch.int64)

_mode = "auto"
# By device, kind of labels, num_classes and ignore_index a (3,) int64 tensor (count, least, largest) that operators add
# to, allocated once so that a captured CUDA graph can write to it.
_deferred: dict[tuple[torch.device, str, int, int], Tensor] = {}


def set_label_check(mode: str) -> str:
    """Set when labels outside ``[0, C)`` (other than ``ignore_index``) raise; returns the previous mode.

    Args:
        mode: ``"auto"`` (the default): at once on the CPU, where it costs nothing to look, deferred elsewhere.
            ``"sync"``: at once on every device (a GPU waits for each call). ``"deferred"``: bad labels are counted on
            the device and the error comes from :func:`check_labels`, which ``AdaptiveClassWeights.step`` calls.
            ``"off"``: never. In every mode a bad label is treated as ignored, and nothing is read out of bounds.

    Raises:
        ValueError: ``mode`` is none of these.

    Example:
        >>> import cawa_fast as cf
        >>> previous = cf.set_label_check("deferred")
        >>> _ = cf.set_label_check(previous)
    """
    global _mode
    if mode not in MODES:
        raise ValueError(f"set_label_check: mode must be one of {', '.join(MODES)}; got {mode!r}")
    previous, _mode = _mode, mode
    return previous


def check_labels() -> None:
    """Raise for bad labels that operators met since the last check. Waits for the devices that have any to report.

    Raises:
        ValueError: naming the labels, how many pixels have them and the usual cause. The devices stay usable, and the
            report is cleared.

    Example:
        >>> import cawa_fast as cf
        >>> cf.check_labels()
    """
    for key, report in _deferred.items():
        count, low, high = report.tolist()
        if count:
            _clear(report)
            raise ValueError(_message(key[1], count, low, high, *key[2:]))


def report(kind: str, bad: Tensor, num_classes: int, ignore_index: int) -> None:
    """Hand over what an operator found: ``bad`` is ``(3,)`` int64 (count, least, largest) on the operator's device."""
    if label_check_is_off():
        return
    if _is_deferred(bad.device):
        total = open_report(kind, bad.device, num_classes, ignore_index)
        assert total is not None
        total[0].add_(bad[0])
        total[1].clamp_(max=bad[1])
        total[2].clamp_(min=bad[2])
    else:
        close_report(kind, bad, num_classes, ignore_index)


def open_report(kind: str, device: torch.device, num_classes: int, ignore_index: int) -> Tensor | None:
    """``(3,)`` int64 for a kernel to add bad labels to, before :func:`close_report`; None if nobody looks."""
    if label_check_is_off():
        return None
    if not _is_deferred(device):
        return _clear(torch.empty(3, dtype=torch.int64, device=device))
    key = (device, kind, num_classes, ignore_index)
    if key not in _deferred:
        with torch.inference_mode(False):  # an inference tensor could not be written to outside inference mode
            _deferred[key] = _clear(torch.empty(3, dtype=torch.int64, device=device))
    return _deferred[key]


def close_report(kind: str, report: Tensor | None, num_classes: int, ignore_index: int) -> None:
    """Raise for what a kernel has added, unless that waits for :func:`check_labels`."""
    if report is None or _is_deferred(report.device):
        return
    count, low, high = report.tolist()
    if count:
        raise ValueError(_message(kind, count, low, high, num_classes, ignore_index))


def _is_deferred(device: torch.device) -> bool:
    return _mode == "deferred" or (_mode == "auto" and device.type != "cpu")


def label_check_is_off() -> bool:
    """Whether operators may skip looking for bad labels."""
    return _mode == "off"


def check_weight(weight: Tensor | None) -> None:
    """Raise if a weight on the CPU is negative or not finite. On other devices it would force them to wait."""
    if weight is None or weight.device.type != "cpu":
        return
    if not bool(((weight >= 0) & (weight < torch.inf)).all()):
        index = int((~((weight >= 0) & (weight < torch.inf))).nonzero()[0])
        raise ValueError(
            f"weight must be finite and not negative; weight[{index}] is {weight[index].item()}. "
            "A class is left out with weight 0, a label with ignore_index"
        )


def _clear(report: Tensor) -> Tensor:
    report[0], report[1], report[2] = 0, _INT64.max, _INT64.min
    return report


def _message(kind: str, count: int, low: int, high: int, num_classes: int, ignore_index: int) -> str:
    values = f"the value {low}" if low == high else f"values from {low} to {high}"
    pixels = "1 pixel has" if count == 1 else f"{count} pixels have"
    return (
        f"{kind}: {pixels} {values}, outside the {num_classes} classes 0..{num_classes - 1} and not "
        f"ignore_index={ignore_index}. {_usual_cause(kind, low, high, num_classes)}"
    )


def _usual_cause(kind: str, low: int, high: int, num_classes: int) -> str:
    if kind == "input":
        return "Predictions must be class indices; pass num_classes as large as the model's number of outputs"
    if high == num_classes:
        return "Labels counted from 1? Subtract 1 (as ADE20K needs), or pass num_classes + 1 logits"
    if low < 0:
        return f"A negative void label? Pass it as ignore_index={low}"
    if low == high:
        return f"{low} is often the void label: pass ignore_index={low}, or remap it on load"
    return "Raw label ids instead of training ids? Remap them on load (Cityscapes: labelTrainIds), or raise num_classes"

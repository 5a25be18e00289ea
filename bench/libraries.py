"""Baselines from other libraries: Liger-Kernel, torchmetrics, and MMSegmentation's way of counting.

They are optional: the benchmarks leave out what is not installed. Labels are int64, 255 where ignored.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import IGNORE, TAU

_libraries: list[torch.library.Library] = []  # definitions live as long as these objects


def look_in_folder(name: str) -> None:
    """Also import from a folder of the environment, where ``make setup`` installs what must not lie in the way."""
    folder = Path(sys.prefix) / name
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))


def import_torchvision() -> None:
    """Import torchvision even where its compiled part does not fit this torch; other libraries import it in turn.

    A CUDA build of torchvision cannot load its operators beside a CPU build of torch, but its Python code needs their
    schemas. This declares the schemas; the operators are never called.

    Raises:
        ImportError: there is no torchvision.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within the library
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            library = torch.library.Library("torchvision", "FRAGMENT")
            _libraries.append(library)
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@functools.cache
def import_mmseg() -> None:
    """Import MMSegmentation's networks beside mmcv-lite too, whose compiled operators they import and rarely use.

    Raises:
        ImportError: there is no mmseg, or it does not fit mmcv.
    """
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations within the library
        import mmcv  # noqa: F401

        absent = importlib.util.find_spec("mmcv._ext") is None
        if absent:
            operators: Any = types.ModuleType("mmcv._ext")
            operators.__getattr__ = lambda name: None
            sys.modules["mmcv._ext"] = operators
        try:
            import mmseg.models  # noqa: F401
        finally:
            if absent:
                del sys.modules["mmcv._ext"]  # mmengine asks whether it is there


@functools.cache
def import_torchmetrics() -> Any:
    """``torchmetrics.functional.classification``; it imports torchvision where that is installed."""
    with contextlib.suppress(ImportError):
        import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional import classification

    return classification


def liger_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """The mean loss by Liger-Kernel, which takes ``(pixels, classes)`` and writes the gradient over them."""
    from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss

    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    rows = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
    return LigerCrossEntropyLoss(weight=weight, ignore_index=IGNORE)(rows, labels.reshape(-1))


def mmsegmentation_areas(logits: Tensor, labels: Tensor, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels per class of intersection, prediction and label, ``(C,)`` on the CPU: the matrix's diagonal and sums.

    Histograms of float32, image by image, as MMSegmentation's IoU metric counts.
    """
    classes = logits.shape[1]
    resized = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    totals = torch.zeros(3, classes)
    for prediction, target in zip(resized.argmax(1), labels, strict=True):
        valid = target != IGNORE
        predicted, truth = prediction[valid], target[valid]
        areas = (predicted[predicted == truth], predicted, truth)
        totals += torch.stack([torch.histc(x.float(), bins=classes, min=0, max=classes - 1).cpu() for x in areas])
    intersection, predictions, truths = totals
    return intersection, predictions, truths


def torchmetrics_confusion_matrix(logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    """``(C, C)`` int64 by torchmetrics' ``multiclass_confusion_matrix``, of the resized logits."""
    matrix_of = import_torchmetrics().multiclass_confusion_matrix
    resized = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    matrix: Tensor = matrix_of(resized, labels, num_classes=logits.shape[1], ignore_index=IGNORE, validate_args=False)
    return matrix


def torchmetrics_cam_counts(cam: Tensor, labels: Tensor, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """``(tp, fp, fn)`` by torchmetrics' ``multilabel_stat_scores``: a label per class, ignored where not scored."""
    classes = cam.shape[1]
    resized = F.interpolate(cam, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    share = resized / resized.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(resized.dtype).tiny)
    truth = labels.unsqueeze(1) == torch.arange(classes, device=labels.device).view(-1, 1, 1)
    scored = truth.any(-1).any(-1)[..., None, None] & (labels != IGNORE).unsqueeze(1)
    scores = import_torchmetrics().multilabel_stat_scores(
        share,
        truth.to(torch.int8).where(scored, -1),
        num_labels=classes,
        threshold=TAU,
        average="none",
        ignore_index=-1,
        validate_args=False,
    )
    return scores[:, 0], scores[:, 1], scores[:, 3]

"""Losses beside the cross-entropy for benchmarks: this library's, PyTorch's, and those of other libraries.

All take logits ``(N, C, h, w)``, labels ``(N, H, W)``, 255 where ignored, class weights ``(C,)`` (which the region
losses do not use), and ``align_corners``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import cawa_fast as cf

from . import libraries
from .cases import IGNORE

THRESHOLD, MIN_KEPT = 0.7, 100_000  # of hard pixels; the values of MMSegmentation's configurations
OPERATORS = ("dice", "ce_dice", "focal", "ohem")


def resized(x: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    if x.shape[-2:] == labels.shape[-2:]:
        return x
    return F.interpolate(x, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)


# ------------------------------------------------------------------------------------------------------ cawa_fast

_options: dict[str, Any] = {"ignore_index": IGNORE}
OURS: dict[str, Callable[[Tensor, bool], Any]] = {
    "dice": lambda weight, corners: cf.DiceLoss(align_corners=corners, **_options),
    "ce_dice": lambda weight, corners: cf.CombinedLoss(
        cf.CrossEntropyLoss(weight, align_corners=corners, **_options), cf.DiceLoss(align_corners=corners, **_options)
    ),
    "focal": lambda weight, corners: cf.FocalLoss(2.0, weight, align_corners=corners, **_options),
    "ohem": lambda weight, corners: cf.OhemCrossEntropyLoss(
        THRESHOLD, MIN_KEPT, weight, reduction="pixel_mean", align_corners=corners, **_options
    ),
}


def our_loss(operator: str) -> Callable[..., Tensor]:
    def compute(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
        loss: Tensor = OURS[operator](weight, align_corners)(logits, labels)
        return loss

    return compute


# -------------------------------------------------------------------------------------------------------- PyTorch


def dice_of(probabilities: Tensor, labels: Tensor) -> Tensor:
    """1 minus the mean Dice score of the classes present, over the batch.

    Sums of products with one-hot labels would read C values per pixel once more; a gather reads one.
    """
    valid = labels != IGNORE
    index = labels.where(valid, 0)
    classes = probabilities.shape[1]
    at_label = probabilities.gather(1, index.unsqueeze(1)).squeeze(1) * valid
    zeros = probabilities.new_zeros(classes)
    intersection = zeros.index_add(0, index.flatten(), at_label.flatten())
    prediction = torch.einsum("nchw,nhw->c", probabilities, valid.to(probabilities.dtype))
    truth = torch.bincount(labels.flatten(), minlength=IGNORE + 1)[:classes]
    score = 2 * intersection / (prediction + truth).clamp_min(1e-7)
    present = truth > 0
    return ((1 - score) * present).sum() / present.sum().clamp_min(1)


def eager_dice(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    return dice_of(resized(logits, labels, align_corners).softmax(1), labels)


def eager_ce_dice(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """One log-softmax serves both losses."""
    log_probabilities = resized(logits, labels, align_corners).log_softmax(1)
    loss = F.nll_loss(log_probabilities, labels, weight, ignore_index=IGNORE)
    return loss + dice_of(log_probabilities.exp(), labels)


def eager_focal(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    loss = F.cross_entropy(resized(logits, labels, align_corners), labels, ignore_index=IGNORE, reduction="none")
    valid = labels != IGNORE
    factor = weight[labels.where(valid, 0)] * valid
    return (factor * (1 - torch.exp(-loss)) ** 2 * loss).sum() / factor.sum()


def eager_ohem(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """MMSegmentation's rule, with the losses in place of probabilities and ``topk`` in place of a sort."""
    z = resized(logits, labels, align_corners)
    loss = F.cross_entropy(z, labels, ignore_index=IGNORE, reduction="none")
    valid = labels != IGNORE
    with torch.no_grad():
        hard = loss[valid]
        count = min(MIN_KEPT * len(labels) + 1, len(hard))
        bound = hard.topk(count).values[-1].clamp_max(-torch.tensor(THRESHOLD).log())
        factor = weight[labels.where(valid, 0)] * (valid & (loss > bound))
    return (loss * factor).mean()


EAGER: dict[str, Callable[..., Tensor]] = {
    "dice": eager_dice,
    "ce_dice": eager_ce_dice,
    "focal": eager_focal,
    "ohem": eager_ohem,
}


# ------------------------------------------------------------------------------------------------- other libraries


def smp_dice(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """segmentation_models_pytorch's, which divides by the number of all classes."""
    return _smp().DiceLoss("multiclass", ignore_index=IGNORE)(resized(logits, labels, align_corners), labels)


def smp_ce_dice(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    z = resized(logits, labels, align_corners)
    dice = _smp().DiceLoss("multiclass", ignore_index=IGNORE)(z, labels)
    return dice + F.cross_entropy(z, labels, weight, ignore_index=IGNORE)


def smp_focal(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """segmentation_models_pytorch's: the sum of one focal loss of a sigmoid per class."""
    return _smp().FocalLoss("multiclass", ignore_index=IGNORE)(resized(logits, labels, align_corners), labels)


def monai_dice(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    """MONAI's over the batch and all classes; it has no ignored label, so that these pixels count as class 0."""
    return _monai().DiceLoss(softmax=True, to_onehot_y=True, batch=True)(*_for_monai(logits, labels, align_corners))


def monai_ce_dice(logits: Tensor, labels: Tensor, weight: Tensor, align_corners: bool) -> Tensor:
    loss = _monai().DiceCELoss(softmax=True, to_onehot_y=True, batch=True, weight=weight)
    return loss(*_for_monai(logits, labels, align_corners))


def _for_monai(logits: Tensor, labels: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
    return resized(logits, labels, align_corners), labels.where(labels != IGNORE, 0).unsqueeze(1)


def _smp() -> Any:
    libraries.import_torchvision()
    import segmentation_models_pytorch

    return segmentation_models_pytorch.losses


def _monai() -> Any:
    import monai.losses

    return monai.losses


OTHERS: dict[tuple[str, str], Callable[..., Tensor]] = {
    ("dice", "smp"): smp_dice,
    ("ce_dice", "smp"): smp_ce_dice,
    ("focal", "smp"): smp_focal,
    ("dice", "MONAI"): monai_dice,
    ("ce_dice", "MONAI"): monai_ce_dice,
}

"""The losses of ``--loss``, and a baseline in plain PyTorch, at the resolution of the labels."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ... import (
    AdaptiveClassWeights,
    CombinedLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    JaccardLoss,
    OhemCrossEntropyLoss,
    TverskyLoss,
)


def weighted_loss(name: str, weight: Tensor | AdaptiveClassWeights, gamma: float, ignore_index: int) -> nn.Module:
    """The loss ``name`` of ``config.LOSSES`` with class weights, in both parts of a sum.

    Example:
        >>> import torch
        >>> type(weighted_loss("ce+dice", torch.ones(2), 2.0, 255)).__name__
        'CombinedLoss'
    """
    options: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index}
    if name == "ce":
        return CrossEntropyLoss(**options)
    if name == "focal":
        return FocalLoss(gamma, **options)
    if name == "ohem":
        return OhemCrossEntropyLoss(**options)
    if name in ("dice", "jaccard"):
        return (DiceLoss if name == "dice" else JaccardLoss)(smooth=1.0, **options)
    if name == "tversky":
        return TverskyLoss(0.3, 0.7, smooth=1.0, **options)
    pixel, region = (weighted_loss(part, weight, gamma, ignore_index) for part in name.split("+"))
    return CombinedLoss(pixel, region)


class SeesawLoss(nn.Module):
    r"""Seesaw loss: rare classes are punished less for the pixels of frequent ones, and more for wrong answers.

    .. math:: l = -\log \frac{e^{z_y}}{e^{z_y} + \sum_{j \ne y} M_{yj} C_{yj} e^{z_j}}, \quad
        M_{yj} = \min(1, n_j / n_y)^p, \quad C_{yj} = \max(1, \sigma_j / \sigma_y)^q

    with :math:`\sigma` the softmax, through which no gradient flows. The paper counts :math:`n` while it trains; here
    the pixels of the training set are known.

    Source: Wang et al. 2021, with its p = 0.8 and q = 2.

    Example:
        >>> import torch
        >>> loss_fn = SeesawLoss(torch.tensor([90, 10]), ignore_index=255)
        >>> loss = loss_fn(torch.zeros(1, 2, 2, 2), torch.zeros(1, 4, 4, dtype=torch.uint8))
        >>> print(f"{loss:.4f}")  # log(1 + (1 / 9)^0.8)
        0.1591
    """

    weight: Tensor | None = None
    log_mitigation: Tensor

    def __init__(self, counts: Tensor, ignore_index: int, p: float = 0.8, q: float = 2.0) -> None:
        super().__init__()
        self.ignore_index, self.q = ignore_index, q
        log_n = counts.clamp_min(1).double().log()
        self.register_buffer("log_mitigation", (p * (log_n - log_n[:, None])).clamp_max(0).float())

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        logits, labels, valid = _at_labels(input, target, self.ignore_index)
        log_p = logits.detach().log_softmax(1)
        own = log_p.gather(1, labels.unsqueeze(1))
        compensation = self.q * (log_p - own).clamp_min(0)
        factor = self.log_mitigation[labels].permute(0, 3, 1, 2) + compensation  # 0 for the label's own class
        return F.cross_entropy(logits + factor, labels.where(valid, -100))


def _at_labels(input: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 logits at the resolution of the labels; labels as int64, 0 where ignored; which pixels have one."""
    logits = F.interpolate(input.float(), size=target.shape[1:], mode="bilinear", align_corners=False)
    valid = target != ignore_index
    return logits, target.long().where(valid, 0), valid

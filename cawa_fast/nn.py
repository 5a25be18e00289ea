"""Loss modules: ``CrossEntropyLoss``, and its rivals ``FocalLoss``, ``LogitAdjustedLoss`` and ``RecallLoss``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import _label_check, _validate, reference, weighting
from . import functional as CF
from .adaptive import AdaptiveClassWeights
from .weighting import Counts


class CrossEntropyLoss(nn.Module):
    """Replaces ``nn.CrossEntropyLoss``, and the ``F.interpolate`` before it; see
    :func:`cawa_fast.functional.cross_entropy`.

    Args:
        weight: ``(C,)`` finite and not negative; or an :class:`cawa_fast.AdaptiveClassWeights`, whose live buffer is
            used: after its ``step()`` the loss has the new weights.
        ignore_index: label of pixels that count for nothing.
        reduction: ``"mean"``, ``"sum"``, ``"none"``, ``"valid_mean"``, ``"pixel_mean"`` or ``"class_mean"``.
        label_smoothing: in ``[0, 1]``.
        align_corners: how logits are resized to the labels.

    Shape:
        Logits ``(N, C, h, w)`` (or of the labels' size, any rank) and labels ``(N, H, W)``; the loss is ``()``, or the
        labels' shape with ``reduction="none"``.

    Raises:
        ValueError: an argument out of range, named.

    Example:
        >>> import torch, cawa_fast as cf
        >>> loss_fn = cf.CrossEntropyLoss(ignore_index=255)
        >>> logits = torch.zeros(2, 19, 16, 32)  # at stride 4
        >>> labels = torch.full((2, 64, 128), 255, dtype=torch.uint8)
        >>> labels[:, :32] = 3
        >>> print(f"{loss_fn(logits, labels):.4f}")  # log 19
        2.9444
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | AdaptiveClassWeights | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        _validate.check_choice("CrossEntropyLoss", "reduction", reduction, reference.REDUCTIONS)
        _validate.check_range("CrossEntropyLoss", "label_smoothing", label_smoothing)
        self.adaptive: AdaptiveClassWeights | None
        _register_weight(self, weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.align_corners = align_corners

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return CF.cross_entropy(
            input,
            target,
            self.weight if self.adaptive is None else self.adaptive.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            align_corners=self.align_corners,
        )

    def item(self, loss: Tensor) -> float:
        """``loss.item()``, and the moment when bad labels that were met on a GPU raise: it waits for the device anyway.

        Raises:
            ValueError: see :func:`cawa_fast.check_labels`.
        """
        value = loss.item()
        _label_check.check_labels()
        return value

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, align_corners={self.align_corners}"


class FocalLoss(nn.Module):
    r"""Focal loss (Lin et al. 2017) of bilinearly resized logits, a rival of adaptive weights. Plain PyTorch.

    .. math:: FL = -w_y (1 - p_y)^\gamma \log p_y

    With ``gamma=0`` it equals :class:`CrossEntropyLoss`.

    Args:
        gamma: focusing exponent, finite and at least 0.
        weight, ignore_index, align_corners: as for :class:`CrossEntropyLoss`.
        reduction: ``"mean"`` (divided by the sum of the valid labels' weights), ``"sum"``, ``"none"``, ``"valid_mean"``
            (by the number of valid pixels) or ``"pixel_mean"`` (by all).

    Raises:
        ValueError: an argument out of range, named.

    Example:
        >>> import torch, cawa_fast as cf
        >>> loss = cf.FocalLoss(gamma=2.0)(torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8))
        >>> print(f"{loss:.4f}")  # (1/2)^2 log 2
        0.1733
    """

    weight: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        weight: Tensor | AdaptiveClassWeights | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= gamma < math.inf:
            raise ValueError(f"FocalLoss: gamma must be finite and at least 0, got {gamma}")
        _validate.check_choice(
            "FocalLoss", "reduction", reduction, tuple(r for r in reference.REDUCTIONS if r != "class_mean")
        )
        self.adaptive: AdaptiveClassWeights | None
        _register_weight(self, weight)
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.align_corners = align_corners

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        weight = self.weight if self.adaptive is None else self.adaptive.weight
        _validate.check_weight("FocalLoss", weight, input)
        nll = CF.cross_entropy(
            input, target, ignore_index=self.ignore_index, reduction="none", align_corners=self.align_corners
        )
        labels, valid = reference.valid_labels(target, input.shape[1], self.ignore_index)
        # expm1 keeps 1 - p exact where p is near 1; the clamp keeps the power's gradient finite at p = 1.
        miss = (-torch.expm1(-nll)).clamp_min(torch.finfo(nll.dtype).tiny)
        pixel_weight = valid.to(nll.dtype) if weight is None else weight.to(nll.dtype)[labels] * valid
        loss = pixel_weight * miss**self.gamma * nll
        if self.reduction == "none":
            return loss
        if self.reduction == "sum":
            return loss.sum()
        if self.reduction == "mean":
            return loss.sum() / pixel_weight.sum()
        pixels = valid.sum().clamp_min(1) if self.reduction == "valid_mean" else max(valid.numel(), 1)
        return loss.sum() / pixels

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"


class LogitAdjustedLoss(CrossEntropyLoss):
    r"""Logit-adjusted softmax cross-entropy (Menon et al. 2021), a rival of class weights.

    .. math:: l = -\log \mathrm{softmax}_y(z + \tau \ln \pi), \quad \pi_i = n_i / \sum_j n_j

    In training a frequent class gets a head start, so that a rare one must win by a margin; predict from the bare
    logits. The constants are added before the resize: the weights of a resize sum to 1, so that this equals adding
    them at the labels' resolution. The paper counts training images per class; here they are pixels.

    Args:
        class_counts: ``(C,)`` pixels per class in the training set; see :mod:`cawa_fast.weighting`. A class without
            pixels gets the prior of the rarest one.
        tau: finite; 1, the paper's, is consistent for the balanced error, 0 is plain cross-entropy.
        weight, ignore_index, reduction, label_smoothing, align_corners: as for :class:`CrossEntropyLoss`.

    Raises:
        ValueError: an argument out of range, named; logits with another number of classes.

    Example:
        >>> import torch, cawa_fast as cf
        >>> loss_fn = cf.LogitAdjustedLoss([75, 25])
        >>> logits = torch.zeros(1, 2, 4, 4)
        >>> loss = loss_fn(logits, torch.ones(1, 8, 8, dtype=torch.uint8))
        >>> print(f"{loss:.4f}")  # -log 0.25
        1.3863
    """

    adjustment: Tensor

    def __init__(
        self,
        class_counts: Counts,
        tau: float = 1.0,
        weight: Tensor | AdaptiveClassWeights | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        align_corners: bool = False,
    ) -> None:
        super().__init__(weight, ignore_index, reduction, label_smoothing, align_corners)
        if not math.isfinite(tau):
            raise ValueError(f"LogitAdjustedLoss: tau must be finite, got {tau}")
        self.tau = tau
        self.register_buffer("adjustment", tau * weighting.log_prior(class_counts))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        axis = min(input.dim() - 1, 1)
        if axis < 0 or input.shape[axis] != len(self.adjustment):
            raise ValueError(
                f"LogitAdjustedLoss: input {tuple(input.shape)} must have the {len(self.adjustment)} classes of "
                "class_counts"
            )
        # float32 for bfloat16 logits too: its steps are too coarse for a sum of the two
        adjusted = input + self.adjustment.view(-1, *[1] * (input.dim() - 1 - axis))
        return super().forward(adjusted, target)

    def extra_repr(self) -> str:
        return f"tau={self.tau}, {super().extra_repr()}"


class RecallLoss(nn.Module):
    r"""Recall loss as published (Tian et al. 2022): each batch's cross-entropy, weighted by that batch's own recall.

    .. math:: l = -w_y \log p_y, \quad w_i = 1 - R_i = FN_i / (TP_i + FN_i)

    with the counts of the argmax over the batch, without a host sync; no gradient flows through them. With
    ``AdaptiveClassWeights(rule="recall")`` the recall is that of the last validation pass instead.

    What differs from the authors' code: there a class of the batch without a false negative keeps the weight
    ``1 / (TP + FN)`` where the formula says 0, ignored pixels enter another class's counts, and the mean is taken over
    ignored pixels too (``reduction="pixel_mean"``).

    Args:
        ignore_index, align_corners: as for :class:`CrossEntropyLoss`.
        reduction: as for :class:`CrossEntropyLoss`. ``"valid_mean"``, the paper's mean over pixels, lets the loss fade
            as recall rises; with ``"mean"`` only the weights' proportions count.

    Attributes:
        weight: ``(C,)``: the last batch's; 1 for a class without pixels in it. None before the first.

    Shape:
        Logits ``(N, C, h, w)`` and labels ``(N, H, W)``.

    Raises:
        ValueError: an argument out of range, named.

    Example:
        >>> import torch, cawa_fast as cf
        >>> loss_fn = cf.RecallLoss()
        >>> logits = torch.tensor([[[[1.0, 1.0, -1.0, -1.0]], [[0.0, 0.0, 0.0, 0.0]]]])  # predicts 0, 0, 1, 1
        >>> loss = loss_fn(logits, torch.tensor([[[0, 1, 1, 1]]]))
        >>> loss_fn.weight  # recall 1 and 2/3
        tensor([0.0000, 0.3333])
    """

    def __init__(self, ignore_index: int = -100, reduction: str = "valid_mean", align_corners: bool = False) -> None:
        super().__init__()
        _validate.check_choice("RecallLoss", "reduction", reduction, reference.REDUCTIONS)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.align_corners = align_corners
        self.weight: Tensor | None = None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        options: dict[str, Any] = {"ignore_index": self.ignore_index, "align_corners": self.align_corners}
        matrix = CF.confusion_matrix(input.detach(), target, **options)
        truth = matrix.sum(1)
        recall = matrix.diagonal() / truth
        # A new tensor each time: the last batch's may still be waiting for its backward pass.
        self.weight = (1 - recall).where(truth > 0, 1.0).to(reference.compute_dtype(input.dtype))
        return CF.cross_entropy(input, target, self.weight, reduction=self.reduction, **options)

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, align_corners={self.align_corners}"


def _register_weight(module: CrossEntropyLoss | FocalLoss, weight: Tensor | AdaptiveClassWeights | None) -> None:
    if isinstance(weight, AdaptiveClassWeights):
        module.adaptive = weight
        module.register_buffer("weight", None)
        return
    if weight is not None:
        name = type(module).__name__
        if not isinstance(weight, Tensor) or weight.dim() != 1:
            raise ValueError(f"{name}: weight must be a (C,) tensor or an AdaptiveClassWeights, got {weight!r}")
        _label_check.check_weight(weight.detach().cpu())  # once, here: on a GPU the operator itself does not look
    module.adaptive = None
    module.register_buffer("weight", weight)

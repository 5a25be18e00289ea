"""Loss modules: ``CrossEntropyLoss`` and ``FocalLoss``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import _arguments, _checks, reference
from . import functional as CF
from .weights import AdaptiveClassWeights


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
        _arguments.check_choice("CrossEntropyLoss", "reduction", reduction, reference.REDUCTIONS)
        _arguments.check_range("CrossEntropyLoss", "label_smoothing", label_smoothing)
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
        _checks.check_labels()
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
        _arguments.check_choice(
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
        _arguments.check_weight("FocalLoss", weight, input)
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


def _register_weight(module: CrossEntropyLoss | FocalLoss, weight: Tensor | AdaptiveClassWeights | None) -> None:
    if isinstance(weight, AdaptiveClassWeights):
        module.adaptive = weight
        module.register_buffer("weight", None)
        return
    if weight is not None:
        name = type(module).__name__
        if not isinstance(weight, Tensor) or weight.dim() != 1:
            raise ValueError(f"{name}: weight must be a (C,) tensor or an AdaptiveClassWeights, got {weight!r}")
        _checks.check_weight(weight.detach().cpu())  # once, here: on a GPU the operator itself does not look
    module.adaptive = None
    module.register_buffer("weight", weight)

"""Region losses: Dice, Jaccard and Tversky, and their sum with a cross-entropy or focal loss in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from . import _region, _validate
from ._region import RegionSums
from .adaptive import AdaptiveClassWeights
from .nn import CrossEntropyLoss, FocalLoss, class_terms, register_offset, register_weight
from .pixel_losses import BinaryCrossEntropyLoss


class _RegionLoss(nn.Module):
    """The arguments that region losses share, and their call."""

    weight: Tensor | None
    offset: Tensor | None
    adaptive: AdaptiveClassWeights | None

    def __init__(
        self,
        weight: Tensor | AdaptiveClassWeights | None = None,
        ignore_index: int = -100,
        mode: str = "multiclass",
        smooth: float | Sequence[float] = 0.0,
        eps: float = 1e-7,
        classes: str = "present",
        include: Sequence[int] | None = None,
        squared: bool = False,
        per_image: bool = False,
        align_corners: bool = False,
        offset: Tensor | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        register_weight(self, weight)
        register_offset(self, offset)
        self.ignore_index = _validate.as_ignore_index(name, ignore_index)
        _validate.check_choice(name, "mode", mode, _region.MODES)
        self.mode = mode
        self.smooth = _region.as_smooth(name, smooth)
        self.eps = _region.as_positive(name, "eps", eps)
        _validate.check_choice(name, "classes", classes, _region.CLASSES)
        self.classes = classes
        self.include = _region.as_include(name, include)
        self.squared = _validate.as_bool(name, "squared", squared)
        self.per_image = _validate.as_bool(name, "per_image", per_image)
        self.align_corners = _validate.as_bool(name, "align_corners", align_corners)

    def score(self, sums: RegionSums) -> Tensor:
        """The index of each class, ``(C,)`` or ``(N, C)``; the loss is 1 minus it."""
        raise NotImplementedError

    def _fraction(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        return (numerator + self.smooth[0]) / (denominator + self.smooth[1]).clamp_min(self.eps)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        weight, offset = class_terms(self)[0], self.offset
        logits, labels, channels = _region.as_multiclass(type(self).__name__, input, target, self.mode, offset)
        options = (self.ignore_index, "sum", 0.0, 0.0, self.squared, self.align_corners)
        _, sums, truth = _region.checked_sums(type(self).__name__, logits, labels, None, offset, *options)
        return self.of_sums(sums, truth, channels, weight)

    def of_sums(self, sums: Tensor, truth: Tensor, channels: int, weight: Tensor | None) -> Tensor:
        collected = _region.collected(sums, truth, channels, self.per_image)
        _validate.check_per_class(
            type(self).__name__, "weight", weight, collected.truth.view(-1, collected.truth.shape[-1])
        )
        return _region.reduced(1 - self.score(collected), collected.truth, self.classes, self.include, weight)

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, mode={self.mode!r}, classes={self.classes!r}, smooth={self.smooth}"


class DiceLoss(_RegionLoss):
    r"""Soft Dice loss of bilinearly resized logits.

    .. math:: L = \frac{\sum_c w_c\, (1 - D_c)}{\sum_c w_c}, \quad
              D_c = \frac{2 I_c + s}{\max(P_c + T_c + s,\ \epsilon)}

    with the sums :math:`I_c, P_c, T_c` of :func:`cawa_fast.functional.region_sums`, over the classes that count.

    =========================================================  ===============================================
    as in                                                      arguments
    =========================================================  ===============================================
    segmentation_models_pytorch 0.6 ``DiceLoss(smooth=s)``     ``smooth=2 * s, classes="present_of_all"``
    MONAI ``DiceLoss(softmax=True, to_onehot_y=True)``         ``smooth=1e-5, classes="all", per_image=True``
    MONAI with ``batch=True``                                  ``smooth=1e-5, classes="all"``
    MONAI with ``include_background=False``                    also ``include=range(1, num_classes)``
    MONAI with ``squared_pred=True``                           also ``squared=True``
    nnU-Net, Ultralytics (batch-wise, smooth 1)                ``smooth=1.0, classes="all"``
    =========================================================  ===============================================

    On a CPU the loss and its gradient take two passes over the logits, at their own resolution. Float64, other devices
    and the transforms of ``torch.func`` use plain PyTorch.

    Source: Milletari et al. 2016 (V-Net); Sudre et al. 2017.

    Args:
        weight: ``(C,)`` or an :class:`cawa_fast.AdaptiveClassWeights`. Its weights are used and its offsets are not: a
            region loss scores the bare logits, with which the network predicts.
        ignore_index: label of the pixels that are left out.
        mode: ``"multiclass"``, ``"binary"`` or ``"multilabel"``, see :func:`cawa_fast.functional.region_sums`.
        smooth: :math:`s`, finite and at least 0; or two numbers, for the numerator and the denominator.
        eps: :math:`\epsilon`, at least 0: the least denominator. With 0 and no smoothing, a class without pixels whose
            probability is 0 gives NaN.
        classes: over which classes the mean is.

            * ``"present"``: those that have valid pixels in the batch (in the image with ``per_image``).
            * ``"all"``: all of them. A class without pixels then has the loss ``1 - s / (P + s)``.
            * ``"present_of_all"``: the sum over those present, divided by the number of all.
        include: class indices: only these count. None for all.
        squared: :math:`P_c` is the sum of the squared probabilities.
        per_image: one loss per image and class, and their mean; otherwise the sums are those of the batch.
        align_corners: sample positions of the resize, as in ``F.interpolate``.
        offset: ``(C,)``, added to the logits; only with ``mode="multiclass"``.

    Shape:
        Input: logits ``(N, C, h, w)`` of any size, or ``(N, C, d1, ..., dk)`` of the size of the labels. Target:
            ``(N, H, W)`` or ``(N, d1, ..., dk)``. Output: scalar ``()``, in ``[0, 1]``; float64 for float64 logits,
            else float32. 0 if no pixel is valid, unless ``classes="all"``.

    Raises:
        ValueError, TypeError: naming the argument that does not fit. The call raises as
            :func:`cawa_fast.functional.region_sums` does.

    Example:
        >>> import torch, cawa_fast as cf
        >>> loss_fn = cf.DiceLoss(ignore_index=255)
        >>> logits, labels = torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8)
        >>> print(f"{loss_fn(logits, labels):.4f}")  # 1 - 2 * 32 / (32 + 64); class 1 has no pixels
        0.3333
    """

    def score(self, sums: RegionSums) -> Tensor:
        return self._fraction(2 * sums.intersection, sums.prediction + sums.truth)


class JaccardLoss(_RegionLoss):
    r"""Soft Jaccard loss (1 - IoU) of bilinearly resized logits.

    .. math:: L = \frac{\sum_c w_c\, (1 - J_c)}{\sum_c w_c}, \quad
              J_c = \frac{I_c + s}{\max(P_c + T_c - I_c + s,\ \epsilon)}

    All else is as for :class:`DiceLoss`, arguments and errors included. segmentation_models_pytorch's ``JaccardLoss``
    has ``classes="present_of_all"``; MONAI's ``DiceLoss(jaccard=True)`` doubles both parts of the fraction, so that its
    ``smooth_nr`` and ``smooth_dr`` are twice the values of ``smooth``.

    Source: Rahman and Wang 2016.

    Example:
        >>> import torch, cawa_fast as cf
        >>> logits, labels = torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8)
        >>> print(f"{cf.JaccardLoss()(logits, labels):.4f}")  # 1 - 32 / (32 + 64 - 32)
        0.5000
    """

    def score(self, sums: RegionSums) -> Tensor:
        intersection, prediction, truth = sums
        return self._fraction(intersection, prediction + truth - intersection)


class TverskyLoss(_RegionLoss):
    r"""Soft Tversky loss of bilinearly resized logits.

    .. math:: L = \frac{\sum_c w_c\, (1 - S_c)}{\sum_c w_c}, \quad
              S_c = \frac{I_c + s}{\max(I_c + \alpha (P_c - I_c) + \beta (T_c - I_c) + s,\ \epsilon)}

    ``alpha`` charges false positives and ``beta`` false negatives. 1/2 and 1/2 give :class:`DiceLoss` (with half its
    ``smooth``), 1 and 1 :class:`JaccardLoss`. All else is as for :class:`DiceLoss`.

    Source: Salehi et al. 2017, Eq. 3 and 4.

    Args:
        alpha, beta: finite and at least 0.
        **options: as for :class:`DiceLoss`.

    Example:
        >>> import torch, cawa_fast as cf
        >>> logits, labels = torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8)
        >>> print(f"{cf.TverskyLoss(alpha=0.3, beta=0.7)(logits, labels):.4f}")  # 1 - 32 / (32 + 0.7 * 32)
        0.4118
    """

    def __init__(self, alpha: float = 0.5, beta: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.alpha = _region.as_positive("TverskyLoss", "alpha", alpha)
        self.beta = _region.as_positive("TverskyLoss", "beta", beta)

    def score(self, sums: RegionSums) -> Tensor:
        intersection, prediction, truth = sums
        missed = self.alpha * (prediction - intersection) + self.beta * (truth - intersection)
        return self._fraction(intersection, intersection + missed)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, {super().extra_repr()}"


class CombinedLoss(nn.Module):
    r"""A pixel loss plus a region loss, computed in one pass where they share their probabilities.

    .. math:: L = f_1\, L_\text{pixel} + f_2\, L_\text{region}

    One pass serves :class:`CrossEntropyLoss`, :class:`FocalLoss` and :class:`BinaryCrossEntropyLoss` together with
    :class:`DiceLoss`, :class:`JaccardLoss` or :class:`TverskyLoss` if their ``ignore_index``, ``align_corners``,
    ``mode`` and ``offset`` are the same. Any other pair is computed one after the other, with the same result.

    Args:
        pixel_loss: a module that maps logits and labels to a scalar.
        region_loss: a :class:`DiceLoss`, :class:`JaccardLoss` or :class:`TverskyLoss`.
        pixel_factor, region_factor: :math:`f_1` and :math:`f_2`, finite.

    Shape:
        As for the region loss. Output: scalar ``()``.

    Raises:
        TypeError, ValueError: naming the argument that does not fit; the call raises as the two losses do.

    Example:
        >>> import torch, cawa_fast as cf
        >>> loss_fn = cf.CombinedLoss(cf.CrossEntropyLoss(ignore_index=255), cf.DiceLoss(ignore_index=255))
        >>> logits, labels = torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8)
        >>> print(f"{loss_fn(logits, labels):.4f}")  # log 2 + 1/3
        1.0265
    """

    def __init__(
        self, pixel_loss: nn.Module, region_loss: nn.Module, pixel_factor: float = 1.0, region_factor: float = 1.0
    ) -> None:
        super().__init__()
        for argument, module in (("pixel_loss", pixel_loss), ("region_loss", region_loss)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"CombinedLoss: {argument} must be a loss module, got {_validate.described(module)}")
        if not isinstance(region_loss, _RegionLoss):
            got = type(region_loss).__name__
            raise TypeError(f"CombinedLoss: region_loss must be DiceLoss, JaccardLoss or TverskyLoss, got {got}")
        if getattr(pixel_loss, "reduction", "mean") == "none":
            raise ValueError("CombinedLoss: pixel_loss has reduction='none'; use one that returns a scalar")
        for argument, factor in (("pixel_factor", pixel_factor), ("region_factor", region_factor)):
            if not abs(_validate.as_number("CombinedLoss", argument, factor)) < float("inf"):
                raise ValueError(f"CombinedLoss: {argument} must be finite, got {factor}")
        self.pixel_loss, self.region_loss = pixel_loss, region_loss
        self.pixel_factor, self.region_factor = float(pixel_factor), float(region_factor)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        pixel: Any = self.pixel_loss
        region: Any = self.region_loss
        if not self._shares_probabilities():
            return self.pixel_factor * pixel(input, target) + self.region_factor * region(input, target)
        name, weight = "CombinedLoss", class_terms(region)[0]
        logits, labels, channels = _region.as_multiclass(name, input, target, region.mode, region.offset)
        if isinstance(pixel, BinaryCrossEntropyLoss):
            pixel_weight, reduction = pixel.weights(logits), pixel.two_class_reduction
        else:
            pixel_weight, reduction = class_terms(pixel)[0], pixel.reduction
        smoothing, gamma = getattr(pixel, "label_smoothing", 0.0), getattr(pixel, "gamma", 0.0)
        options = (region.ignore_index, reduction, smoothing, gamma, region.squared, region.align_corners)
        loss, sums, truth = _region.checked_sums(name, logits, labels, pixel_weight, region.offset, *options)
        return self.pixel_factor * loss + self.region_factor * region.of_sums(sums, truth, channels, weight)

    def _shares_probabilities(self) -> bool:
        pixel: Any = self.pixel_loss
        region: Any = self.region_loss
        if isinstance(pixel, BinaryCrossEntropyLoss):
            if pixel.mode != region.mode or (pixel.pos_weight is not None and pixel.mode == "multilabel"):
                return False
        elif not (type(pixel) in (CrossEntropyLoss, FocalLoss) and region.mode == "multiclass"):
            return False
        same = pixel.ignore_index == region.ignore_index and pixel.align_corners == region.align_corners
        offset = None if isinstance(pixel, BinaryCrossEntropyLoss) else class_terms(pixel)[1]
        return bool(same) and offset is region.offset

    def extra_repr(self) -> str:
        return f"pixel_factor={self.pixel_factor}, region_factor={self.region_factor}"

"""Loss modules: ``CrossEntropyLoss``, and the baselines ``FocalLoss``, ``LogitAdjustedLoss`` and ``RecallLoss``."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from . import _label_check, _validate, reference, weighting
from . import functional as CF
from .adaptive import AdaptiveClassWeights
from .weighting import Counts


class CrossEntropyLoss(nn.Module):
    r"""Weighted cross-entropy. Replaces ``nn.CrossEntropyLoss`` and the ``F.interpolate`` before it.

    .. math:: l = -(1 - s)\, w_y \log p_y - \frac{s}{C} \sum_c w_c \log p_c, \qquad p = \mathrm{softmax}(z + b)

    for a pixel with label :math:`y`, resized logits :math:`z`, offsets :math:`b` and :math:`s` = ``label_smoothing``.
    See :func:`cawa_fast.functional.cross_entropy` for the reductions, the special cases and the sources. With one class
    the loss is always 0; all losses of this package warn of that.

    Args:
        weight: ``(C,)``, float32, float64, bfloat16 or float16, finite and not negative. Or an
            :class:`cawa_fast.AdaptiveClassWeights`: the loss then reads its live buffers, and uses the new weights, and
            the offsets if its rule sets them, as soon as its ``step()`` has run.
        ignore_index: label of the pixels that are left out.
        reduction: ``"mean"``, ``"sum"``, ``"none"``, ``"valid_mean"``, ``"pixel_mean"`` or ``"class_mean"``.
        label_smoothing: in ``[0, 1]``.
        align_corners: sample positions of the resize, as in ``F.interpolate``.
        offset: ``(C,)``, float32, float64, bfloat16 or float16, finite: added to the logits in the loss only. Change
            the buffer ``offset`` to change it. Those of adaptive weights come on top.

    Shape:
        Input: logits ``(N, C, h, w)``, or logits of any rank that have the size of the labels; float32, float64,
            bfloat16 or float16. Target: labels ``(N, H, W)``, uint8, int16, int32 or int64. Output: scalar ``()``, or
            the shape of the labels with ``reduction="none"``; float64 for float64 logits, else float32.

    Attributes:
        weight: the ``(C,)`` buffer, or None.
        offset: the ``(C,)`` buffer, or None.
        adaptive: the :class:`cawa_fast.AdaptiveClassWeights`, or None.

    Raises:
        ValueError, TypeError: naming the argument that does not fit. The call raises as
            :func:`cawa_fast.functional.cross_entropy` does.

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
    offset: Tensor | None

    def __init__(
        self,
        weight: Tensor | AdaptiveClassWeights | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        align_corners: bool = False,
        offset: Tensor | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        _validate.check_choice(name, "reduction", reduction, reference.REDUCTIONS)
        self.label_smoothing = _validate.as_fraction(name, "label_smoothing", label_smoothing)
        self.adaptive: AdaptiveClassWeights | None
        register_weight(self, weight)
        register_offset(self, offset)
        self.ignore_index = _validate.as_ignore_index(name, ignore_index)
        self.reduction = reduction
        self.align_corners = _validate.as_bool(name, "align_corners", align_corners)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self._loss(input, target, *class_terms(self))

    def unweighted(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss without the class weights and offsets, for a validation set."""
        return self._loss(input, target, None, None)

    def share(
        self, input: Tensor, target: Tensor, counts: Tensor, *, weighted: bool = True, align_corners: bool | None = None
    ) -> Tensor:
        """The share of a batch in the loss of several batches: those that are accumulated, on all processes.

        The shares sum to the loss of one batch that holds all the images, where the losses of the batches do not: each
        of them is divided by its own pixels. Shares have the same gradients as that loss, too.

        Args:
            input, target: as for a call.
            counts: ``(C + 1,)`` int64: the pixels of each class, and last the ignored ones, in all the batches
                together, as :meth:`cawa_fast.CAWA.count_labels` counts those of one.
            weighted: whether to use the class weights and offsets.
            align_corners: in place of that of the module.

        Returns:
            Scalar ``()``; 0 if all the batches have no labelled pixel.

        Raises:
            ValueError: ``counts`` does not fit, or the module has ``reduction="none"``.
        """
        name = f"{type(self).__name__}.share"
        classes = input.shape[min(input.dim() - 1, 1)]
        if self.reduction == "none":
            raise ValueError(f"{name}: reduction='none' has one loss per pixel, which has no shares; use another one")
        _validate.check_tensor(name, "counts", counts, f"a tensor ({classes + 1},) of int64")
        if counts.shape != (classes + 1,) or counts.dtype != torch.int64:
            raise ValueError(
                f"{name}: counts must be a tensor ({classes + 1},) of int64, for the {classes} classes and the ignored "
                f"pixels, got {_validate.described(counts)}; CAWA.count_labels(target) returns one"
            )
        weight, offset = class_terms(self) if weighted else (None, None)
        dtype = reference.compute_dtype(input.dtype)
        weights = torch.ones(classes, dtype=dtype, device=input.device) if weight is None else weight.to(dtype)
        scale = reference.reduction_scale(counts[:-1], 1, weights, self.reduction).nan_to_num(0)
        if self.reduction == "pixel_mean":
            scale = scale / counts.sum().clamp_min(1)
        if self.reduction != "class_mean":  # the same factor for all classes
            return self._loss(input, target, weight, offset, "sum", align_corners) * scale[0]
        labels, valid = reference.valid_labels(target, classes, self.ignore_index)
        return (self._loss(input, target, weight, offset, "none", align_corners) * (scale[labels] * valid)).sum()

    def _loss(
        self,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        offset: Tensor | None,
        reduction: str | None = None,
        align_corners: bool | None = None,
    ) -> Tensor:
        loss = CF.cross_entropy(
            input,
            target,
            weight,
            offset=offset,
            ignore_index=self.ignore_index,
            reduction=reduction or self.reduction,
            label_smoothing=self.label_smoothing,
            align_corners=self.align_corners if align_corners is None else align_corners,
        )
        _warn_of_one_class(self, input)
        return loss

    def item(self, loss: Tensor) -> float:
        """``loss.item()``, followed by :func:`cawa_fast.check_labels`.

        On a GPU, operators only count labels outside ``[0, C)``, because raising would synchronise. ``loss.item()``
        synchronises anyway, so this method raises for such labels here.

        Args:
            loss: scalar ``()``, any floating dtype.

        Returns:
            The value as a Python float.

        Raises:
            ValueError: an operator met labels outside ``[0, C)`` since the last check.

        Example:
            >>> import torch, cawa_fast as cf
            >>> loss_fn = cf.CrossEntropyLoss()
            >>> loss = loss_fn(torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8))
            >>> round(loss_fn.item(loss), 4)
            0.6931
        """
        _validate.check_tensor("CrossEntropyLoss.item", "loss", loss, "the tensor that the loss returned")
        value = loss.item()
        _label_check.check_labels()
        return value

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, align_corners={self.align_corners}"


class FocalLoss(nn.Module):
    r"""Focal loss of bilinearly resized logits, a baseline for adaptive weights.

    .. math:: FL = -w_y (1 - p_y)^\gamma \log p_y

    With ``gamma=0`` it equals :class:`CrossEntropyLoss`. See :func:`cawa_fast.functional.focal_loss`.

    Source: Lin et al. 2017, Eq. 5, with :math:`w` in place of :math:`\alpha`.

    Args:
        gamma: focusing exponent, finite and at least 0.
        weight: as for :class:`CrossEntropyLoss`.
        ignore_index: label of the pixels that are left out.
        reduction: as for :func:`cawa_fast.functional.focal_loss`.
        align_corners: sample positions of the resize, as in ``F.interpolate``.
        offset: as for :class:`CrossEntropyLoss`.

    Shape:
        As for :class:`CrossEntropyLoss`, dtypes included. If all pixels are ignored, ``"mean"`` is NaN, the others are
        0. If the weights of all valid labels are 0, ``"mean"`` and its gradient are 0.

    Raises:
        ValueError, TypeError: naming the argument that does not fit. The call raises as
            :func:`cawa_fast.functional.cross_entropy` does.

    Example:
        >>> import torch, cawa_fast as cf
        >>> loss = cf.FocalLoss(gamma=2.0)(torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8))
        >>> print(f"{loss:.4f}")  # (1/2)^2 log 2
        0.1733
    """

    weight: Tensor | None
    offset: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        weight: Tensor | AdaptiveClassWeights | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        align_corners: bool = False,
        offset: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= _validate.as_number("FocalLoss", "gamma", gamma) < math.inf:
            raise ValueError(f"FocalLoss: gamma must be finite and at least 0, got {gamma}")
        _validate.check_choice("FocalLoss", "reduction", reduction, reference.REDUCTIONS)
        self.adaptive: AdaptiveClassWeights | None
        register_weight(self, weight)
        register_offset(self, offset)
        self.gamma = gamma
        self.ignore_index = _validate.as_ignore_index("FocalLoss", ignore_index)
        self.reduction = reduction
        self.align_corners = _validate.as_bool("FocalLoss", "align_corners", align_corners)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        weight, offset = class_terms(self)
        loss = CF.focal_loss(
            input,
            target,
            weight,
            gamma=self.gamma,
            offset=offset,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            align_corners=self.align_corners,
        )
        _warn_of_one_class(self, input)
        return loss

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"


class LogitAdjustedLoss(CrossEntropyLoss):
    r"""Logit-adjusted softmax cross-entropy, a baseline for class weights.

    .. math:: l = -\log \mathrm{softmax}_y(z + \tau \ln \pi), \quad \pi_i = n_i / \sum_j n_j

    During training the prior raises the logits of frequent classes, so that rare classes must win by a margin. For
    prediction use the logits without the adjustment.

    Source: Menon et al. 2021, section 5. The paper counts training images per class; here :math:`n_i` counts pixels.

    Args:
        class_counts: ``(C,)`` pixels per class in the training set, finite, not negative, not all zero. A class without
            pixels gets the prior of the rarest class that has some.
        tau: finite. 1 is the paper's value, for which the loss is consistent with the balanced error. 0 gives plain
            cross-entropy.
        weight: as for :class:`CrossEntropyLoss`.
        ignore_index: label of the pixels that are left out.
        reduction: as for :class:`CrossEntropyLoss`.
        label_smoothing: in ``[0, 1]``.
        align_corners: sample positions of the resize, as in ``F.interpolate``.

    Shape:
        As for :class:`CrossEntropyLoss`, dtypes included.

    Attributes:
        offset: ``(C,)`` float32 buffer: :math:`\tau \ln \pi`. ``adjustment`` is another name of it.

    Raises:
        ValueError: an argument is out of range, or the logits have another number of classes than ``class_counts``.

    Example:
        >>> import torch, cawa_fast as cf
        >>> loss_fn = cf.LogitAdjustedLoss([75, 25])
        >>> logits = torch.zeros(1, 2, 4, 4)
        >>> loss = loss_fn(logits, torch.ones(1, 8, 8, dtype=torch.uint8))
        >>> print(f"{loss:.4f}")  # -log 0.25
        1.3863
    """

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
        if not math.isfinite(_validate.as_number("LogitAdjustedLoss", "tau", tau)):
            raise ValueError(f"LogitAdjustedLoss: tau must be finite, got {tau}")
        offset = tau * weighting.log_prior(class_counts)
        super().__init__(weight, ignore_index, reduction, label_smoothing, align_corners, offset)
        self.tau = tau

    @property
    def adjustment(self) -> Tensor:
        assert self.offset is not None
        return self.offset

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        _validate.check_float("LogitAdjustedLoss", "input", input)
        axis = min(input.dim() - 1, 1)
        if axis < 0 or input.shape[axis] != len(self.adjustment):
            raise ValueError(
                f"LogitAdjustedLoss: input {tuple(input.shape)} must have the {len(self.adjustment)} classes of "
                "class_counts; pass one count per channel"
            )
        return super().forward(input, target)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        if prefix + "adjustment" in state_dict:  # its name until the loss had an offset
            state_dict[prefix + "offset"] = state_dict.pop(prefix + "adjustment")
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return f"tau={self.tau}, {super().extra_repr()}"


class RecallLoss(nn.Module):
    r"""Recall loss as published: the cross-entropy of each batch, weighted by the recall in the same batch.

    .. math:: l = -w_y \log p_y, \quad w_i = 1 - R_i = FN_i / (TP_i + FN_i)

    TP and FN are counts of the argmax over the batch. No gradient flows through them. The module does not synchronise
    with the GPU. ``AdaptiveClassWeights(rule="recall")`` uses the recall of the last validation pass instead.

    The authors' code differs in three points. A class of the batch without a false negative keeps the weight
    ``1 / (TP + FN)``, where the formula gives 0. Ignored pixels enter the counts of another class. The mean includes
    ignored pixels, as ``reduction="pixel_mean"`` does.

    Source: Tian et al. 2022.

    Args:
        ignore_index: label of the pixels that are left out.
        reduction: as for :class:`CrossEntropyLoss`. ``"valid_mean"`` is the paper's mean over pixels; the loss falls as
            recall rises. With ``"mean"`` only the ratios between the weights matter.
        align_corners: sample positions of the resize, as in ``F.interpolate``.

    Shape:
        Input: logits ``(N, C, h, w)``, float32, float64, bfloat16 or float16. Target: labels ``(N, H, W)``, uint8,
            int16, int32 or int64. Output: as for :class:`CrossEntropyLoss`.

    Attributes:
        weight: ``(C,)`` in ``[0, 1]``, float32 (float64 for float64 logits): the weights of the last batch, 1 for a
            class without pixels in it. None before the first batch.

    Raises:
        ValueError, TypeError: naming the argument that does not fit. The call raises as
            :func:`cawa_fast.functional.cross_entropy` does.

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
        self.ignore_index = _validate.as_ignore_index("RecallLoss", ignore_index)
        self.reduction = reduction
        self.align_corners = _validate.as_bool("RecallLoss", "align_corners", align_corners)
        self.weight: Tensor | None = None

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        options: dict[str, Any] = {"ignore_index": self.ignore_index, "align_corners": self.align_corners}
        _validate.check_float("RecallLoss", "input", input)
        matrix = CF.confusion_matrix(input.detach(), target, **options)
        _warn_of_one_class(self, input)
        truth = matrix.sum(1)
        recall = matrix.diagonal() / truth
        # A new tensor for each batch: the backward pass of the last batch may still need the old one.
        self.weight = (1 - recall).where(truth > 0, 1.0).to(reference.compute_dtype(input.dtype))
        return CF.cross_entropy(input, target, self.weight, reduction=self.reduction, **options)

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, align_corners={self.align_corners}"


def class_terms(module: Any) -> tuple[Tensor | None, Tensor | None]:
    """The class weights and offsets of a loss module, live if they are adaptive."""
    adaptive, offset = module.adaptive, module.offset
    if adaptive is None:
        return module.weight, offset
    if adaptive.sets_offset:
        offset = adaptive.offset if offset is None else adaptive.offset + offset
    return adaptive.weight, offset


def register_weight(module: Any, weight: Tensor | AdaptiveClassWeights | None) -> None:
    if isinstance(weight, AdaptiveClassWeights):
        module.adaptive = weight
        module.register_buffer("weight", None)
        return
    if weight is not None:
        name = type(module).__name__
        if not isinstance(weight, Tensor) or weight.dim() != 1:
            raise ValueError(
                f"{name}: weight must be a tensor (C,) or an AdaptiveClassWeights, got {_validate.described(weight)}"
            )
        _validate.check_float(name, "weight", weight)
        _validate.check_weight_values(weight.detach().cpu())  # The operator does not check values on a GPU.
    module.adaptive = None
    module.register_buffer("weight", weight)


def register_offset(module: Any, offset: Tensor | None) -> None:
    if offset is not None:
        name = type(module).__name__
        if not isinstance(offset, Tensor) or offset.dim() != 1:
            raise ValueError(f"{name}: offset must be a tensor (C,), got {_validate.described(offset)}")
        _validate.check_float(name, "offset", offset)
        _validate.check_offset_values(offset.detach().cpu())  # The operator does not check values on a GPU.
    module.register_buffer("offset", offset)


def _warn_of_one_class(module: nn.Module, input: Tensor) -> None:
    if input.shape[min(input.dim() - 1, 1)] == 1 and not torch.compiler.is_compiling():
        warnings.warn(
            f"{type(module).__name__}: with one class the softmax is always 1 and the loss 0, so that nothing is "
            "trained; use cawa_fast.BinaryCrossEntropyLoss, or two classes, background and the object",
            stacklevel=2,
        )

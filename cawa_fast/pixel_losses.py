"""Pixel losses beside ``CrossEntropyLoss``: hard pixels only (OHEM), and the binary cross-entropy of sigmoids."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import _region, _validate, reference
from . import functional as CF
from .adaptive import AdaptiveClassWeights
from .nn import class_terms, register_offset, register_weight


class OhemCrossEntropyLoss(nn.Module):
    r"""Cross-entropy of the hard pixels only: online hard example mining.

    .. math:: L = \frac{1}{d} \sum_{p:\ p_y < t} -w_y \log p_y, \quad t = \max(\text{threshold},\ p_{(k)})

    A pixel is hard if the probability :math:`p_y` of its label is below :math:`t`. :math:`p_{(k)}` is the
    ``N * min_kept``-th smallest one of the batch (counted from 0), so that at least so many pixels are kept, ties
    apart. If fewer are valid, all are kept but those with the largest probability. The choice has no gradient.

    The choice is MMSegmentation's ``OHEMPixelSampler(thresh=threshold, min_kept=min_kept)``. With
    ``reduction="pixel_mean"`` the loss is that of its ``CrossEntropyLoss``, which divides by all pixels. It takes one
    loss per label pixel (4 bytes), and finds :math:`p_{(k)}` without sorting.

    Source: Shrivastava et al. 2016; the threshold and the least number: MMSegmentation.

    Args:
        threshold: :math:`t` is at least this probability, in ``[0, 1]``.
        min_kept: pixels to keep per image of the batch, at least 0.
        weight: as for :class:`cawa_fast.CrossEntropyLoss`.
        ignore_index: label of the pixels that are left out.
        reduction: how :math:`d` is chosen.

            * ``"mean"``: the sum of the weights of the kept pixels' labels.
            * ``"valid_mean"``: the number of valid pixels.
            * ``"pixel_mean"``: the number of all pixels.
            * ``"sum"``: 1.
        align_corners: sample positions of the resize, as in ``F.interpolate``.
        offset: as for :class:`cawa_fast.CrossEntropyLoss`.

    Shape:
        As for :class:`cawa_fast.CrossEntropyLoss`. Output: scalar ``()``; 0 if no pixel is kept.

    Raises:
        ValueError, TypeError: naming the argument that does not fit. The call raises as
            :func:`cawa_fast.functional.cross_entropy` does.

    Example:
        >>> import torch, cawa_fast as cf
        >>> loss_fn = cf.OhemCrossEntropyLoss(threshold=0.7, min_kept=0)
        >>> logits = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)  # probabilities 0.12 and 0.88
        >>> print(f"{loss_fn(logits, torch.tensor([[[0, 1, 1, 1]]])):.4f}")  # only the first pixel is hard
        2.1269
    """

    weight: Tensor | None
    offset: Tensor | None
    adaptive: AdaptiveClassWeights | None

    def __init__(
        self,
        threshold: float = 0.7,
        min_kept: int = 100_000,
        weight: Tensor | AdaptiveClassWeights | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        align_corners: bool = False,
        offset: Tensor | None = None,
    ) -> None:
        super().__init__()
        name = "OhemCrossEntropyLoss"
        self.threshold = float(_validate.as_fraction(name, "threshold", threshold))
        self.min_kept = _validate.as_int(name, "min_kept", min_kept, "pass the pixels to keep per image")
        _validate.check(self.min_kept >= 0, name, "min_kept", min_kept, "be at least 0")
        register_weight(self, weight)
        register_offset(self, offset)
        self.ignore_index = _validate.as_ignore_index(name, ignore_index)
        _validate.check_choice(name, "reduction", reduction, ("mean", "sum", "valid_mean", "pixel_mean"))
        self.reduction = reduction
        self.align_corners = _validate.as_bool(name, "align_corners", align_corners)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        weight, offset = class_terms(self)
        losses = CF.cross_entropy(
            input,
            target,
            offset=offset,
            ignore_index=self.ignore_index,
            reduction="none",
            align_corners=self.align_corners,
        )
        classes = input.shape[min(input.dim() - 1, 1)]
        _validate.check_per_class(
            "OhemCrossEntropyLoss", "weight", weight, input.view(1, -1) if input.dim() == 1 else input
        )
        labels, valid = reference.valid_labels(target, classes, self.ignore_index)
        kept = hard_pixels(losses.detach(), valid, self.threshold, self.min_kept * len(target) if target.dim() else 1)
        factor = kept.to(losses.dtype) if weight is None else weight.to(losses.dtype)[labels] * kept
        loss = (losses * factor).sum()
        if self.reduction == "mean":
            return loss / factor.sum().clamp_min(torch.finfo(loss.dtype).tiny)
        if self.reduction == "valid_mean":
            return loss / valid.sum().clamp_min(1)
        return loss / max(valid.numel(), 1) if self.reduction == "pixel_mean" else loss

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, min_kept={self.min_kept}, ignore_index={self.ignore_index}"


def hard_pixels(losses: Tensor, valid: Tensor, threshold: float, least: int) -> Tensor:
    """Whether each pixel is hard: valid, and its probability below ``threshold`` or the ``least``-th smallest one.

    Computed with the losses, ``-log p``. NaN is hard, so that it shows in the result. Does not synchronise.
    """
    if losses.numel() == 0:
        return valid
    bound = losses.new_full((), -math.log(threshold) if threshold > 0 else math.inf)
    return valid & ~(losses <= torch.minimum(bound, _kth_largest(losses, valid, least + 1)))


def _kth_largest(losses: Tensor, valid: Tensor, k: int) -> Tensor:
    """``()``: the k-th largest of the valid losses, which are not negative; the smallest if there are fewer.

    Values of that kind are ordered as their bits are. So two histograms find it, of the upper 16 bits and of the lower
    16 bits: at a million pixels in a tenth of the time of ``torch.kthvalue``, and a fiftieth of that of sorting.
    """
    if losses.dtype == torch.float64:
        ordered = torch.where(valid, losses, -1.0).flatten().sort(descending=True).values
        found = ordered[min(k, len(ordered)) - 1]
    else:
        bits = losses.flatten().view(torch.int32) & 0x7FFFFFFF
        upper = bits >> 16
        high, rank = _select(upper, valid.flatten(), k)
        low, _ = _select(bits & 0xFFFF, valid.flatten() & (upper == high), rank)
        found = torch.where(high < 0, -1, (high << 16) | low).to(torch.int32).view(torch.float32)
    smallest = torch.where(valid, losses, torch.inf).amin()
    return torch.where(found >= 0, found, smallest)


def _select(values: Tensor, keep: Tensor, rank: Tensor | int) -> tuple[Tensor, Tensor]:
    """The ``rank``-th largest kept value in ``[0, 2^16)`` and its rank among equals; -1 if there are fewer."""
    size = 1 << 16
    index = torch.where(keep, values, size)
    if values.device.type == "cpu":
        counts = torch.bincount(index, minlength=size + 1)[:size]
    else:  # bincount would synchronise
        counts = reference.histogram(index.to(torch.int64), keep, size)
    at_least = counts.flip(0).cumsum(0).flip(0)  # how many are as large
    found = (at_least >= rank).sum() - 1
    above = torch.where(found + 1 < size, at_least[(found + 1).clamp_max(size - 1)], 0)
    return found, rank - above


class BinaryCrossEntropyLoss(nn.Module):
    r"""Binary cross-entropy of sigmoids of bilinearly resized logits, for one class or independent ones.

    .. math:: l = -w\, y \log \sigma(z) - (1 - y) \log(1 - \sigma(z))

    Replaces ``nn.BCEWithLogitsLoss`` and the ``F.interpolate`` before it, for labels that are 0 or 1. It computes the
    cross-entropy of two classes with the logits 0 and z.

    Source: ``torch.nn.BCEWithLogitsLoss``.

    Args:
        pos_weight: :math:`w`, ``(C,)``, finite and not negative; None for 1.
        ignore_index: label of the pixels that are left out.
        mode: ``"binary"`` or ``"multilabel"``, see :func:`cawa_fast.functional.region_sums`.
        reduction: ``"mean"`` divides by the number of valid pixels (of all channels), ``"pixel_mean"`` by that of all
            pixels; ``"sum"`` and ``"none"`` do not divide.
        align_corners: sample positions of the resize, as in ``F.interpolate``.

    Shape:
        Input: ``(N, 1, h, w)`` for ``"binary"``, ``(N, C, h, w)`` for ``"multilabel"``. Target: ``(N, H, W)`` or
            ``(N, 1, H, W)``, and ``(N, C, H, W)``; uint8, int16, int32 or int64, of 0, 1 and ``ignore_index``. Output:
            scalar ``()``, or the shape of the target with ``reduction="none"``.

    Raises:
        ValueError, TypeError: naming the argument that does not fit, or a label is neither 0, 1 nor ``ignore_index``.

    Example:
        >>> import torch, cawa_fast as cf
        >>> loss = cf.BinaryCrossEntropyLoss()(torch.zeros(1, 1, 4, 4), torch.ones(1, 16, 16, dtype=torch.uint8))
        >>> print(f"{loss:.4f}")  # log 2
        0.6931
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        pos_weight: Tensor | None = None,
        ignore_index: int = -100,
        mode: str = "binary",
        reduction: str = "mean",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        name = "BinaryCrossEntropyLoss"
        if pos_weight is not None:
            _validate.check_tensor(name, "pos_weight", pos_weight, "None or a tensor (C,)")
            if pos_weight.dim() != 1:
                raise ValueError(f"{name}: pos_weight must be (C,), got {tuple(pos_weight.shape)}")
            _validate.check_float(name, "pos_weight", pos_weight)
            _validate.check_weight_values(pos_weight.detach().cpu())
        self.register_buffer("pos_weight", pos_weight)
        self.ignore_index = _validate.as_ignore_index(name, ignore_index)
        _validate.check_choice(name, "mode", mode, _region.MODES[1:])
        self.mode = mode
        _validate.check_choice(name, "reduction", reduction, ("mean", "sum", "none", "pixel_mean"))
        self.reduction = reduction
        self.align_corners = _validate.as_bool(name, "align_corners", align_corners)

    @property
    def two_class_reduction(self) -> str:
        """The reduction of the cross-entropy of two classes, whose weights are not divided by."""
        return "valid_mean" if self.reduction == "mean" else self.reduction

    def weights(self, logits: Tensor, channel: int = 0) -> Tensor | None:
        """``(2,)``: the weights of the two classes of a channel."""
        if self.pos_weight is None:
            return None
        positive = self.pos_weight[channel].to(logits.device, reference.compute_dtype(logits.dtype))
        return torch.stack((torch.ones_like(positive), positive))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        name = "BinaryCrossEntropyLoss"
        logits, labels, channels = _region.as_multiclass(name, input, target, self.mode, None)
        options: dict[str, Any] = {"ignore_index": self.ignore_index, "align_corners": self.align_corners}
        if self.pos_weight is not None and len(self.pos_weight) != channels:
            raise ValueError(f"{name}: pos_weight has {len(self.pos_weight)} values, but input has {channels} channels")
        if self.pos_weight is None or channels == 1:
            loss = CF.cross_entropy(logits, labels, self.weights(logits), reduction=self.two_class_reduction, **options)
            return loss.view(target.shape) if self.reduction == "none" else loss
        by_channel = logits.unflatten(0, (-1, channels)), labels.unflatten(0, (-1, channels))
        losses = torch.stack(
            [
                CF.cross_entropy(
                    by_channel[0][:, c],
                    by_channel[1][:, c],
                    self.weights(logits, c),
                    reduction="none" if self.reduction == "none" else "sum",
                    **options,
                )
                for c in range(channels)
            ],
            1 if self.reduction == "none" else 0,
        )
        if self.reduction in ("none", "sum"):
            return losses if self.reduction == "none" else losses.sum()
        pixels = (labels != self.ignore_index).sum().clamp_min(1) if self.reduction == "mean" else labels.numel()
        return losses.sum() / pixels

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"

"""The loss of MMSegmentation's decode heads, from logits before they are resized."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn

from .. import _validate
from .. import functional as CF
from ..cawa import CAWA
from ..nn import CrossEntropyLoss

_REDUCTIONS = ("mean", "valid_mean", "pixel_mean", "sum")


@MODELS.register_module()
class CawaCrossEntropy(nn.Module):
    r"""The cross-entropy of a decode head, weighted by the live weights of the ``CawaHook``.

    In a head that computes its loss as ``BaseDecodeHead`` does, it takes the logits before they are resized. Elsewhere,
    and together with a pixel sampler, it takes the resized ones; the value is the same. Auxiliary heads may have one
    too; all use the same weights.

    Args:
        reduction: ``"mean"`` divides by the weights of the valid pixels. ``"valid_mean"`` divides by their number: with
            weights of 1 it is the head's ``CrossEntropyLoss(avg_non_ignore=True)``. ``"pixel_mean"`` divides by the
            number of all pixels, ignored ones too: it is ``CrossEntropyLoss()``. ``"sum"`` does not divide.
        label_smoothing: in ``[0, 1]``.
        loss_weight: factor of the loss, finite.
        loss_name: name in the log; must begin with ``loss_`` to be trained.
        use_sigmoid, use_mask, class_weight, avg_non_ignore: as a config inherits them from the ``CrossEntropyLoss`` of
            its base. Values that ask for another loss are refused: true, class weights, and false for the last one
            except with ``reduction="pixel_mean"``.

    Shape:
        cls_score: logits ``(N, C, h, w)``, float. label: ``(N, H, W)``, integer. weight: of pixels, ``(N, H, W)``, or
        None. Output: scalar ``()``; 0 without valid pixels. With ``reduction_override="none"``: ``(N, H, W)``.

    Raises:
        ValueError, TypeError: naming the argument that does not fit.
        RuntimeError: in training, if the config has no :class:`~cawa_fast.integrations.mmseg.CawaHook`.

    Example:
        >>> loss = MODELS.build(dict(type="mmseg.CawaCrossEntropy", reduction="pixel_mean", loss_weight=0.4))
        >>> loss.loss_name
        'loss_ce'
    """

    def __init__(
        self,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        loss_weight: float = 1.0,
        loss_name: str = "loss_ce",
        use_sigmoid: bool = False,
        use_mask: bool = False,
        class_weight: Any = None,
        avg_non_ignore: bool | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if use_sigmoid or use_mask:
            which = "use_sigmoid" if use_sigmoid else "use_mask"
            raise ValueError(f"{name}: {which}=True is another loss, without a softmax over the classes; leave it out")
        if class_weight is not None:
            got = _validate.described(class_weight)
            raise ValueError(f"{name}: class_weight must be None, since the hook sets the class weights, got {got}")
        if avg_non_ignore is not None and avg_non_ignore != (reduction != "pixel_mean"):
            wanted = "reduction='valid_mean' or 'mean'" if avg_non_ignore else "reduction='pixel_mean'"
            raise ValueError(f"{name}: avg_non_ignore={avg_non_ignore} needs {wanted}, got reduction={reduction!r}")
        _validate.check_choice(name, "reduction", reduction, _REDUCTIONS)
        self.reduction = reduction
        self.label_smoothing = _validate.as_fraction(name, "label_smoothing", label_smoothing)
        self.loss_weight = _validate.as_number(name, "loss_weight", loss_weight)
        if not isinstance(loss_name, str) or not loss_name:
            raise TypeError(f"{name}: loss_name must be a name, got {_validate.described(loss_name)}")
        self.loss_name: str = loss_name
        self._connected: tuple[CAWA, ...] = ()  # in a tuple: a submodule would be in the model's state_dict

    def connect(self, cawa: CAWA) -> None:
        """Use the live weights of ``cawa`` from now on."""
        self._connected = (cawa,)

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
        ignore_index: int | None = -100,
        align_corners: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        name = type(self).__name__
        reduction = reduction_override or self.reduction
        _validate.check_choice(name, "reduction_override", reduction, (*_REDUCTIONS, "none"))
        if not self._connected:
            raise RuntimeError(
                f"{name}: nothing sets the class weights; add custom_hooks = [dict(type='CawaHook')] to the config, or "
                "call loss.connect(CAWA(None, num_classes))"
            )
        (cawa,) = self._connected
        ignored = cawa.weights.ignore_index
        if ignore_index is not None and ignore_index != ignored:
            raise ValueError(
                f"{name}: ignore_index={ignore_index} of the head is not that of the class weights, {ignored}; give "
                "all heads of the model the same"
            )
        if reduction == "none" or weight is not None or avg_factor is not None:
            criterion = self._criterion(cawa, "none", align_corners)
            loss: Tensor = criterion(cls_score, label)
            loss = loss if weight is None else loss * weight
            if reduction != "none":
                loss = loss.sum() / self._divisor(cawa, label, reduction, avg_factor)
        else:
            counts = cawa.count_labels(label)
            loss = self._criterion(cawa, reduction, align_corners).share(cls_score, label, counts)
        return self.loss_weight * loss

    def _criterion(self, cawa: CAWA, reduction: str, align_corners: bool) -> CrossEntropyLoss:
        return CrossEntropyLoss(
            cawa.weights,
            ignore_index=cawa.weights.ignore_index,
            reduction=reduction,
            label_smoothing=self.label_smoothing,
            align_corners=align_corners,
        )

    def _divisor(self, cawa: CAWA, label: Tensor, reduction: str, avg_factor: float | None) -> Tensor | float:
        """Of the loss of pixels that have weights of their own, which do not count here: as in MMSegmentation."""
        if avg_factor is not None:
            return avg_factor
        if reduction == "sum":
            return 1.0
        if reduction == "pixel_mean":
            return float(max(label.numel(), 1))
        valid = cawa.count_labels(label)[:-1]
        total = (valid * cawa.weight).sum() if reduction == "mean" else valid.sum()
        return total.where(total > 0, 1.0)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, loss_weight={self.loss_weight}"


def connect(model: nn.Module, cawa: CAWA) -> None:
    """Let every :class:`CawaCrossEntropy` of a segmentor use the live weights of ``cawa``, as the hook does."""
    for module in list(model.modules()):
        if isinstance(module, CawaCrossEntropy):
            module.connect(cawa)
        elif hasattr(module, "loss_decode"):
            _take_small_logits(module)


def _take_small_logits(head: Any) -> None:
    """Let a head that computes its loss as ``BaseDecodeHead`` does pass its logits on before they are resized."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    if getattr(type(head), "loss_by_feat", None) is BaseDecodeHead.loss_by_feat and head.sampler is None:
        head.loss_by_feat = functools.partial(_loss_by_feat, head)


def _loss_by_feat(head: Any, seg_logits: Tensor, batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
    """``BaseDecodeHead.loss_by_feat`` without full-resolution logits, except for losses that need them."""
    label = torch.stack([sample.gt_sem_seg.data for sample in batch_data_samples]).squeeze(1)
    resized: Tensor | None = None
    found: dict[str, Tensor] = {}
    for loss in head.loss_decode if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]:
        options: dict[str, Any] = {"weight": None, "ignore_index": head.ignore_index}
        if isinstance(loss, CawaCrossEntropy):
            value = loss(seg_logits, label, align_corners=head.align_corners, **options)
        else:
            if resized is None:
                resized = F.interpolate(seg_logits, label.shape[1:], mode="bilinear", align_corners=head.align_corners)
            value = loss(resized, label, **options)
        name = str(loss.loss_name)
        found[name] = found[name] + value if name in found else value
    ignore_index = -100 if head.ignore_index is None else head.ignore_index
    matrix = CF.confusion_matrix(
        seg_logits.detach(), label, ignore_index=ignore_index, align_corners=head.align_corners
    )
    found["acc_seg"] = 100 * (matrix.trace() / matrix.sum().clamp_min(1)).reshape(1)
    return found

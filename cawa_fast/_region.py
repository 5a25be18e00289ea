"""The sums that region losses such as Dice are functions of, and what these losses have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _ops, _validate

CLASSES = ("present", "all", "present_of_all")
MODES = ("multiclass", "binary", "multilabel")


class RegionSums(NamedTuple):
    """Sums of each class, as :func:`region_sums` returns them.

    Attributes:
        intersection: ``(C,)`` or ``(N, C)``, float32 or float64, at least 0: :math:`I_c`.
        prediction: the same shape and dtype: :math:`P_c`.
        truth: the same shape and dtype, without a gradient: :math:`T_c`.
    """

    intersection: Tensor
    prediction: Tensor
    truth: Tensor


def region_sums(
    input: Tensor,
    target: Tensor,
    *,
    offset: Tensor | None = None,
    mode: str = "multiclass",
    squared: bool = False,
    per_image: bool = False,
    ignore_index: int = -100,
    align_corners: bool = False,
) -> RegionSums:
    r"""Soft sums of each class over the valid pixels: what region losses are made of.

    .. math:: I_c = \sum_p p_c [y = c], \quad P_c = \sum_p p_c, \quad T_c = \#\{p : y = c\}, \quad
              p = \mathrm{softmax}(z + b)

    Differentiable by ``input``. The backward pass is one more pass over the logits, at their own resolution.

    Source: Milletari et al. 2016 (V-Net), section 3; Sudre et al. 2017.

    Args:
        input: logits ``(N, C, h, w)`` of any size, or ``(N, C, d1, ..., dk)`` of the size of the labels; float32,
            float64, bfloat16 or float16, any strides.
        target: class indices ``(N, H, W)`` or ``(N, d1, ..., dk)``, uint8, int16, int32 or int64, each in ``[0, C)`` or
            equal to ``ignore_index``. For other modes see ``mode``.
        offset: ``(C,)``, added to the logits; only with ``mode="multiclass"``.
        mode: what the probabilities are.

            * ``"multiclass"``: the softmax over the classes.
            * ``"binary"``: the sigmoid of logits ``(N, 1, h, w)``; ``target`` ``(N, H, W)`` or ``(N, 1, H, W)`` of 0, 1
              and ``ignore_index``.
            * ``"multilabel"``: the sigmoid of each channel of ``(N, C, h, w)``; ``target`` ``(N, C, H, W)`` of 0, 1 and
              ``ignore_index``.
        squared: sum :math:`p_c^2` instead of :math:`p_c` in :math:`P_c`, as V-Net does. Without patches of shared
            exponentials this takes about twice as long on a CPU.
        per_image: return sums ``(N, C)`` of each image; otherwise ``(C,)`` of the batch.
        ignore_index: label of the pixels that are left out.
        align_corners: sample positions of the resize, as in ``F.interpolate``.

    Returns:
        ``RegionSums(intersection, prediction, truth)``; float64 for float64 logits, else float32.

    Raises:
        ValueError, TypeError: as for :func:`cawa_fast.functional.cross_entropy`, or ``mode`` does not fit.

    Example:
        >>> import torch, cawa_fast.functional as CF
        >>> logits, labels = torch.zeros(1, 2, 4, 4, requires_grad=True), torch.zeros(1, 8, 8, dtype=torch.uint8)
        >>> intersection, prediction, truth = CF.region_sums(logits, labels)
        >>> prediction  # probability 1/2 at 64 pixels
        tensor([32., 32.], grad_fn=<SumBackward1>)
        >>> loss = -(intersection / (prediction + truth).clamp_min(1)).mean()  # a loss of your own
        >>> loss.backward()
    """
    name = "region_sums"
    input, target, channels = as_multiclass(name, input, target, mode, offset)
    _, sums, truth = checked_sums(
        name, input, target, None, offset, ignore_index, "sum", 0.0, 0.0, squared, align_corners
    )
    return collected(sums, truth, channels, per_image)


def as_multiclass(
    name: str, input: Tensor, target: Tensor, mode: str, offset: Tensor | None
) -> tuple[Tensor, Tensor, int]:
    """Logits and labels of a softmax, and 0; or for sigmoids the number of their channels.

    A sigmoid of z is the softmax of (0, z), so that the kernels need no other code: each channel becomes an image of
    two classes. The copy has the resolution of the logits.
    """
    _validate.check_choice(name, "mode", mode, MODES)
    _validate.check_loss_types(name, input, target)
    if mode == "multiclass":
        if input.dim() > 1 and input.shape[1] == 1:
            raise ValueError(
                f'{name}: input {tuple(input.shape)} has one class, whose softmax is always 1; use mode="binary" for '
                "logits of a sigmoid"
            )
        return input, target, 0
    if offset is not None:
        raise ValueError(f'{name}: offset needs mode="multiclass", got mode={mode!r}; add a constant to the logits')
    if input.dim() < 3:
        raise ValueError(f"{name}: input must be (N, C, h, w), got {tuple(input.shape)}")
    channels = input.shape[1]
    if mode == "binary" and channels != 1:
        raise ValueError(
            f'{name}: with mode="binary", input must be (N, 1, h, w), got {tuple(input.shape)}; use mode="multilabel" '
            'for independent channels and "multiclass" for exclusive classes'
        )
    if mode == "binary" and target.dim() == input.dim() - 1:
        target = target.unsqueeze(1)
    if target.dim() != input.dim() or target.shape[:2] != input.shape[:2]:
        wanted = "(N, H, W) or (N, 1, H, W)" if mode == "binary" else f"(N, {channels}, H, W)"
        raise ValueError(
            f"{name}: with mode={mode!r}, target must be {wanted} of 0 and 1 for input {tuple(input.shape)}, got "
            f"{tuple(target.shape)}"
        )
    planes = input.flatten(0, 1).unsqueeze(1)
    return torch.cat((torch.zeros_like(planes), planes), 1), target.flatten(0, 1), channels


def checked_sums(
    name: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    gamma: float,
    squared: bool,
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(loss, sums (N, 2, C), truth (N, C))`` of checked arguments."""
    if input.dim() == 1:
        raise ValueError(f"{name}: input must be (N, C, ...), got {tuple(input.shape)}; add the batch axis")
    _validate.check_loss_shapes(name, input, target)
    _validate.check_per_class(name, "weight", weight, input)
    _validate.check_per_class(name, "offset", offset, input)
    return _ops.region_sums(
        input,
        target,
        weight,
        offset,
        _validate.as_ignore_index(name, ignore_index),
        reduction,
        label_smoothing,
        gamma,
        _validate.as_bool(name, "squared", squared),
        _validate.as_bool(name, "align_corners", align_corners),
    )


def collected(sums: Tensor, truth: Tensor, channels: int, per_image: bool) -> RegionSums:
    """The sums by image or of the batch, from those of the kernels."""
    intersection, prediction = sums.unbind(1)
    truth = truth.to(sums.dtype)
    if channels:  # class 1 of each channel
        intersection, prediction, truth = (x[:, 1].view(-1, channels) for x in (intersection, prediction, truth))
    if not _validate.as_bool("region_sums", "per_image", per_image):
        intersection, prediction, truth = intersection.sum(0), prediction.sum(0), truth.sum(0)
    return RegionSums(intersection, prediction, truth)


def reduced(loss: Tensor, truth: Tensor, classes: str, include: Sequence[int] | None, weight: Tensor | None) -> Tensor:
    """The mean of ``loss`` ``(C,)`` or ``(N, C)`` over the classes that count, and over images if there are some."""
    if include is not None and max(include) >= loss.shape[-1]:
        raise ValueError(f"include has class {max(include)}, but there are {loss.shape[-1]} classes")
    factor = torch.ones_like(loss) if weight is None else weight.to(loss.dtype).expand_as(loss)
    if include is not None:
        chosen = torch.tensor(include, device=loss.device)
        loss, truth, factor = (x.index_select(-1, chosen) for x in (loss, truth, factor))
    present = (truth > 0).to(loss.dtype)
    counted = factor if classes == "all" else factor * present
    total = (factor if classes == "present_of_all" else counted).sum()
    return (counted * loss).sum() / total.clamp_min(torch.finfo(loss.dtype).tiny)


def as_positive(name: str, argument: str, value: float) -> float:
    number = float(_validate.as_number(name, argument, value))
    if not 0 <= number < math.inf:
        raise ValueError(f"{name}: {argument} must be finite and at least 0, got {value}")
    return number


def as_smooth(name: str, smooth: float | Sequence[float]) -> tuple[float, float]:
    """The constants of the numerator and the denominator."""
    parts = tuple(smooth) if isinstance(smooth, list | tuple) else (smooth, smooth)
    if len(parts) != 2:
        raise ValueError(f"{name}: smooth must be one number, or two for numerator and denominator, got {smooth!r}")
    numerator, denominator = (as_positive(name, "smooth", part) for part in parts)
    return numerator, denominator


def as_include(name: str, include: Sequence[int] | None) -> list[int] | None:
    if include is None:
        return None
    result = [_validate.as_int(name, "include", c, "pass class indices") for c in include]
    if not result or len(set(result)) != len(result) or min(result) < 0:
        raise ValueError(f"{name}: include must be different class indices from 0 on, got {result}")
    return result

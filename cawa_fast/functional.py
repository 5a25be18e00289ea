r"""The operators: ``cross_entropy``, ``confusion_matrix`` and ``cam_counts``, each with the bilinear resize inside.

Give them logits (or class activation maps) at the resolution where the network computes them and labels at theirs; the
resize to the labels' resolution happens inside the operator, and full-resolution logits are never stored. That holds on
CPUs and CUDA GPUs, for float32, bfloat16 and float16; other devices and float64 are served by plain PyTorch, which does
store them.

Shapes throughout: ``N`` images, ``C`` classes, ``(h, w)`` resolution of logits or maps, ``(H, W)`` of the labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import (
    _ops,  # registers torch.ops.cawa_fast
    _validate,
)
from .reference import CLASSES, NORMALIZATIONS, REDUCTIONS

__all__ = ["ClassCounts", "cam_counts", "confusion_matrix", "cross_entropy"]


class ClassCounts(NamedTuple):
    """Pixels per class, each ``(C,)`` int64: true positives, false positives, false negatives."""

    tp: Tensor
    fp: Tensor
    fn: Tensor


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> Tensor:
    r"""Weighted cross-entropy of logits against class indices, the logits resized bilinearly to the labels.

    For a pixel of label :math:`y`, logits :math:`z` and :math:`s` = ``label_smoothing``

    .. math:: l = -(1 - s)\, w_y \log p_y - \frac{s}{C} \sum_c w_c \log p_c, \qquad p = \mathrm{softmax}(z)

    A drop-in for ``F.cross_entropy`` with class-index targets, and for ``F.interpolate`` followed by it. There is no
    second derivative, and no batching (``torch.func``, ``is_grads_batched``). On a CPU the gradient is formed with the
    loss, and the memory of the last one of 4 MiB or more is kept for the next; on a GPU too where sizes are equal, and
    elsewhere 4 to 17 bytes per pixel of the labels (4.3 at ratio 4) are kept from the loss to the gradient.

    Args:
        input: logits ``(N, C, h, w)``, any size relative to the labels; or, of the labels' size, ``(C,)``, ``(N, C)``,
            ``(N, C, d1, ..., dk)``. float32, float64, bfloat16 or float16, any strides. Half precision is computed in
            float32.
        target: class indices ``(N, H, W)`` (or ``()``, ``(N,)``, ``(N, d1, ..., dk)``), uint8, int16, int32 or int64,
            in ``[0, C)`` or ``ignore_index``. uint8 takes an eighth of the bytes of int64.
        weight: ``(C,)``, finite, not negative: a factor per class. Not differentiated.
        ignore_index: label of pixels that count for nothing. May lie outside or inside ``[0, C)``.
        reduction: what becomes of the pixels' losses.

            * ``"mean"``: their sum, divided by the sum of the weights of the valid pixels' labels. A common factor of
              the weights cancels, here and only here.
            * ``"sum"``: their sum. ``"none"``: each, ``(N, H, W)``, 0 where ignored.
            * ``"valid_mean"``: the sum divided by the number of valid pixels.
            * ``"pixel_mean"``: divided by the number of all pixels, ignored ones too (MMSegmentation, smp).
            * ``"class_mean"``: :math:`\sum_i w_i L_i`, :math:`L_i` the mean loss of class i's pixels in the batch
              (CAWASeg, Eq. 10); classes without pixels add nothing.
        label_smoothing: ``s`` in ``[0, 1]``.
        align_corners: how samples are placed when sizes differ, as in ``F.interpolate``.

    Returns:
        The loss, ``()`` or with ``reduction="none"`` the target's shape; float64 for float64 logits, else float32.
        If every pixel is ignored, ``"mean"`` is NaN as in PyTorch, the others 0; the gradient is zero.

    Raises:
        ValueError: a shape, range, device or option that does not fit, or labels outside ``[0, C)`` (when: see
            :func:`cawa_fast.set_label_check`).
        TypeError: an unsupported dtype; class probabilities as target (``F.cross_entropy`` takes those).

    Example:
        >>> import torch, cawa_fast.functional as CF
        >>> logits = torch.zeros(1, 4, 8, 8, requires_grad=True)  # stride 4
        >>> labels = torch.zeros(1, 32, 32, dtype=torch.uint8)
        >>> loss = CF.cross_entropy(logits, labels)
        >>> loss.backward()
        >>> print(f"{loss:.4f}")  # log 4
        1.3863
    """
    name = "cross_entropy"
    _validate.check_float(name, "input", input)
    if target.is_floating_point():
        probabilities = target.dim() == input.dim()
        hint = "; for class probabilities use F.cross_entropy (torch.nn.functional)" if probabilities else ""
        raise TypeError(
            f"{name}: target must hold class indices ({_validate.names(_validate.LABELS)}), got "
            f"{_validate.short(target.dtype)} of shape {tuple(target.shape)}{hint}"
        )
    _validate.check_labels(name, "target", target, input)
    if input.dim() == 0:
        raise ValueError(f"{name}: input must be (N, C, ...) or (C,), got a scalar")
    if input.dim() == 1 and target.dim() == 0:
        loss = cross_entropy(
            input.unsqueeze(0),
            target.unsqueeze(0),
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            align_corners=align_corners,
        )
        return loss.squeeze(0) if reduction == "none" else loss
    _validate.check_loss_shapes(name, input, target)
    _validate.check_weight(name, weight, input)
    _validate.check_choice(name, "reduction", reduction, REDUCTIONS)
    _validate.check_range(name, "label_smoothing", label_smoothing)
    with_grad = torch.is_grad_enabled() and input.requires_grad
    if torch.compiler.is_compiling() and (input.dtype == torch.bfloat16 or input.is_cuda):
        # A compiled graph cannot see by what the gradient is multiplied later, which in bfloat16 rounds it twice and on
        # a GPU costs two passes over it; it is formed when that is known.
        with_grad = with_grad and _ops.saves(input, target, reduction, with_grad) is not _ops.Saved.GRADIENT
    arguments = (input, target, weight, ignore_index, reduction, label_smoothing, align_corners, with_grad)
    if _ops.is_eager(input, target, weight):
        return _ops.EagerCrossEntropy.apply(*arguments) if with_grad else _ops.compute_cross_entropy(*arguments)[0]
    loss, _, _ = torch.ops.cawa_fast.cross_entropy(*arguments)
    return loss


def confusion_matrix(
    input: Tensor,
    target: Tensor,
    *,
    num_classes: int | None = None,
    ignore_index: int = -100,
    align_corners: bool = False,
) -> Tensor:
    r"""Confusion matrix of the argmax of the resized logits, or of integer predictions, against the labels.

    .. math:: M_{ij} = \#\{p : y(p) = i,\ \mathrm{argmax}_c z_c(p) = j\}

    over pixels whose label is valid. Sums over batches are exact; IoU, accuracy and mIoU all follow from it.

    Args:
        input: logits ``(N, C, h, w)``, float32, float64, bfloat16 or float16, any size and strides; or predictions
            ``(N, H, W)``, uint8, int16, int32 or int64, in ``[0, num_classes)``. Ties go to the lowest class; NaN
            counts as the largest logit.
        target: labels ``(N, H, W)``, uint8, int16, int32 or int64.
        num_classes: ``C``. Needed with integer predictions; with logits it must be their number of classes.
        ignore_index: label of pixels that are not counted.
        align_corners: how samples are placed when sizes differ, as in ``F.interpolate``.

    Returns:
        ``(C, C)`` int64, rows = target, columns = prediction. Not differentiable.

    Raises:
        ValueError: a shape, range or device that does not fit; labels or predictions outside ``[0, C)``.
        TypeError: an unsupported dtype.

    Example:
        >>> import torch, cawa_fast.functional as CF
        >>> CF.confusion_matrix(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]), num_classes=2)
        tensor([[1, 1],
                [0, 1]])
    """
    name = "confusion_matrix"
    _validate.check_labels(name, "target", target, input)
    if input.is_floating_point():
        _validate.check_float(name, "input", input)
        _validate.check_map_shapes(name, "input", input, target)
        classes = input.shape[1]
        if num_classes is not None and num_classes != classes:
            raise ValueError(f"{name}: num_classes={num_classes}, but input has {classes} channels; leave it out")
    else:
        _validate.check_labels(name, "input", input, target)
        if num_classes is None:
            raise ValueError(f"{name}: num_classes is needed when input holds integer predictions")
        if not 1 <= num_classes <= 65535:  # so that a matrix stays within 32 GiB and its index within 32 bits
            raise ValueError(f"{name}: num_classes must be at least 1 and at most 65535, got {num_classes}")
        if input.shape != target.shape:
            raise ValueError(
                f"{name}: integer predictions must have the target's shape {tuple(target.shape)}, got input "
                f"{tuple(input.shape)}; pass logits (N, C, h, w) to have them resized"
            )
        classes = num_classes
    return torch.ops.cawa_fast.confusion_matrix(input.detach(), target, classes, ignore_index, align_corners)


def cam_counts(
    cam: Tensor,
    target: Tensor,
    *,
    tau: float = 0.5,
    normalize: str = "max",
    classes: str = "present",
    ignore_index: int = -100,
    align_corners: bool = False,
) -> ClassCounts:
    r"""Per-class TP, FP and FN of thresholded class activation maps against the labels (CAWASeg, Eq. 1 and 3).

    .. math:: P_c(p) = [\,\widehat{CAM}_c(p) > \tau\,], \quad
        TP_c = \#\{p : P_c, y = c\},\ FP_c = \#\{p : P_c, y \ne c\},\ FN_c = \#\{p : \lnot P_c, y = c\}

    over the pixels whose label is valid, at the labels' resolution. ``tp + fn`` is the ground truth's histogram.

    Args:
        cam: maps ``(N, C, h, w)`` after the ReLU, as :class:`cawa_fast.GradCAM` returns them; float32, float64,
            bfloat16 or float16, any size and strides.
        target: labels ``(N, H, W)``, uint8, int16, int32 or int64.
        tau: threshold in ``[0, 1]``, exceeded strictly.
        normalize: the order of normalisation and resize, per image and class.

            * ``"max"``: resize, divide by the maximum at label resolution (AffinityNet).
            * ``"minmax"``: min-max at the map's resolution, then resize (torch-cam).
            * ``"gradcam"``: ReLU, min-max, resize, min-max (pytorch-grad-cam).
            * ``"none"``: resize only.

            A map whose normaliser is not positive and finite (all zero, constant under min-max, NaN) gives an empty
            mask.
        classes: ``"present"``: a class is scored in the images whose ground truth contains it. ``"all"``: everywhere.
        ignore_index: label of pixels that are not counted (they still take part in the maximum).
        align_corners: how samples are placed when sizes differ, as in ``F.interpolate``.

    Returns:
        ``ClassCounts(tp, fp, fn)``, each ``(C,)`` int64, exact. Not differentiable.

    Raises:
        ValueError: a shape, range, device or option that does not fit; labels outside ``[0, C)``.
        TypeError: an unsupported dtype.

    Example:
        >>> import torch, cawa_fast.functional as CF
        >>> cam = torch.tensor([[[[4.0, 3.0, 1.0]], [[0.0, 0.0, 2.0]]]])
        >>> CF.cam_counts(cam, torch.tensor([[[0, 1, 1]]]))
        ClassCounts(tp=tensor([1, 1]), fp=tensor([1, 0]), fn=tensor([0, 1]))
    """
    name = "cam_counts"
    _validate.check_float(name, "cam", cam)
    _validate.check_labels(name, "target", target, cam)
    _validate.check_map_shapes(name, "cam", cam, target)
    _validate.check_range(name, "tau", tau)
    _validate.check_choice(name, "normalize", normalize, NORMALIZATIONS)
    _validate.check_choice(name, "classes", classes, CLASSES)
    return ClassCounts(
        *torch.ops.cawa_fast.cam_counts(cam.detach(), target, tau, normalize, classes, ignore_index, align_corners)
    )

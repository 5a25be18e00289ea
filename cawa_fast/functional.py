"""Operators for segmentation losses and metrics: ``cross_entropy``, ``confusion_matrix`` and ``cam_counts``.

Each operator resizes its first argument bilinearly to the resolution of the labels, inside the kernel. Pass logits or
class activation maps at the resolution where the network computes them, and labels at their own resolution. On CPUs and
CUDA GPUs, in float32, bfloat16 and float16, no operator stores full-resolution logits. Plain PyTorch serves other
devices and float64, and does store them.

Shapes in this module: ``N`` images, ``C`` classes, ``(h, w)`` resolution of the logits or maps, ``(H, W)`` resolution
of the labels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import (
    _ops,  # registers torch.ops.cawa_fast
    _validate,
)
from ._region import RegionSums, region_sums
from .reference import CLASSES, NORMALIZATIONS, REDUCTIONS

__all__ = [
    "ClassCounts",
    "RegionSums",
    "cam_counts",
    "confusion_matrix",
    "cross_entropy",
    "focal_loss",
    "region_sums",
]


class ClassCounts(NamedTuple):
    r"""Pixel counts of each class, as :func:`cam_counts` returns them.

    .. math:: IoU_i = TP_i / (TP_i + FP_i + FN_i), \quad PA_i = TP_i / (TP_i + FN_i)

    Source: CAWASeg, Eq. 3 and 4.

    Attributes:
        tp: ``(C,)`` int64, at least 0: true positives.
        fp: ``(C,)`` int64, at least 0: false positives.
        fn: ``(C,)`` int64, at least 0: false negatives.

    Example:
        >>> counts = ClassCounts(torch.tensor([3]), torch.tensor([1]), torch.tensor([0]))
        >>> counts.tp / (counts.tp + counts.fp + counts.fn)  # IoU
        tensor([0.7500])
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    offset: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> Tensor:
    r"""Weighted cross-entropy of logits against class indices. Resizes the logits bilinearly to the labels.

    A pixel with label :math:`y` and logits :math:`z` has the loss

    .. math:: l = -(1 - s)\, w_y \log p_y - \frac{s}{C} \sum_c w_c \log p_c, \qquad p = \mathrm{softmax}(z + b)

    where :math:`w` is ``weight`` (all ones by default), :math:`b` is ``offset`` (all zeros by default) and :math:`s` is
    ``label_smoothing``. ``reduction`` says how the losses of the pixels are combined.

    Replaces ``F.cross_entropy`` with class-index targets, and ``F.interpolate(mode="bilinear")`` followed by it. Only
    ``input`` gets a gradient. There is no second derivative in the backward pass, and no batching rule for
    ``is_grads_batched=True``. Forward-mode derivatives and the transforms of ``torch.func`` (``jvp``, ``grad``,
    ``hessian``, ...) run in plain PyTorch, at the resolution of the labels; ``vmap`` cannot map ``target``.

    **Memory.** The forward pass also computes the gradient on a CPU, and on a GPU with the CUDA C++ kernels if the
    logits have the size of the labels. Exceptions are ``reduction="none"`` and float16 input. On a CPU the process
    keeps the memory of the last freed gradient of 4 MiB or more, and reuses it for the next one. With a resize on a
    GPU, the forward pass stores 4 to 17 bytes per label pixel for the backward pass (4.3 bytes at ratio 4); that of a
    focal loss stores up to twice as much.

    Source: ``torch.nn.functional.cross_entropy``; label smoothing: Szegedy et al. 2016, section 7; ``offset``: Menon et
    al. 2021, Eq. 10; ``reduction="class_mean"``: CAWASeg, Eq. 10.

    Args:
        input: logits ``(N, C, h, w)`` of any size; or ``(C,)``, ``(N, C)`` or ``(N, C, d1, ..., dk)`` of the size of
            the labels. float32, float64, bfloat16 or float16, any strides. float16 and bfloat16 are computed in
            float32.
        target: class indices ``(N, H, W)``; or ``()``, ``(N,)`` or ``(N, d1, ..., dk)``. uint8, int16, int32 or int64,
            each in ``[0, C)`` or equal to ``ignore_index``. uint8 takes an eighth of the bytes of int64.
        weight: ``(C,)``, float32, float64, bfloat16 or float16, finite and not negative: one factor per class. Must not
            require a gradient. The values are checked on a CPU only, because on a GPU the check would synchronise.
        offset: ``(C,)``, float32, float64, bfloat16 or float16, finite: added to the logits in the loss only, as in
            logit adjustment and balanced softmax. A class with a high offset is predicted less often, because its bare
            logit need not be as large. The kernels add it as they read the logits. Must not require a gradient. The
            values are checked on a CPU only.
        ignore_index: label of the pixels that are left out. May lie inside or outside ``[0, C)``.
        reduction: how the losses of the pixels are combined.

            * ``"mean"``: their sum, divided by the sum of the weights of the valid pixels' labels. A common factor of
              the weights cancels, which holds for this reduction only.
            * ``"sum"``: their sum.
            * ``"none"``: one loss per pixel, ``(N, H, W)``, 0 at ignored pixels.
            * ``"valid_mean"``: their sum, divided by the number of valid pixels.
            * ``"pixel_mean"``: their sum, divided by the number of all pixels, including ignored ones, as in
              MMSegmentation and segmentation_models_pytorch.
            * ``"class_mean"``: :math:`\sum_i w_i L_i`, where :math:`L_i` is the mean loss of the pixels of class i in
              the batch. Classes without pixels add nothing.
        label_smoothing: :math:`s`, in ``[0, 1]``.
        align_corners: sample positions of the resize, as in ``F.interpolate``.

    Returns:
        The loss: a scalar ``()``, or the shape of ``target`` with ``reduction="none"``. float64 for float64 logits,
        else float32. If all pixels are ignored, ``"mean"`` is NaN as in PyTorch and the other reductions give 0; the
        gradient is zero. If the weights of all valid labels are 0, or their sum is below the least normal float32
        (1.2e-38; float64 for float64 logits), ``"mean"`` and its gradient are 0, where PyTorch's are NaN.

    Raises:
        ValueError: a shape, device, range or option does not fit, or a label lies outside ``[0, C)``.
            :func:`cawa_fast.set_label_check` says when labels raise.
        TypeError: an argument has another type or dtype, or ``target`` holds class probabilities, for which use
            ``F.cross_entropy``.

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
    label_smoothing = _validate.as_fraction(name, "label_smoothing", label_smoothing)
    return _pixel_loss(
        name, input, target, weight, offset, ignore_index, reduction, label_smoothing, 0.0, align_corners
    )


def _pixel_loss(
    name: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    gamma: float,
    align_corners: bool,
) -> Tensor:
    """``cross_entropy`` if ``gamma`` is 0, and else ``focal_loss``."""
    _validate.check_loss_types(name, input, target)
    if input.dim() == 1 and target.dim() == 0:
        images = (input.unsqueeze(0), target.unsqueeze(0))
        loss = _pixel_loss(
            name, *images, weight, offset, ignore_index, reduction, label_smoothing, gamma, align_corners
        )
        return loss.squeeze(0) if reduction == "none" else loss
    _validate.check_loss_shapes(name, input, target)
    _validate.check_per_class(name, "weight", weight, input)
    _validate.check_per_class(name, "offset", offset, input)
    _validate.check_choice(name, "reduction", reduction, REDUCTIONS)
    ignore_index = _validate.as_ignore_index(name, ignore_index)
    align_corners = _validate.as_bool(name, "align_corners", align_corners)
    options = (ignore_index, reduction, label_smoothing, gamma, align_corners)
    if _ops.is_transformed(input):
        return _ops.differentiable_cross_entropy(input, target, weight, offset, *options)
    with_grad = torch.is_grad_enabled() and input.requires_grad
    if torch.compiler.is_compiling() and (input.dtype == torch.bfloat16 or input.is_cuda):
        # A compiled graph does not know yet which factor the gradient will be multiplied with. Multiplying it later
        # rounds it twice in bfloat16, and on a GPU costs two passes over it. So the backward pass computes it instead.
        with_grad = with_grad and _ops.saves(input, target, reduction, with_grad) is not _ops.Saved.GRADIENT
    arguments = (input, target, weight, offset, *options, with_grad)
    if _ops.is_eager(input, target, weight, offset):
        return _ops.EagerCrossEntropy.apply(*arguments) if with_grad else _ops.compute_cross_entropy(*arguments)[0]
    loss, _, _ = torch.ops.cawa_fast.cross_entropy(*arguments)
    return loss


def focal_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    gamma: float = 2.0,
    offset: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    align_corners: bool = False,
) -> Tensor:
    r"""Focal loss of logits against class indices. Resizes the logits bilinearly to the labels.

    .. math:: l = -w_y (1 - p_y)^\gamma \log p_y, \qquad p = \mathrm{softmax}(z + b)

    for a pixel with label :math:`y` and resized logits :math:`z`, where :math:`w` is ``weight`` and :math:`b` is
    ``offset``. With ``gamma=0`` it is :func:`cross_entropy`, to which it is alike in all else: derivatives, memory,
    special cases and errors.

    Source: Lin et al. 2017, Eq. 5, with :math:`w` in place of :math:`\alpha`.

    Args:
        input, target, weight, offset, ignore_index, align_corners: as for :func:`cross_entropy`.
        gamma: :math:`\gamma`, finite and at least 0. The larger, the less the well-classified pixels count.
        reduction: as for :func:`cross_entropy`. ``"mean"`` divides by the sum of the weights of the valid pixels'
            labels, without the factors :math:`(1 - p_y)^\gamma`; ``"valid_mean"`` by the number of valid pixels.

    Returns:
        The loss: a scalar ``()``, or the shape of ``target`` with ``reduction="none"``. float64 for float64 logits,
        else float32.

    Raises:
        ValueError, TypeError: as for :func:`cross_entropy`, or ``gamma`` is negative, infinite or NaN.

    Example:
        >>> import torch, cawa_fast.functional as CF
        >>> loss = CF.focal_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8))
        >>> print(f"{loss:.4f}")  # (1/2)^2 log 2
        0.1733
    """
    name = "focal_loss"
    gamma = _validate.as_number(name, "gamma", gamma)
    if not 0 <= gamma < math.inf:
        raise ValueError(f"{name}: gamma must be finite and at least 0, got {gamma}")
    return _pixel_loss(name, input, target, weight, offset, ignore_index, reduction, 0.0, float(gamma), align_corners)


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

    over the pixels p whose label y(p) is valid. The counts are exact integers: matrices of several batches can be
    added, and IoU, accuracy and mIoU follow from the sum (:func:`cawa_fast.segmentation_metrics`).

    Source: Long, Shelhamer and Darrell 2015 (FCN), section 5; :math:`M_{ij}` is their :math:`n_{ij}`.

    Args:
        input: logits ``(N, C, h, w)``, float32, float64, bfloat16 or float16, any size and strides; or predictions
            ``(N, H, W)``, uint8, int16, int32 or int64, in ``[0, num_classes)`` where the label is valid. If several
            classes have the largest logit, the lowest index wins. NaN counts as the largest logit. Volumes too:
            ``(N, C, D, H, W)`` or ``(N, D, H, W)``, of the size of the labels.
        target: labels ``(N, H, W)``, uint8, int16, int32 or int64, in ``[0, C)`` or equal to ``ignore_index``. Of
            volumes ``(N, D, H, W)``.
        num_classes: ``C``, in ``[1, 65535]``. Required with integer predictions. With logits it may be left out; if
            given, it must equal their number of channels.
        ignore_index: label of the pixels that are not counted.
        align_corners: sample positions of the resize, as in ``F.interpolate``.

    Returns:
        ``(C, C)`` int64, rows = target, columns = prediction. Not differentiable.

    Raises:
        ValueError: a shape, device or range does not fit, or a label or prediction lies outside ``[0, C)``.
        TypeError: an argument has another type or dtype.

    Example:
        >>> import torch, cawa_fast.functional as CF
        >>> CF.confusion_matrix(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]), num_classes=2)
        tensor([[1, 1],
                [0, 1]])
    """
    name = "confusion_matrix"
    _validate.check_tensor(name, "input", input, "a tensor of logits or predictions")
    _validate.check_label_dtype(name, "target", target, input)
    ignore_index = _validate.as_ignore_index(name, ignore_index)
    align_corners = _validate.as_bool(name, "align_corners", align_corners)
    if num_classes is not None:
        num_classes = _validate.as_int(name, "num_classes", num_classes, "pass the model's number of classes")
    if input.is_floating_point():
        _validate.check_float(name, "input", input)
        input, target = _as_maps(name, "input", input, target)
        classes = input.shape[1]
        if num_classes is not None and num_classes != classes:
            raise ValueError(
                f"{name}: num_classes={num_classes}, but input has {classes} channels; leave num_classes out"
            )
    else:
        _validate.check_label_dtype(name, "input", input, target)
        if num_classes is None:
            raise ValueError(
                f"{name}: num_classes is needed with integer predictions; pass the model's number of classes"
            )
        if not 1 <= num_classes <= 65535:  # the matrix stays below 32 GiB, its index below 2^32
            raise ValueError(f"{name}: num_classes must lie in [1, 65535], got {num_classes}")
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
    r"""Per-class TP, FP and FN of thresholded class activation maps against the labels.

    .. math:: P_c(p) = [\,\widehat{CAM}_c(p) > \tau\,], \quad
        TP_c = \#\{p : P_c, y = c\},\ FP_c = \#\{p : P_c, y \ne c\},\ FN_c = \#\{p : \lnot P_c, y = c\}

    over the pixels p whose label y is valid, at the resolution of the labels. ``tp + fn`` is the number of ground-truth
    pixels of each class.

    Source: CAWASeg, Eq. 1 and 3.

    Args:
        cam: maps ``(N, C, h, w)`` after the ReLU, as :class:`cawa_fast.GradCAM` returns them. float32, float64,
            bfloat16 or float16, any size and strides. Volumes ``(N, C, D, H, W)`` must have the size of the labels.
        target: labels ``(N, H, W)``, uint8, int16, int32 or int64, in ``[0, C)`` or equal to ``ignore_index``. Of
            volumes ``(N, D, H, W)``.
        tau: threshold in ``[0, 1]``. A pixel is in the mask if its value is strictly greater.
        normalize: how each map is normalised, and whether before or after the resize.

            * ``"max"``: resize, then divide by the maximum at label resolution (AffinityNet, Ahn and Kwak 2018).
            * ``"minmax"``: min-max at the resolution of the map, then resize (torch-cam).
            * ``"gradcam"``: ReLU, min-max, resize, min-max (pytorch-grad-cam).
            * ``"none"``: resize only.

            A map whose divisor is not positive and finite gives an empty mask. This covers maps that are all zero,
            contain NaN, or are constant under min-max.
        classes: ``"present"`` scores a class only in the images whose ground truth contains it. ``"all"`` scores every
            class in every image.
        ignore_index: label of the pixels that are not counted. They still take part in the maximum of the map.
        align_corners: sample positions of the resize, as in ``F.interpolate``.

    Returns:
        ``ClassCounts(tp, fp, fn)``, each ``(C,)`` int64, exact. Not differentiable.

    Raises:
        ValueError: a shape, device, range or option does not fit, or a label lies outside ``[0, C)``.
        TypeError: an argument has another type or dtype.

    Example:
        >>> import torch, cawa_fast.functional as CF
        >>> cam = torch.tensor([[[[4.0, 3.0, 1.0]], [[0.0, 0.0, 2.0]]]])
        >>> CF.cam_counts(cam, torch.tensor([[[0, 1, 1]]]))
        ClassCounts(tp=tensor([1, 1]), fp=tensor([1, 0]), fn=tensor([0, 1]))
    """
    name = "cam_counts"
    _validate.check_float(name, "cam", cam)
    _validate.check_label_dtype(name, "target", target, cam)
    cam, target = _as_maps(name, "cam", cam, target)
    tau = _validate.as_fraction(name, "tau", tau)
    _validate.check_choice(name, "normalize", normalize, NORMALIZATIONS)
    _validate.check_choice(name, "classes", classes, CLASSES)
    ignore_index = _validate.as_ignore_index(name, ignore_index)
    align_corners = _validate.as_bool(name, "align_corners", align_corners)
    return ClassCounts(
        *torch.ops.cawa_fast.cam_counts(cam.detach(), target, tau, normalize, classes, ignore_index, align_corners)
    )


def _as_maps(name: str, argument: str, value: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Checked maps ``(N, C, h, w)`` and labels ``(N, H, W)``.

    Volumes become maps ``(N, C, D, H * W)``: counts and maxima do not depend on where in an image a pixel is.
    """
    if value.dim() > 4:
        _validate.check_volume_shapes(name, argument, value, target)
        value, target = value.flatten(3), target.flatten(2)
    _validate.check_map_shapes(name, argument, value, target)
    return value, target

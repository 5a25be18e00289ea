"""The specification: every operator and every equation of the method in plain PyTorch.

The functions follow the paper's equations in their order, run in float64 if asked to, and write their gradients out.
Every kernel is tested against this module, and devices without a kernel use it. :mod:`cawa_fast.functional` validates
the arguments; this module only computes and raises nothing.

Shapes in this module: ``N`` images, ``C`` classes, ``(h, w)`` resolution of the logits or maps, ``(H, W)`` resolution
of the labels. Logits and maps are float32, float64, bfloat16 or float16; labels are uint8, int16, int32 or int64.

Two rules hold for all backends:

* **Arithmetic.** float16 and bfloat16 are converted to float32 on load; float64 stays float64. The bilinear
  interpolation rounds every product and every sum separately, without fused multiply-add, so that the counts of all
  backends and memory formats agree to the last pixel.
* **NaN.** A NaN logit counts as the largest; the first of several wins, as in ``torch.argmax``. A map whose divisor is
  not positive and finite gives an empty pseudo mask.

Source: CAWASeg, Eq. 1 to 10.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none", "valid_mean", "pixel_mean", "class_mean")
NORMALIZATIONS = ("max", "minmax", "gradcam", "none")
CLASSES = ("present", "all")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which logits or maps of ``dtype`` are computed: float64 for float64, else float32.

    Example:
        >>> compute_dtype(torch.bfloat16)
        torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


# ------------------------------------------------------------------------------------------------ bilinear resize


class Taps(NamedTuple):
    """The two input positions that each output position along one axis reads, and their interpolation weights.

    Attributes:
        low: ``(out_size,)`` int64 in ``[0, in_size)``: the first input position.
        high: ``(out_size,)`` int64: ``low + 1``, or ``in_size - 1`` if that is less.
        low_weight: ``(out_size,)`` float32 or float64 in ``[0, 1]``: ``1 - high_weight``.
        high_weight: ``(out_size,)`` float32 or float64 in ``[0, 1]``.
    """

    low: Tensor
    high: Tensor
    low_weight: Tensor
    high_weight: Tensor


def bilinear_taps(in_size: int, out_size: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> Taps:
    r"""Sample positions and weights of ``F.interpolate(mode="bilinear")`` along one axis.

    .. math:: x(o) = \max\bigl(0,\ (o + \tfrac12)\, in / out - \tfrac12\bigr), \quad
        x(o) = o\, (in - 1) / (out - 1) \text{ with align\_corners}

    Args:
        in_size: at least 1.
        out_size: at least 0.
        align_corners: as in ``F.interpolate``.
        dtype: float32 or float64. Positions are rounded to it, as ``F.interpolate`` rounds them.
        device: of the result.

    Example:
        >>> bilinear_taps(2, 4, False, torch.float32, torch.device("cpu")).high_weight
        tensor([0.0000, 0.2500, 0.7500, 0.2500])
    """
    # PyTorch rounds the step to ``dtype`` and computes the position with one fused multiply-add, as the kernels do. The
    # same single rounding happens here, because the product is exact in float64.
    step = (in_size - 1) / max(out_size - 1, 1) if align_corners else in_size / max(out_size, 1)
    step = torch.tensor(step, dtype=dtype, device="cpu").item()
    out = torch.arange(out_size, dtype=torch.float64, device=device)
    position = (out * step if align_corners else (out + 0.5) * step - 0.5).clamp_min_(0).to(dtype)
    low = position.to(torch.int64).clamp_max_(in_size - 1)
    high = (low + 1).clamp_max_(in_size - 1)
    high_weight = (position - low).clamp_(0, 1)
    return Taps(low, high, 1 - high_weight, high_weight)


def resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear resize of ``(N, C, h, w)`` to ``(N, C, H, W)``, in a fixed order of rounding for every memory format.

    Equals ``F.interpolate(x, size, mode="bilinear", align_corners=...)`` up to rounding. ``x`` is float32 or float64;
    so is the result.

    Example:
        >>> resize(torch.tensor([[[[0.0, 4.0]]]]), (1, 4), align_corners=False)
        tensor([[[[0., 1., 3., 4.]]]])
    """
    if x.shape[-2:] == size:
        return x
    columns = bilinear_taps(x.shape[-1], size[1], align_corners, x.dtype, x.device)
    rows = bilinear_taps(x.shape[-2], size[0], align_corners, x.dtype, x.device)
    # In place on new tensors: on a CPU, allocating fresh memory would take half of the time.
    low, high = x.index_select(-1, columns.low), x.index_select(-1, columns.high)
    x = low.mul_(columns.low_weight).add_(high.mul_(columns.high_weight))
    low, high = x.index_select(-2, rows.low), x.index_select(-2, rows.high)
    return low.mul_(rows.low_weight[:, None]).add_(high.mul_(rows.high_weight[:, None]))


def resize_adjoint(grad: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """The transpose of :func:`resize`: maps a gradient ``(N, C, H, W)`` to ``(N, C, h, w)``, float32 or float64.

    Example:
        >>> resize_adjoint(torch.ones(1, 1, 1, 4), (1, 2), align_corners=False)
        tensor([[[[2., 2.]]]])
    """
    if grad.shape[-2:] == size:
        return grad
    rows = bilinear_taps(size[0], grad.shape[-2], align_corners, grad.dtype, grad.device)
    columns = bilinear_taps(size[1], grad.shape[-1], align_corners, grad.dtype, grad.device)
    # Rows first: their additions run over contiguous memory, and leave h/H of the work for the second axis.
    out = grad.new_zeros(*grad.shape[:-2], size[0], grad.shape[-1])
    out.index_add_(-2, rows.low, grad * rows.low_weight[:, None])
    out.index_add_(-2, rows.high, grad * rows.high_weight[:, None])
    grad = out.transpose(-1, -2).contiguous()
    out = grad.new_zeros(*grad.shape[:-2], size[1], size[0])
    out.index_add_(-2, columns.low, grad * columns.low_weight[:, None])
    out.index_add_(-2, columns.high, grad * columns.high_weight[:, None])
    return out.transpose(-1, -2).contiguous()


# ------------------------------------------------------------------------------------------------------- labels


def valid_labels(target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """``(labels, valid)``: int64 labels with 0 where they are not valid, and a bool mask, both shaped like ``target``.

    A label is valid if it lies in ``[0, C)`` and is not ``ignore_index``.

    Example:
        >>> valid_labels(torch.tensor([2, 255, 7]), num_classes=3, ignore_index=255)
        (tensor([2, 0, 0]), tensor([ True, False, False]))
    """
    labels = target.to(torch.int64)  # before the comparison: -100 would wrap in uint8
    valid = (labels >= 0) & (labels < num_classes) & (labels != ignore_index)
    return labels.where(valid, 0), valid


def bad_labels(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """``(3,)`` int64 about the labels that are neither in ``[0, C)`` nor ``ignore_index``: count, minimum, maximum.

    Example:
        >>> bad_labels(torch.tensor([2, 255, 7, 9]), num_classes=3, ignore_index=255)
        tensor([2, 7, 9])
    """
    labels = target.to(torch.int64)
    bad = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)
    if bad.numel() == 0:
        return torch.stack([labels.new_full((), value) for value in (0, _INT64.max, _INT64.min)])  # no host copy
    return torch.stack((bad.sum(), labels.where(bad, _INT64.max).amin(), labels.where(bad, _INT64.min).amax()))


_INT64 = torch.iinfo(torch.int64)


def histogram(index: Tensor, keep: Tensor, size: int) -> Tensor:
    """``(size,)`` int64: how often each value of ``index`` occurs where ``keep`` is true. Does not synchronise.

    ``index`` is int64, in ``[0, size)`` where ``keep`` is true; ``keep`` is bool, of the same shape.

    Example:
        >>> histogram(torch.tensor([0, 1, 1]), torch.tensor([True, True, False]), 3)
        tensor([1, 1, 0])
    """
    bins = torch.zeros(size + 1, dtype=torch.int64, device=index.device)
    bins.scatter_add_(0, index.where(keep, size).flatten(), bins.new_ones(()).expand(index.numel()))
    return bins[:size].clone()


# ------------------------------------------------------------------------------------------------- cross-entropy


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    gamma: float,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    r"""Weighted cross-entropy or focal loss of the resized logits ``z``; returns ``(loss, scale)``.

    With ``s = label_smoothing`` and the offsets ``b``, a pixel of label ``y`` has the loss

    .. math:: l = -(1 - s) w_y (1 - p_y)^\gamma \log p_y - \frac{s}{C} \sum_c w_c \log p_c,
              \quad p = \mathrm{softmax}(z + b)

    where at most one of ``s`` and :math:`\gamma` is positive,
    and the result is the sum of ``scale_y * l`` over the valid pixels. Every reduction is thus one factor per class,
    from :func:`reduction_scale`. The backward pass needs ``scale`` ``(C,)`` beside its inputs.

    Arguments, result and sources are those of :func:`cawa_fast.functional.cross_entropy`.

    Example:
        >>> logits, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
        >>> loss, scale = cross_entropy(logits, target, None, None, -100, "mean", 0.0, 0.0, False)
        >>> print(f"{loss:.4f}", scale)  # log 2
        0.6931 tensor([0.5000, 0.5000])
    """
    logits = label_resolution(input, target, offset, align_corners)
    num_classes = logits.shape[1]
    labels, valid = valid_labels(target, num_classes, ignore_index)
    class_weight = _class_weight(weight, logits)
    scale = reduction_scale(histogram(labels, valid, num_classes), labels.numel(), class_weight, reduction)

    log_probability = logits.log_softmax(1)
    at_label = log_probability.gather(1, labels.unsqueeze(1)).squeeze(1)
    loss = class_weight[labels] * at_label * (label_smoothing - 1)
    if gamma > 0:
        loss = loss * _miss(at_label) ** gamma
    if label_smoothing > 0:
        per_class = class_weight.view(-1, *[1] * (logits.dim() - 2))
        loss = loss - label_smoothing / num_classes * (log_probability * per_class).sum(1)
    loss = loss.masked_fill(~valid, 0)
    if reduction == "none":
        return loss, scale
    if reduction == "class_mean":
        return (loss * scale[labels]).sum(), scale
    return loss.sum() * scale[0], scale


def cross_entropy_backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    scale: Tensor,
    ignore_index: int,
    label_smoothing: float,
    gamma: float,
    align_corners: bool,
) -> Tensor:
    r"""Gradient of :func:`cross_entropy` with respect to ``input``, in the dtype and memory format of ``input``.

    .. math:: \frac{\partial l}{\partial z_c} = (1 - s) w_y f (p_c - [c = y]) + \frac{s}{C} (p_c \sum_k w_k - w_c),
              \quad f = (1 - p_y)^\gamma - \gamma (1 - p_y)^{\gamma - 1} p_y \log p_y

    ``grad`` is the gradient of the loss: ``()``, or the shape of ``target`` with ``reduction="none"``. ``scale``
    ``(C,)`` comes from :func:`cross_entropy`.

    Example:
        >>> logits, target, scale = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]), torch.tensor([0.5, 0.5])
        >>> grad = cross_entropy_backward(torch.ones(()), logits, target, None, None, scale, -100, 0.0, 0.0, False)
        >>> grad.flatten()
        tensor([-0.2500,  0.2500,  0.2500, -0.2500])
    """
    logits = label_resolution(input, target, offset, align_corners)
    num_classes = logits.shape[1]
    labels, valid = valid_labels(target, num_classes, ignore_index)
    class_weight = _class_weight(weight, logits)
    label = labels.unsqueeze(1)

    factor = (scale[labels] * grad.to(logits.dtype)).unsqueeze(1)
    at_label = class_weight[label] * (1 - label_smoothing) * factor
    if gamma > 0:
        log_probability = logits.log_softmax(1).gather(1, label)
        miss, probability = _miss(log_probability), log_probability.exp()
        slope = torch.where(probability > 0, probability * log_probability, 0)  # 0 * inf
        at_label = at_label * (miss**gamma - gamma * miss ** (gamma - 1) * slope)
    smooth = factor * (label_smoothing / num_classes)
    result = logits.softmax(1).mul_(at_label + smooth * class_weight.sum())
    result.scatter_add_(1, label, -at_label)
    if label_smoothing > 0:
        result -= smooth * class_weight.view(-1, *[1] * (logits.dim() - 2))
    result.masked_fill_(~valid.unsqueeze(1), 0)
    if result.shape != input.shape:
        result = resize_adjoint(result, (input.shape[-2], input.shape[-1]), align_corners)
    result = result.to(input.dtype)
    return result.contiguous() if input.is_contiguous() else torch.empty_like(input).copy_(result)


def _miss(log_probability: Tensor) -> Tensor:
    """``1 - p``, without cancellation near 1; above 0, where a power with a negative exponent is finite."""
    return (-torch.expm1(log_probability)).clamp_min(torch.finfo(log_probability.dtype).tiny)


def label_resolution(input: Tensor, target: Tensor, offset: Tensor | None, align_corners: bool) -> Tensor:
    """The logits plus ``offset`` ``(C,)``, resized to the labels if they are images: float32 or float64."""
    logits = input.to(compute_dtype(input.dtype))
    if offset is not None:
        logits = logits + offset.to(logits.dtype).view(-1, *[1] * (logits.dim() - 2))
    if target.dim() != 3:
        return logits
    return resize(logits, (target.shape[-2], target.shape[-1]), align_corners)


def _class_weight(weight: Tensor | None, logits: Tensor) -> Tensor:
    return logits.new_ones(logits.shape[1]) if weight is None else weight.to(logits.dtype)


def reduction_scale(counts: Tensor, pixels: int, class_weight: Tensor, reduction: str) -> Tensor:
    """``(C,)``: one factor per label for the losses of the pixels, so that their sum is the ``reduction``.

    Args:
        counts: ``(C,)`` int64: valid pixels of each class.
        pixels: number of all pixels, including ignored ones.
        class_weight: ``(C,)`` float32 or float64, at least 0.
        reduction: one of ``REDUCTIONS``; see :func:`cawa_fast.functional.cross_entropy`.

    Example:
        >>> reduction_scale(torch.tensor([3, 1]), 5, torch.tensor([1.0, 2.0]), "mean")  # 1 / (3 * 1 + 1 * 2)
        tensor([0.2000, 0.2000])
    """
    one = torch.ones_like(class_weight)
    if reduction in ("sum", "none"):
        return one
    if reduction == "pixel_mean":
        return one / max(pixels, 1)
    count = counts.to(class_weight.dtype)
    if reduction == "mean":
        return one / mean_divisor((count * class_weight).sum(), count.sum())
    if reduction == "valid_mean":
        count = count.sum().expand_as(count)
    return torch.where(count > 0, 1 / count, 0)


def mean_divisor(total: Tensor, pixels: Tensor) -> Tensor:
    """The divisor ``()`` of a weighted mean: ``total``, the sum of the weights, unless a division by it overflows.

    If the weights of all valid pixels are 0, or too small to divide by, it is infinite: the mean and its gradient are
    then 0, and such a batch trains nothing. Without valid pixels it is NaN, as in PyTorch.

    ``total`` is float32 or float64, at least 0; ``pixels``, the number of valid pixels, is of any dtype.

    Example:
        >>> [mean_divisor(torch.tensor(total), torch.tensor(pixels)).item() for total, pixels in ((2.0, 3), (0.0, 3))]
        [2.0, inf]
    """
    # 0 * inf is NaN. A product of an integer would have PyTorch's default dtype
    return total.where(total >= torch.finfo(total.dtype).tiny, pixels.to(total.dtype) * torch.inf)


# ------------------------------------------------------------------------------------------------------- counting


def confusion_matrix(input: Tensor, target: Tensor, num_classes: int, ignore_index: int, align_corners: bool) -> Tensor:
    """``(C, C)`` int64, rows = target, columns = prediction.

    ``input`` is logits ``(N, C, h, w)``, which are resized and predict their argmax, or integer predictions
    ``(N, H, W)``. Arguments and sources are those of :func:`cawa_fast.functional.confusion_matrix`.

    Example:
        >>> confusion_matrix(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]), 2, -100, False)
        tensor([[1, 1],
                [0, 1]])
    """
    prediction = input
    if input.is_floating_point():  # max returns the first of several, and is six times faster than argmax
        prediction = label_resolution(input, target, None, align_corners).max(1).indices
    labels, valid = valid_labels(target, num_classes, ignore_index)
    prediction, known = valid_labels(prediction, num_classes, _NO_LABEL)
    counts = histogram(labels * num_classes + prediction, valid & known, num_classes * num_classes)
    return counts.view(num_classes, num_classes)


_NO_LABEL = _INT64.min  # an ignore_index that does not occur


def pseudo_masks(cam: Tensor, size: tuple[int, int], tau: float, normalize: str, align_corners: bool) -> Tensor:
    """Pseudo masks ``(N, C, H, W)`` bool: true where the normalised map exceeds ``tau`` strictly (CAWASeg, Eq. 1).

    Arguments as for :func:`cawa_fast.functional.cam_counts`; ``size`` is ``(H, W)``.

    Example:
        >>> pseudo_masks(torch.tensor([[[[4.0, 3.0, 1.0]]]]), (1, 3), 0.5, "max", align_corners=False)
        tensor([[[[ True,  True, False]]]])
    """
    cam = cam.to(compute_dtype(cam.dtype))
    threshold = cam.new_full((), tau)  # rounded to the dtype of the maps, without a copy from the host
    if normalize == "gradcam":
        cam = _minmax(cam.clamp_min(0)).nan_to_num(0)
    elif normalize == "minmax":
        cam = _minmax(cam)
    cam = resize(cam, size, align_corners)
    if normalize == "gradcam":
        cam = _minmax(cam)
    elif normalize == "max":
        top = cam.amax((-2, -1), keepdim=True)
        cam = cam / top.where((top > 0) & top.isfinite(), torch.nan)
    return cam > threshold


def _minmax(x: Tensor) -> Tensor:
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    span = high - low
    return (x - low) / span.where((span > 0) & span.isfinite(), torch.nan)


def cam_counts(
    cam: Tensor, target: Tensor, tau: float, normalize: str, classes: str, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``(tp, fp, fn)``, each ``(C,)`` int64: pseudo masks against labels, over the valid pixels (CAWASeg, Eq. 1 and 3).

    ``classes="present"`` scores a class only in the images whose valid ground truth contains it. Arguments as for
    :func:`cawa_fast.functional.cam_counts`.

    Example:
        >>> cam = torch.tensor([[[[4.0, 3.0, 1.0]], [[0.0, 0.0, 2.0]]]])
        >>> cam_counts(cam, torch.tensor([[[0, 1, 1]]]), 0.5, "max", "present", -100, False)
        (tensor([1, 1]), tensor([1, 0]), tensor([0, 1]))
    """
    num_classes = cam.shape[1]
    totals = torch.zeros(3, num_classes, dtype=torch.int64, device=cam.device)
    size = (target.shape[-2], target.shape[-1])
    if target.numel() == 0:
        return totals[0].clone(), totals[1].clone(), totals[2].clone()
    for image, image_target in zip(
        cam.split(1), target.split(1), strict=True
    ):  # one at a time: C*H*W values, not N*C*H*W
        mask = pseudo_masks(image, size, tau, normalize, align_corners)
        labels, valid = valid_labels(image_target, num_classes, ignore_index)
        truth = histogram(labels, valid, num_classes)
        hit = mask.gather(1, labels.unsqueeze(1)).squeeze(1)
        tp = histogram(labels, valid & hit, num_classes)
        predicted = (mask & valid.unsqueeze(1)).sum((0, 2, 3))
        if classes == "present":
            predicted = predicted * (truth > 0)
        totals += torch.stack((tp, predicted - tp, truth - tp))
    return totals[0].clone(), totals[1].clone(), totals[2].clone()

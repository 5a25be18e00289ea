"""The specification: every operator and every equation in plain PyTorch, in the order in which the paper states them.

Readable beside the method's equations, exact in float64, differentiable by hand. It is the oracle that every kernel is
tested against and what serves devices that have no kernel. Arguments are validated by :mod:`cawa_fast.functional`;
here only the mathematics stands.

Shapes: ``N`` images, ``C`` classes, ``(h, w)`` the logits' or maps' resolution, ``(H, W)`` the labels'.

Two rules that all back ends share:

* **Arithmetic.** float16 and bfloat16 are read as float32; float64 stays. The bilinear resize rounds every product and
  every sum on its own (no fused multiply-add), so that counts agree to the last pixel between back ends and layouts.
* **Not a number.** A NaN logit counts as the largest, the first of several wins (as in ``torch.argmax``). A map whose
  normaliser is not a positive finite number gives an empty pseudo mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none", "valid_mean", "pixel_mean", "class_mean")
NORMALIZATIONS = ("max", "minmax", "gradcam", "none")
CLASSES = ("present", "all")
RATIOS = ("paper", "smoothed", "none")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which logits or maps of ``dtype`` are computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# ------------------------------------------------------------------------------------------------ bilinear resize


class Taps(NamedTuple):
    """For each output position along one axis the two input positions it reads, and their weights (summing to 1)."""

    low: Tensor
    high: Tensor
    low_weight: Tensor
    high_weight: Tensor


def bilinear_taps(in_size: int, out_size: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> Taps:
    """Sample positions of ``F.interpolate(mode="bilinear")`` along one axis, computed in ``dtype`` as it does."""
    # PyTorch rounds the step to ``dtype`` and fuses the multiplication with the subtraction. In float64 the product is
    # exact, so that the position is rounded once, as there; kernels use one fused multiply-add.
    step = (in_size - 1) / max(out_size - 1, 1) if align_corners else in_size / max(out_size, 1)
    step = torch.tensor(step, dtype=dtype, device="cpu").item()
    out = torch.arange(out_size, dtype=torch.float64, device=device)
    position = (out * step if align_corners else (out + 0.5) * step - 0.5).clamp_min_(0).to(dtype)
    low = position.to(torch.int64).clamp_max_(in_size - 1)
    high = (low + 1).clamp_max_(in_size - 1)
    high_weight = (position - low).clamp_(0, 1)
    return Taps(low, high, 1 - high_weight, high_weight)


def resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """``(N, C, h, w)`` to ``(N, C, H, W)``: ``F.interpolate`` in a fixed order of rounding, the same for any layout."""
    if x.shape[-2:] == size:
        return x
    columns = bilinear_taps(x.shape[-1], size[1], align_corners, x.dtype, x.device)
    rows = bilinear_taps(x.shape[-2], size[0], align_corners, x.dtype, x.device)
    # In place where the tensor is new: on a CPU half of the time would go into fresh pages.
    low, high = x.index_select(-1, columns.low), x.index_select(-1, columns.high)
    x = low.mul_(columns.low_weight).add_(high.mul_(columns.high_weight))
    low, high = x.index_select(-2, rows.low), x.index_select(-2, rows.high)
    return low.mul_(rows.low_weight[:, None]).add_(high.mul_(rows.high_weight[:, None]))


def resize_adjoint(grad: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """The transpose of :func:`resize`: gradient ``(N, C, H, W)`` to ``(N, C, h, w)``."""
    if grad.shape[-2:] == size:
        return grad
    rows = bilinear_taps(size[0], grad.shape[-2], align_corners, grad.dtype, grad.device)
    columns = bilinear_taps(size[1], grad.shape[-1], align_corners, grad.dtype, grad.device)
    # Rows first: there the additions run over contiguous memory, and the second axis is left with h/H of the work.
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
    """``(labels, valid)``: labels as int64 with 0 where not valid; valid where in ``[0, C)`` and not ignored."""
    labels = target.to(torch.int64)  # before any comparison: uint8 compared with -100 would wrap
    valid = (labels >= 0) & (labels < num_classes) & (labels != ignore_index)
    return labels.where(valid, 0), valid


def bad_labels(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """``(3,)`` int64: how many labels are neither in ``[0, C)`` nor ``ignore_index``, the least and the largest."""
    labels = target.to(torch.int64)
    bad = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)
    if bad.numel() == 0:
        return torch.stack([labels.new_full((), value) for value in (0, _INT64.max, _INT64.min)])  # copied from nowhere
    return torch.stack((bad.sum(), labels.where(bad, _INT64.max).amin(), labels.where(bad, _INT64.min).amax()))


_INT64 = torch.iinfo(torch.int64)


def histogram(index: Tensor, keep: Tensor, size: int) -> Tensor:
    """``(size,)`` int64: how often each value of ``index`` occurs where ``keep``. Without a host sync, in any order."""
    bins = torch.zeros(size + 1, dtype=torch.int64, device=index.device)
    bins.scatter_add_(0, index.where(keep, size).flatten(), bins.new_ones(()).expand(index.numel()))
    return bins[:size].clone()


# ------------------------------------------------------------------------------------------------- cross-entropy


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    r"""Weighted cross-entropy of the resized logits ``z``; returns ``(loss, scale)``.

    With ``s = label_smoothing``, a pixel of label ``y`` has the loss

    .. math:: l = -(1 - s) w_y \log p_y - \frac{s}{C} \sum_c w_c \log p_c, \quad p = \mathrm{softmax}(z)

    and the result is the sum of ``scale_y * l`` over valid pixels: a reduction is nothing but a factor per class.
    ``scale`` ``(C,)`` is what the backward pass needs beside its inputs.
    """
    logits = _label_resolution(input, target, align_corners)
    num_classes = logits.shape[1]
    labels, valid = valid_labels(target, num_classes, ignore_index)
    class_weight = _class_weight(weight, logits)
    scale = reduction_scale(histogram(labels, valid, num_classes), labels.numel(), class_weight, reduction)

    log_probability = logits.log_softmax(1)
    at_label = log_probability.gather(1, labels.unsqueeze(1)).squeeze(1)
    loss = class_weight[labels] * at_label * (label_smoothing - 1)
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
    scale: Tensor,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    r"""Gradient with respect to ``input``, in its dtype and memory format.

    ``grad`` has the shape ``()`` or, with reduction none, ``(N, ...)``.

    .. math:: \frac{\partial l}{\partial z_c} = (1 - s) w_y (p_c - [c = y]) + \frac{s}{C} (p_c \sum_k w_k - w_c),
              \quad p = \mathrm{softmax}(z)
    """
    logits = _label_resolution(input, target, align_corners)
    num_classes = logits.shape[1]
    labels, valid = valid_labels(target, num_classes, ignore_index)
    class_weight = _class_weight(weight, logits)
    label = labels.unsqueeze(1)

    factor = (scale[labels] * grad.to(logits.dtype)).unsqueeze(1)
    at_label = class_weight[label] * (1 - label_smoothing) * factor
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


def _label_resolution(input: Tensor, target: Tensor, align_corners: bool) -> Tensor:
    logits = input.to(compute_dtype(input.dtype))
    if target.dim() != 3:
        return logits
    return resize(logits, (target.shape[-2], target.shape[-1]), align_corners)


def _class_weight(weight: Tensor | None, logits: Tensor) -> Tensor:
    return logits.new_ones(logits.shape[1]) if weight is None else weight.to(logits.dtype)


def reduction_scale(counts: Tensor, pixels: int, class_weight: Tensor, reduction: str) -> Tensor:
    """``(C,)``: the factor of a pixel's loss, by the pixel's label, that makes a sum over pixels the ``reduction``.

    ``counts`` ``(C,)`` are the valid pixels of each class, ``pixels`` is the number of all.
    """
    one = torch.ones_like(class_weight)
    if reduction in ("sum", "none"):
        return one
    if reduction == "pixel_mean":
        return one / max(pixels, 1)
    count = counts.to(class_weight.dtype)
    if reduction == "mean":
        total = (count * class_weight).sum()
        return one / total.where(total > 0, torch.nan)  # nothing to divide by: NaN, as in PyTorch
    if reduction == "valid_mean":
        count = count.sum().expand_as(count)
    return torch.where(count > 0, 1 / count, 0)


# ------------------------------------------------------------------------------------------------------- counting


def confusion_matrix(input: Tensor, target: Tensor, num_classes: int, ignore_index: int, align_corners: bool) -> Tensor:
    """``(C, C)`` int64, rows = target, columns = prediction: argmax of the resized logits, or integer predictions."""
    prediction = input
    if input.is_floating_point():  # max documents that the first of several wins, and is six times faster than argmax
        prediction = _label_resolution(input, target, align_corners).max(1).indices
    labels, valid = valid_labels(target, num_classes, ignore_index)
    prediction, known = valid_labels(prediction, num_classes, _NO_LABEL)
    counts = histogram(labels * num_classes + prediction, valid & known, num_classes * num_classes)
    return counts.view(num_classes, num_classes)


_NO_LABEL = _INT64.min  # an ignore_index that no label has


def pseudo_masks(cam: Tensor, size: tuple[int, int], tau: float, normalize: str, align_corners: bool) -> Tensor:
    """Eq. 1: ``(N, C, H, W)`` bool, true where the normalised map exceeds ``tau`` (strictly)."""
    cam = cam.to(compute_dtype(cam.dtype))
    threshold = cam.new_full((), tau)  # rounded to the maps' dtype, and no copy from the host
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
    """``(tp, fp, fn)``, each ``(C,)`` int64, of the pseudo masks against the labels, over valid pixels.

    ``classes="present"`` scores a class only in the images whose valid ground truth contains it.
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


# --------------------------------------------------------------------------------------- the weights, Eq. 2 to 9


class WeightUpdate(NamedTuple):
    """What one step computes, each ``(C,)`` float64; NaN where a class has no ground truth (``weight`` is 1 there)."""

    iou: Tensor
    pixel_accuracy: Tensor
    csps: Tensor
    base_weight: Tensor
    ratio_weight: Tensor
    weight: Tensor


def base_weight(csps: Tensor, counts: Tensor, eps: float) -> Tensor:
    r"""Eq. 5: :math:`BW_i = \log(1 + \sum_j CSPS_j / (CSPS_i + eps)) \cdot \log(1 + \sum_j n_j / (n_i + eps))`."""
    return torch.log1p(csps.sum() / (csps + eps)) * torch.log1p(counts.sum() / (counts + eps))


def ratio_weight(csps: Tensor, last_csps: Tensor, ratio: str, eps: float, ratio_eps: float) -> Tensor:
    """Eq. 6: ``CSPS(t) / (CSPS(t-1) + eps)``; 1 where there is no last value (NaN). See ``ratio`` for the variants."""
    if ratio == "none":
        return torch.ones_like(csps)
    if ratio == "smoothed":
        value = (csps + ratio_eps) / (last_csps + ratio_eps)
    else:
        value = csps / (last_csps + eps)
    return value.where(~last_csps.isnan(), 1.0)


def update_weights(
    counts: Tensor,
    *,
    class_counts: Tensor | None,
    last_csps: Tensor,
    delta: float,
    eps: float,
    ratio: str,
    ratio_eps: float,
    w_min: float,
    w_max: float,
    last_weight: Tensor | None = None,
    held: Tensor | None = None,
) -> WeightUpdate:
    """Eq. 2 to 9 from ``counts`` ``(3, C)`` (tp, fp, fn of the whole validation set), in float64.

    Classes without ground truth are left out of the sums of Eq. 5 and the mean of Eq. 9, and get weight 1. Where
    ``held`` ``(C,)`` is true a class keeps its ``last_weight`` and enters the sums with its last CSPS, if it has one;
    the others share what those leave of the mean of 1.
    """
    tp, fp, fn = counts.double()
    truth = tp + fn
    seen = truth > 0
    iou = tp / (tp + fp + fn)  # Eq. 3
    accuracy = tp / truth  # Eq. 4
    csps = delta * iou + (1 - delta) * accuracy  # Eq. 2
    pixels = truth if class_counts is None else class_counts.double()

    base = torch.full_like(csps, torch.nan)
    ratios = base.clone()
    last_csps = last_csps.double()
    kept = torch.zeros_like(seen) if held is None else held
    known = torch.where(kept, last_csps, csps.where(seen, torch.nan))
    scored = ~known.isnan()
    base[scored] = base_weight(known[scored], pixels[scored], eps)  # Eq. 5
    ratios[scored] = ratio_weight(known[scored], last_csps[scored], ratio, eps, ratio_eps)  # Eq. 6
    new = seen & ~kept
    clipped = (base * ratios)[new].clamp(w_min, w_max)  # Eq. 7 and 8
    weight = normalized(clipped, new, last_weight, held)  # Eq. 9
    return WeightUpdate(iou.where(seen, torch.nan), accuracy, csps.where(seen, torch.nan), base, ratios, weight)


def normalized(raw: Tensor, new: Tensor, last_weight: Tensor | None, held: Tensor | None) -> Tensor:
    """Eq. 9: weights ``(C,)`` of mean 1, from the ``raw`` ones of the classes in ``new`` ``(C,)`` bool.

    Where ``held`` is true it is the ``last_weight``, and the others share what those leave; where neither, it is 1.
    """
    weight = raw.new_ones(new.shape)
    share = float(new.sum())
    if last_weight is not None and held is not None:
        weight[held] = last_weight.double()[held]
        share += float((1 - weight[held]).sum())
    weight[new] = raw / (raw.sum() / share) if raw.sum() > 0 else 1.0  # w_min = 0 may make all of them 0
    return weight

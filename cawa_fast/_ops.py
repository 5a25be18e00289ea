"""``torch.ops.cawa_fast``: schemas, fakes, autograd, and the choice of a kernel by device.

The operators exist without a native build. Each implementation looks for bad labels, then calls one kernel. What is
public and documented is :mod:`cawa_fast.functional`; arguments are valid when they arrive here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _checks, _native, reference

_LIBRARY = torch.library.Library("cawa_fast", "DEF")
# ``grad``: the gradient where it is formed with the loss, else empty. The first backward pass scales it in place and
# hands it out; only that may use it.
_LIBRARY.define(
    "cross_entropy(Tensor input, Tensor target, Tensor? weight, int ignore_index, str reduction, "
    "float label_smoothing, bool align_corners, bool with_grad) -> (Tensor loss, Tensor scale, Tensor grad)"
)
_LIBRARY.define(
    "cross_entropy_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, Tensor scale, "
    "int ignore_index, float label_smoothing, bool align_corners) -> Tensor"
)
_LIBRARY.define(
    "confusion_matrix(Tensor input, Tensor target, int num_classes, int ignore_index, bool align_corners) -> Tensor"
)
_LIBRARY.define(
    "cam_counts(Tensor cam, Tensor target, float tau, str normalize, str classes, int ignore_index, "
    "bool align_corners) -> (Tensor tp, Tensor fp, Tensor fn)"
)


def _is_native(input: Tensor) -> bool:
    """Whether the compiled CPU kernels serve logits or maps like ``input``."""
    return (
        input.device.type == "cpu"
        and input.dtype in _NATIVE_DTYPES
        and input.shape[1] <= _NATIVE_CLASSES
        and input.dim() <= _NATIVE_DIMENSIONS
        and _native.available()
    )


_NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NATIVE_CLASSES = 32767  # the confusion matrix has a 32-bit index; more are too rare for a limit per operator
_NATIVE_DIMENSIONS = 8


def _forms_grad(input: Tensor, reduction: str, with_grad: bool) -> bool:
    """Whether ``cross_entropy`` computes the gradient along with the loss, from the same exponentials.

    It has to be multiplied with the upstream gradient later. In float16 small gradients would have vanished by then,
    which is what scaling the loss is to prevent.
    """
    return with_grad and reduction != "none" and input.dtype != torch.float16 and _is_native(input)


def _count_labels(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """``(N, C)`` valid pixels of each class in each image, by the compiled kernel; reports bad labels."""
    counts, bad = torch.ops.cawa_fast_cpu.label_histogram(target, num_classes, ignore_index)
    if not _checks.label_check_is_off():
        _checks.report("target", bad, num_classes, ignore_index)
    return counts


def _report_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    if _checks.label_check_is_off():
        return
    native = target.device.type == "cpu" and _native.available()
    find = torch.ops.cawa_fast_cpu.bad_labels if native else reference.bad_labels
    _checks.report("target", find(target, num_classes, ignore_index), num_classes, ignore_index)


@torch.library.impl(_LIBRARY, "cross_entropy", "CompositeExplicitAutograd")
def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    align_corners: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    weight = None if weight is None else weight.to(reference.compute_dtype(input.dtype)).contiguous()
    _checks.check_weight(weight)
    if not _is_native(input):
        _report_labels(target, input.shape[1], ignore_index)
        loss, scale = reference.cross_entropy(
            input, target, weight, ignore_index, reduction, label_smoothing, align_corners
        )
        return loss, scale, input.new_empty(0)
    counts = _count_labels(target.reshape(1, -1), input.shape[1], ignore_index)[0]
    class_weight = torch.ones(input.shape[1]) if weight is None else weight
    scale = reference.reduction_scale(counts, target.numel(), class_weight, reduction)
    loss, grad = torch.ops.cawa_fast_cpu.cross_entropy(
        input,
        target,
        weight,
        scale,
        ignore_index,
        reduction == "none",
        label_smoothing,
        align_corners,
        _forms_grad(input, reduction, with_grad),
    )
    return loss, scale, grad


@torch.library.impl(_LIBRARY, "cross_entropy_backward", "CompositeExplicitAutograd")
def _cross_entropy_backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    if _is_native(input):
        return torch.ops.cawa_fast_cpu.cross_entropy_backward(
            grad.to(torch.float32),
            input,
            target,
            None if weight is None else weight.to(torch.float32).contiguous(),
            scale,
            ignore_index,
            label_smoothing,
            align_corners,
        )
    return reference.cross_entropy_backward(
        grad, input, target, weight, scale, ignore_index, label_smoothing, align_corners
    )


@torch.library.impl(_LIBRARY, "confusion_matrix", "CompositeExplicitAutograd")
def _confusion_matrix(
    input: Tensor, target: Tensor, num_classes: int, ignore_index: int, align_corners: bool
) -> Tensor:
    if input.is_floating_point():
        _report_labels(target, num_classes, ignore_index)
        if _is_native(input):
            return torch.ops.cawa_fast_cpu.confusion_matrix(input, target, ignore_index, align_corners)
        return reference.confusion_matrix(input, target, num_classes, ignore_index, align_corners)
    if input.device.type == "cpu" and _native.available():
        counts, bad = torch.ops.cawa_fast_cpu.confusion_matrix_labels(input, target, num_classes, ignore_index)
        if not _checks.label_check_is_off():
            _checks.report("target", bad[:3], num_classes, ignore_index)
            _checks.report("input", bad[3:], num_classes, ignore_index)
        return counts
    _report_labels(target, num_classes, ignore_index)
    if not _checks.label_check_is_off():
        _, valid = reference.valid_labels(target, num_classes, ignore_index)
        bad = reference.bad_labels(input.to(torch.int64).where(valid, 0), num_classes, 0)
        _checks.report("input", bad, num_classes, ignore_index)
    return reference.confusion_matrix(input, target, num_classes, ignore_index, align_corners)


@torch.library.impl(_LIBRARY, "cam_counts", "CompositeExplicitAutograd")
def _cam_counts(
    cam: Tensor, target: Tensor, tau: float, normalize: str, classes: str, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if _is_native(cam):
        truth = _count_labels(target, cam.shape[1], ignore_index)
        how = reference.NORMALIZATIONS.index(normalize)
        return torch.ops.cawa_fast_cpu.cam_counts(
            cam, target, truth, tau, how, classes == "all", ignore_index, align_corners
        )
    _report_labels(target, cam.shape[1], ignore_index)
    return reference.cam_counts(cam, target, tau, normalize, classes, ignore_index, align_corners)


# ---------------------------------------------------------------------------------- shapes without computing (fakes)


@torch.library.register_fake("cawa_fast::cross_entropy", lib=_LIBRARY)
def _(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    align_corners: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = reference.compute_dtype(input.dtype)
    loss = input.new_empty(target.shape if reduction == "none" else (), dtype=dtype)
    grad = torch.empty_like(input) if _forms_grad(input, reduction, with_grad) else input.new_empty(0)
    return loss, input.new_empty(input.shape[1], dtype=dtype), grad


@torch.library.register_fake("cawa_fast::cross_entropy_backward", lib=_LIBRARY)
def _(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    scale: Tensor,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("cawa_fast::confusion_matrix", lib=_LIBRARY)
def _(input: Tensor, target: Tensor, num_classes: int, ignore_index: int, align_corners: bool) -> Tensor:
    return input.new_empty((num_classes, num_classes), dtype=torch.int64)


@torch.library.register_fake("cawa_fast::cam_counts", lib=_LIBRARY)
def _(
    cam: Tensor, target: Tensor, tau: float, normalize: str, classes: str, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    tp, fp, fn = (cam.new_empty(cam.shape[1], dtype=torch.int64) for _ in range(3))
    return tp, fp, fn


# ------------------------------------------------------------------------------------------------------- autograd


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, target, weight, ctx.ignore_index, reduction, ctx.label_smoothing, ctx.align_corners, with_grad = inputs
    _, scale, grad = output
    ctx.mark_non_differentiable(scale, grad)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, target, weight, scale, grad)
    ctx.has_grad = _forms_grad(input, reduction, with_grad)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    input, target, weight, scale, grad_input = ctx.saved_tensors
    # The gradient goes to the caller, who may change it; another backward pass computes its own. (Taken in one step:
    # several threads may go backward at once.)
    if not torch.is_grad_enabled() and vars(ctx).pop("has_grad", False):
        scaled = _scaled(grad_input, grad)
        if scaled is not None:
            return scaled, *(None,) * 7
    grad_input = torch.ops.cawa_fast.cross_entropy_backward(
        grad, input, target, weight, scale, ctx.ignore_index, ctx.label_smoothing, ctx.align_corners
    )
    return grad_input, *(None,) * 7


def _scaled(grad_input: Tensor, grad: Tensor) -> Tensor | None:
    """``grad_input`` times the upstream gradient, in place where nobody else can see it; None if that is inexact."""
    if type(grad_input) is not Tensor:  # a tracer's: in its graph nothing changes in place
        return None if grad_input.dtype == torch.bfloat16 else grad_input * grad
    grad_input = grad_input.data  # changes to it are not changes of what autograd has saved, which nobody reads again
    if grad.device.type != "cpu":  # to look at the value would mean to wait
        return grad_input.mul_(grad)
    factor = grad.item()
    if factor == 1:  # of loss.backward(), the usual one
        return grad_input
    # A bfloat16 gradient must not be rounded twice; a power of two does not round.
    if grad_input.dtype == torch.bfloat16 and abs(math.frexp(factor)[0]) != 0.5:
        return None
    return grad_input.mul_(grad)


def _no_double_backward(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(
        "cawa_fast.cross_entropy has no second derivative; for double backward use "
        "torch.nn.functional.interpolate and torch.nn.functional.cross_entropy"
    )


torch.library.register_autograd("cawa_fast::cross_entropy", _backward, setup_context=_save_for_backward, lib=_LIBRARY)
torch.library.register_autograd("cawa_fast::cross_entropy_backward", _no_double_backward, lib=_LIBRARY)

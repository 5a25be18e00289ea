"""``torch.ops.cawa_fast``: schemas, fakes, autograd, and the choice of a kernel by device.

The operators exist without a native build. Each implementation looks for bad labels, then calls one kernel. What is
public and documented is :mod:`cawa_fast.functional`; arguments are valid when they arrive here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks, _native, reference

_LIBRARY = torch.library.Library("cawa_fast", "DEF")
_LIBRARY.define(
    "cross_entropy(Tensor input, Tensor target, Tensor? weight, int ignore_index, str reduction, "
    "float label_smoothing, bool align_corners) -> (Tensor loss, Tensor scale)"
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


def _report_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    if not _checks.label_check_is_off():
        _checks.report("target", reference.bad_labels(target, num_classes, ignore_index), num_classes, ignore_index)


@torch.library.impl(_LIBRARY, "cross_entropy", "CompositeExplicitAutograd")
def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    _checks.check_weight(weight)
    _report_labels(target, input.shape[1], ignore_index)
    return reference.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing, align_corners)


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
    return reference.cross_entropy_backward(
        grad, input, target, weight, scale, ignore_index, label_smoothing, align_corners
    )


@torch.library.impl(_LIBRARY, "confusion_matrix", "CompositeExplicitAutograd")
def _confusion_matrix(
    input: Tensor, target: Tensor, num_classes: int, ignore_index: int, align_corners: bool
) -> Tensor:
    if not input.is_floating_point() and input.device.type == "cpu" and _native.available():
        counts, bad = torch.ops.cawa_fast_cpu.confusion_matrix_labels(input, target, num_classes, ignore_index)
        if not _checks.label_check_is_off():
            _checks.report("target", bad[:3], num_classes, ignore_index)
            _checks.report("input", bad[3:], num_classes, ignore_index)
        return counts
    _report_labels(target, num_classes, ignore_index)
    if not input.is_floating_point() and not _checks.label_check_is_off():
        _, valid = reference.valid_labels(target, num_classes, ignore_index)
        bad = reference.bad_labels(input.to(torch.int64).where(valid, 0), num_classes, 0)
        _checks.report("input", bad, num_classes, ignore_index)
    return reference.confusion_matrix(input, target, num_classes, ignore_index, align_corners)


@torch.library.impl(_LIBRARY, "cam_counts", "CompositeExplicitAutograd")
def _cam_counts(
    cam: Tensor, target: Tensor, tau: float, normalize: str, classes: str, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
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
) -> tuple[Tensor, Tensor]:
    dtype = reference.compute_dtype(input.dtype)
    loss = input.new_empty(target.shape if reduction == "none" else (), dtype=dtype)
    return loss, input.new_empty(input.shape[1], dtype=dtype)


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
    return torch.empty_like(input, memory_format=torch.contiguous_format)


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


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, target, weight, ctx.ignore_index, _, ctx.label_smoothing, ctx.align_corners = inputs
    _, scale = output
    ctx.mark_non_differentiable(scale)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, target, weight, scale)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    input, target, weight, scale = ctx.saved_tensors
    grad_input = torch.ops.cawa_fast.cross_entropy_backward(
        grad, input, target, weight, scale, ctx.ignore_index, ctx.label_smoothing, ctx.align_corners
    )
    return grad_input, *(None,) * 6


def _no_double_backward(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(
        "cawa_fast.cross_entropy has no second derivative; for double backward use "
        "torch.nn.functional.interpolate and torch.nn.functional.cross_entropy"
    )


torch.library.register_autograd("cawa_fast::cross_entropy", _backward, setup_context=_save_for_backward, lib=_LIBRARY)
torch.library.register_autograd("cawa_fast::cross_entropy_backward", _no_double_backward, lib=_LIBRARY)

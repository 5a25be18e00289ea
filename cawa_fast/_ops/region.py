"""``torch.ops.cawa_fast.region_sums``: a pixel loss, and the sums of which region losses such as Dice are functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _validate, reference, reference_region
from . import backends, implementations
from .backends import is_eager
from .library import LIBRARY


def compute_region_sums(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(loss (), sums (N, 2, C), truth (N, C) int64, scale (C,))``, as :func:`reference_region.region_sums`."""
    weight, offset = implementations.per_class(weight, input), implementations.per_class(offset, input)
    _validate.check_weight_values(weight)
    _validate.check_offset_values(offset)
    classes = input.shape[1]
    if not backends.is_native(input):
        implementations.report_labels(target, classes, ignore_index)
        return reference_region.region_sums(
            input, target, weight, offset, ignore_index, reduction, label_smoothing, gamma, squared, align_corners
        )
    truth = implementations.count_labels(target, classes, ignore_index)
    class_weight = torch.ones(classes, dtype=torch.float32, device=input.device) if weight is None else weight
    scale = reference.reduction_scale(truth.sum(0), target.numel(), class_weight, reduction)
    loss, sums = torch.ops.cawa_fast_cpu.region_sums(
        input, target, weight, offset, scale, ignore_index, label_smoothing, gamma, squared, align_corners
    )
    return loss, sums, truth, scale


def compute_region_sums_backward(
    grad: Tensor,
    grad_sums: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    scale: Tensor,
    ignore_index: int,
    label_smoothing: float,
    gamma: float,
    squared: bool,
    align_corners: bool,
) -> Tensor:
    weight, offset = implementations.per_class(weight, input), implementations.per_class(offset, input)
    grad, grad_sums = grad.to(scale.dtype), grad_sums.to(scale.dtype).contiguous()
    is_native = backends.is_native(input)
    operator = torch.ops.cawa_fast_cpu.region_sums_backward if is_native else reference_region.region_sums_backward
    return operator(
        grad,
        grad_sums,
        input,
        target,
        weight,
        offset,
        scale,
        ignore_index,
        label_smoothing,
        gamma,
        squared,
        align_corners,
    )


LIBRARY.impl("region_sums", compute_region_sums, "CompositeExplicitAutograd")
LIBRARY.impl("region_sums_backward", compute_region_sums_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("cawa_fast::region_sums", lib=LIBRARY)
def _(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (images, classes), dtype = input.shape[:2], reference.compute_dtype(input.dtype)
    return (
        input.new_empty((), dtype=dtype),
        input.new_empty((images, 2, classes), dtype=dtype),
        input.new_empty((images, classes), dtype=torch.int64),
        input.new_empty(classes, dtype=dtype),
    )


@torch.library.register_fake("cawa_fast::region_sums_backward", lib=LIBRARY)
def _(
    grad: Tensor,
    grad_sums: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    scale: Tensor,
    ignore_index: int,
    label_smoothing: float,
    gamma: float,
    squared: bool,
    align_corners: bool,
) -> Tensor:
    return torch.empty_like(input)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    input, target, weight, offset, ignore_index, _, label_smoothing, gamma, squared, align_corners = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, target, weight, offset, output[3])
    ctx.options = ignore_index, label_smoothing, gamma, squared, align_corners


def _backward(ctx: Any, grad: Tensor | None, grad_sums: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    rest = (None,) * 9
    if grad is None and grad_sums is None:
        return None, *rest
    input, target, weight, offset, scale = ctx.saved_tensors
    if grad is None:
        grad = scale.new_zeros(())
    if grad_sums is None:
        grad_sums = scale.new_zeros((input.shape[0], 2, input.shape[1]))
    # With gradients enabled the caller wants a second derivative, for which the operator raises an error.
    directly = not torch.is_grad_enabled() and is_eager(grad, grad_sums, input, target, weight, offset)
    compute = compute_region_sums_backward if directly else torch.ops.cawa_fast.region_sums_backward
    return compute(grad, grad_sums, input, target, weight, offset, scale, *ctx.options), *rest


class EagerRegionSums(torch.autograd.Function):
    """``cawa_fast::region_sums`` and its derivative for eager tensors, as ``EagerCrossEntropy``."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        output = compute_region_sums(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)


def _no_double_backward(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(
        "region losses have no second derivative; for double backward compute the loss in plain PyTorch, from "
        "F.interpolate and softmax"
    )


torch.library.register_autograd("cawa_fast::region_sums", _backward, setup_context=_setup_context, lib=LIBRARY)
torch.library.register_autograd("cawa_fast::region_sums_backward", _no_double_backward, lib=LIBRARY)


def region_sums(
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
    """``(loss, sums, truth)`` of the fastest way that supports the arguments, with gradients."""
    arguments = (
        input, target, weight, offset, ignore_index, reduction, label_smoothing, gamma, squared, align_corners
    )  # fmt: skip
    if backends.is_transformed(input):
        implementations.check_labels_outside_transforms(target, input.shape[1], ignore_index, weight, offset)
        return reference_region.region_sums(*arguments)[:3]
    if is_eager(input, target, weight, offset):
        return EagerRegionSums.apply(*arguments)[:3]
    return torch.ops.cawa_fast.region_sums(*arguments)[:3]

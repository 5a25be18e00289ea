"""Fake implementations and derivatives of ``torch.ops.cawa_fast``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import reference
from . import implementations
from .backends import Saved, is_eager, saves, statistics_size
from .library import LIBRARY

# ---------------------------------------------------------------------------------- fake implementations (shapes only)


@torch.library.register_fake("cawa_fast::cross_entropy", lib=LIBRARY)
def _(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    gamma: float,
    align_corners: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = reference.compute_dtype(input.dtype)
    loss = input.new_empty(target.shape if reduction == "none" else (), dtype=dtype)
    saved = input.new_empty(0)
    kind = saves(input, target, reduction, with_grad)
    if kind is Saved.GRADIENT:
        saved = torch.empty_like(input)
    elif kind is Saved.STATISTICS:
        saved = input.new_empty(statistics_size(input, target, gamma, align_corners), dtype=torch.float32)
    return loss, input.new_empty(input.shape[1], dtype=dtype), saved


@torch.library.register_fake("cawa_fast::cross_entropy_backward", lib=LIBRARY)
def _(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    scale: Tensor,
    saved: Tensor,
    ignore_index: int,
    label_smoothing: float,
    gamma: float,
    align_corners: bool,
) -> Tensor:
    return torch.empty_like(input)


@torch.library.register_fake("cawa_fast::confusion_matrix", lib=LIBRARY)
def _(input: Tensor, target: Tensor, num_classes: int, ignore_index: int, align_corners: bool) -> Tensor:
    return input.new_empty((num_classes, num_classes), dtype=torch.int64)


@torch.library.register_fake("cawa_fast::cam_counts", lib=LIBRARY)
def _(
    cam: Tensor, target: Tensor, tau: float, normalize: str, classes: str, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    tp, fp, fn = (cam.new_empty(cam.shape[1], dtype=torch.int64) for _ in range(3))
    return tp, fp, fn


# ------------------------------------------------------------------------------------------------------- autograd


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, target, weight, offset, ignore_index, reduction, label_smoothing, gamma, align_corners, with_grad = inputs
    _, scale, saved = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, target, weight, offset, scale, saved)
    ctx.options = ignore_index, label_smoothing, gamma, align_corners
    ctx.has_grad = saves(input, target, reduction, with_grad) is Saved.GRADIENT


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    _save_for_backward(ctx, inputs, output)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    input, target, weight, offset, scale, saved = ctx.saved_tensors
    # The caller may modify the gradient, so that only one backward pass may return it. Any other computes its own.
    # pop() is atomic: several threads may run backward at once.
    if not torch.is_grad_enabled() and vars(ctx).pop("has_grad", False):
        if saved.is_cuda and type(saved) is Tensor:
            result = saved.data  # .data bypasses the version counter; no later backward pass reads this tensor
            weight, offset = (implementations.per_class(values, input) for values in (weight, offset))
            torch.ops.cawa_fast_cuda.cross_entropy_rescale_(
                result, grad.to(torch.float32), input, target, weight, offset, scale, *ctx.options[:3]
            )
            return result, *(None,) * 9
        scaled = _scaled(saved, grad)
        if scaled is not None:
            return scaled, *(None,) * 9
    # With gradients enabled the caller wants a second derivative, for which the operator raises an error.
    directly = not torch.is_grad_enabled() and is_eager(grad, input, target, weight, offset)
    compute = implementations.compute_cross_entropy_backward if directly else torch.ops.cawa_fast.cross_entropy_backward
    grad_input = compute(grad, input, target, weight, offset, scale, saved, *ctx.options)
    return grad_input, *(None,) * 9


class EagerCrossEntropy(torch.autograd.Function):
    """``cawa_fast::cross_entropy`` and its derivative for eager tensors, see :func:`~cawa_fast._ops.backends.is_eager`.

    The derivative that ``torch.library`` registers takes five times as long on the host.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = implementations.compute_cross_entropy(*inputs)
        _save_for_backward(ctx, inputs, output)
        return output[0]

    backward = staticmethod(_backward)


def _scaled(grad_input: Tensor, grad: Tensor) -> Tensor | None:
    """On CPUs: ``grad_input`` times the upstream gradient, in place if possible; None if rounding would differ."""
    if type(grad_input) is not Tensor:  # a traced graph must not modify tensors in place
        return None if grad_input.dtype == torch.bfloat16 else grad_input * grad
    grad_input = grad_input.data
    factor = grad.item()
    if factor == 1:  # the usual case, loss.backward()
        return grad_input
    # A bfloat16 gradient must not be rounded twice. Scaling by a power of two is exact.
    if grad_input.dtype == torch.bfloat16 and abs(math.frexp(factor)[0]) != 0.5:
        return None
    return grad_input.mul_(grad)


def _no_double_backward(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(
        "cawa_fast.cross_entropy has no second derivative; for double backward use "
        "torch.nn.functional.interpolate and torch.nn.functional.cross_entropy"
    )


torch.library.register_autograd("cawa_fast::cross_entropy", _backward, setup_context=_setup_context, lib=LIBRARY)
torch.library.register_autograd("cawa_fast::cross_entropy_backward", _no_double_backward, lib=LIBRARY)

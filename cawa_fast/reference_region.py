"""The specification of region losses in plain PyTorch, as :mod:`cawa_fast.reference` for the other operators.

Shapes: ``N`` images, ``C`` classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Soft sums of each class over the valid pixels of each image; returns ``(loss, sums, truth, scale)``.

    .. math:: I_c = \sum_p p_c [y = c], \quad P_c = \sum_p p_c \text{ or } \sum_p p_c^2, \quad T_c = \#\{p : y = c\},
              \quad p = \mathrm{softmax}(z + b)

    ``sums`` ``(N, 2, C)`` holds I and P, ``truth`` ``(N, C)`` int64 holds T. ``loss`` ``()`` and ``scale`` ``(C,)`` are
    those of :func:`cawa_fast.reference.cross_entropy`, to which the arguments belong.

    Example:
        >>> logits, target = torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 0, 1, 255]]])
        >>> _, sums, truth, _ = region_sums(logits, target, None, None, 255, "mean", 0.0, 0.0, False, False)
        >>> sums.tolist(), truth.tolist()
        ([[[1.0, 0.5], [1.5, 1.5]]], [[2, 1]])
    """
    loss, scale = reference.cross_entropy(
        input, target, weight, offset, ignore_index, reduction, label_smoothing, gamma, align_corners
    )
    probability, one_hot = _probabilities(input, target, offset, ignore_index, align_corners)
    pixels = tuple(range(2, probability.dim()))
    sums = (probability * one_hot).sum(pixels), (probability.square() if squared else probability).sum(pixels)
    return loss, torch.stack(sums, 1), one_hot.to(torch.int64).sum(pixels), scale


def region_sums_backward(
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
    r"""Gradient of :func:`region_sums` with respect to ``input``, in its dtype and memory format.

    With the upstream gradients ``a`` and ``b`` of I and P, ``grad_sums`` ``(N, 2, C)``, it adds to the gradient of the
    loss

    .. math:: p_c \Bigl(h_c - \sum_k h_k p_k\Bigr), \quad h_c = a_c [y = c] + b_c \; (2 b_c p_c \text{ if squared})

    Example:
        >>> logits, target, scale = torch.zeros(1, 2, 1, 1), torch.tensor([[[0]]]), torch.ones(2)
        >>> sums = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])  # the derivative of I_0 + I_1
        >>> options = (None, None, scale, -100, 0.0, 0.0, False, False)
        >>> region_sums_backward(torch.zeros(()), sums, logits, target, *options).flatten()
        tensor([ 0.2500, -0.2500])
    """
    of_loss = reference.cross_entropy_backward(
        grad, input, target, weight, offset, scale, ignore_index, label_smoothing, gamma, align_corners
    )
    probability, one_hot = _probabilities(input, target, offset, ignore_index, align_corners)
    shape = (*grad_sums.shape[::2], *[1] * (probability.dim() - 2))
    a, b = (part.reshape(shape).to(probability.dtype) for part in grad_sums.unbind(1))
    h = a * one_hot + (2 * b * probability if squared else b)
    result = probability * (h - (h * probability).sum(1, keepdim=True))
    if result.shape != input.shape:
        result = reference.resize_adjoint(result, (input.shape[-2], input.shape[-1]), align_corners)
    # The sum is rounded once.
    return torch.empty_like(input).copy_(of_loss.to(result.dtype) + result)


def _probabilities(
    input: Tensor, target: Tensor, offset: Tensor | None, ignore_index: int, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """The probabilities of all classes and the labels as one-hot vectors, both 0 where not valid."""
    logits = reference.label_resolution(input, target, offset, align_corners)
    labels, valid = reference.valid_labels(target, logits.shape[1], ignore_index)
    one_hot = F.one_hot(labels, logits.shape[1]).movedim(-1, 1) * valid.unsqueeze(1)
    return logits.softmax(1).masked_fill(~valid.unsqueeze(1), 0), one_hot.to(logits.dtype)

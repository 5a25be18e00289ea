"""Rules, from the counts of a validation pass to class weights: CAWASeg's, and two baselines that need only recall.

:class:`cawa_fast.AdaptiveClassWeights` counts, and calls :func:`next_weights` once per step. Counts, sums over
processes and state are the same for all rules, so that a comparison of rules compares nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _validate

RATIOS = ("paper", "smoothed", "none")

RecallRule = Callable[[Tensor], Tensor]
"""From the recall ``(K,)`` float64 of the classes with ground truth to their raw weights ``(K,)``, at least 0."""

# Sinha et al. divide by the accuracy of the worst class. This term keeps the quotient finite while it is 0.
_BIAS_EPS = 0.01

# --------------------------------------------------------------------------------------------- CAWASeg, Eq. 2 to 9


class WeightUpdate(NamedTuple):
    """Results of one step, each ``(C,)`` float64.

    Attributes:
        iou: in ``[0, 1]``, Eq. 3; NaN for a class without ground truth.
        pixel_accuracy: in ``[0, 1]``, Eq. 4; NaN for a class without ground truth.
        csps: in ``[0, 1]``, Eq. 2; NaN for a class without ground truth.
        base_weight: at least 0, Eq. 5; NaN for a class that has neither ground truth nor a held CSPS, or no training
            pixels.
        ratio_weight: at least 0, Eq. 6; NaN as ``base_weight``.
        weight: at least 0, Eq. 9; 1 for a class without ground truth or training pixels that is not held.
    """

    iou: Tensor
    pixel_accuracy: Tensor
    csps: Tensor
    base_weight: Tensor
    ratio_weight: Tensor
    weight: Tensor


def base_weight(csps: Tensor, counts: Tensor, eps: float) -> Tensor:
    r"""Eq. 5: :math:`BW_i = \log(1 + \sum_j CSPS_j / (CSPS_i + eps)) \cdot \log(1 + \sum_j n_j / (n_i + eps))`.

    ``csps`` and ``counts`` (pixels) are ``(C,)``, floating, at least 0; so is the result.

    Example:
        >>> base_weight(torch.tensor([0.9, 0.3]), torch.tensor([90.0, 10.0]), 1e-6)
        tensor([0.6331, 3.8593])
    """
    return _log_rarity(csps, eps) * _log_rarity(counts, eps)


def _log_rarity(value: Tensor, eps: float) -> Tensor:
    # The quotient overflows if both the value and eps are almost 0. Infinity times a factor of 0 would be NaN.
    return torch.log1p((value.sum() / (value + eps)).clamp_max(torch.finfo(value.dtype).max))


def ratio_weight(csps: Tensor, last_csps: Tensor, ratio: str, eps: float, ratio_eps: float) -> Tensor:
    """Eq. 6, ``(C,)``: the ratio of CSPS to the CSPS of the last step. 1 where there is no last value (NaN).

    ``ratio="paper"``: ``csps / (last_csps + eps)``. ``"smoothed"``: ``(csps + ratio_eps) / (last_csps + ratio_eps)``.
    ``"none"``: 1.

    Example:
        >>> ratio_weight(torch.tensor([0.9, 0.3]), torch.tensor([0.6, torch.nan]), "paper", 1e-6, 0.01)
        tensor([1.5000, 1.0000])
    """
    if ratio == "none":
        return torch.ones_like(csps)
    if ratio == "smoothed":
        value = (csps + ratio_eps) / (last_csps + ratio_eps)
    else:
        value = csps / (last_csps + eps)
    return value.where(~last_csps.isnan(), 1.0)


def cawa_weights(
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
    """Eq. 2 to 9 in float64: the class weights of the next epoch.

    Classes without ground truth, and those without pixels in ``class_counts``, are left out of the sums of Eq. 5 and of
    the mean of Eq. 9, and get weight 1. A class with ``held`` keeps its ``last_weight`` and enters the sums with its
    last CSPS, if it has one. The other classes share the remainder, so that the mean stays 1.

    Args:
        counts: ``(3, C)`` int64 or float64, at least 0: tp, fp, fn of the whole validation set, in pixels.
        class_counts: ``(C,)`` pixels per class for Eq. 5; None: the ground-truth pixels in ``counts``.
        last_csps: ``(C,)`` CSPS of the last step, NaN where there is none.
        delta: weight of the IoU in CSPS, in ``[0, 1]``.
        eps: added to the divisors of Eq. 5 and 6, positive.
        ratio: one of :data:`RATIOS`; see :func:`ratio_weight`.
        ratio_eps: see :func:`ratio_weight`, positive.
        w_min: lower clip of Eq. 8, at least 0.
        w_max: upper clip of Eq. 8, at least ``w_min``.
        last_weight: ``(C,)`` weights of the last step; needed with ``held``.
        held: ``(C,)`` bool, or None.

    Example:
        >>> counts = torch.tensor([[1, 1], [1, 0], [0, 1]])  # tp, fp, fn of two classes
        >>> options = {"delta": 0.9, "eps": 1e-6, "ratio": "none", "ratio_eps": 0.01, "w_min": 0.1, "w_max": 20.0}
        >>> cawa_weights(counts, class_counts=None, last_csps=torch.full((2,), torch.nan), **options).weight
        tensor([1.1763, 0.8237], dtype=torch.float64)
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
    trained = _trained(class_counts, seen)
    scored = ~known.isnan() & trained
    base[scored] = base_weight(known[scored], pixels[scored], eps)  # Eq. 5
    ratios[scored] = ratio_weight(known[scored], last_csps[scored], ratio, eps, ratio_eps)  # Eq. 6
    new = seen & ~kept & trained
    clipped = (base * ratios)[new].clamp(w_min, min(w_max, torch.finfo(base.dtype).max))  # Eq. 7 and 8
    weight = normalized(clipped, new, last_weight, held)  # Eq. 9
    return WeightUpdate(iou.where(seen, torch.nan), accuracy, csps.where(seen, torch.nan), base, ratios, weight)


def _trained(class_counts: Tensor | None, like: Tensor) -> Tensor:
    """``(C,)`` bool: which classes have training pixels. Eq. 5 would give the others by far the largest weight."""
    return torch.ones_like(like) if class_counts is None else class_counts > 0


def normalized(raw: Tensor, new: Tensor, last_weight: Tensor | None, held: Tensor | None) -> Tensor:
    """Eq. 9: weights ``(C,)`` of mean 1. If all of ``raw`` are 0, the classes in ``new`` get equal weights.

    Args:
        raw: ``(K,)`` float64, at least 0: clipped weights of the K classes in ``new``.
        new: ``(C,)`` bool: the classes that get a new weight.
        last_weight: ``(C,)`` weights of the last step, or None.
        held: ``(C,)`` bool: the classes that keep ``last_weight``, or None. The classes in ``new`` share the remainder.

    Returns:
        ``(C,)``; 1 for classes that are neither new nor held.

    Example:
        >>> normalized(torch.tensor([1.0, 3.0]), torch.tensor([True, True, False]), None, None)
        tensor([0.5000, 1.5000, 1.0000])
    """
    weight = raw.new_ones(new.shape)
    share = float(new.sum())
    if last_weight is not None and held is not None:
        weight[held] = last_weight.double()[held]
        share = max(share + float((1 - weight[held]).sum()), 0.0)
    if len(raw):
        # Relative to the largest, so that no sum vanishes or overflows.
        raw = raw / raw.max() if raw.max() > 0 else torch.ones_like(raw)
        weight[new] = raw * (share / raw.sum())
    return weight


# -------------------------------------------------------------------------------------------------------- baselines


def recall_weight(accuracy: Tensor) -> Tensor:
    r""":math:`w_i = 1 - R_i`: recall loss (Tian et al. 2022), :math:`R_i` the class's recall.

    The paper takes the recall of each training batch; see :class:`cawa_fast.RecallLoss`. Here it is that of the last
    validation pass: less noisy, and later.

    Args:
        accuracy: ``(K,)`` recall, pixel accuracy by another name, in ``[0, 1]``.

    Example:
        >>> recall_weight(torch.tensor([0.75, 0.25, 0.0]))
        tensor([0.2500, 0.7500, 1.0000])
    """
    return 1 - accuracy


def difficulty_weight(accuracy: Tensor, gamma: float | None = None) -> Tensor:
    r""":math:`w_i = (1 - A_i)^\gamma`: class-wise difficulty-balanced loss (Sinha et al. 2020).

    As in the paper, :math:`A_i` is the accuracy of the last validation pass. Its exponent is called :math:`\tau`
    there; the paper's choice, the dynamic one, grows from 1 (all classes equally hard) to 2:

    .. math:: \gamma = 2\, \mathrm{sigmoid}\Bigl(\frac{\max_j A_j}{\min_j A_j + 0.01} - 1\Bigr)

    Args:
        accuracy: ``(K,)`` in ``[0, 1]``.
        gamma: at least 0; None is the dynamic one. With 1 it is :func:`recall_weight`.

    Example:
        >>> difficulty_weight(torch.tensor([0.75, 0.25, 0.0]), gamma=2.0)
        tensor([0.0625, 0.5625, 1.0000])
    """
    if gamma is not None and not 0 <= _validate.as_number("difficulty_weight", "gamma", gamma) < math.inf:
        raise ValueError(f"difficulty_weight: gamma must be finite and at least 0, or None, got {gamma!r}")
    if gamma is None:
        bias = accuracy.max() / (accuracy.min() + _BIAS_EPS) - 1
        return (1 - accuracy) ** (2 * bias.sigmoid())
    return (1 - accuracy) ** gamma


RECALL_RULES: dict[str, RecallRule] = {"recall": recall_weight, "difficulty": difficulty_weight}
RULES = ("cawa", *RECALL_RULES)


def next_weights(rule: str | RecallRule, counts: Tensor, **options: Any) -> WeightUpdate:
    """The next weights by ``rule``; ``options`` are those of :func:`cawa_weights`.

    With a baseline's rule ``base_weight`` is its formula and ``ratio_weight`` is 1. The weights are the formula divided
    by its mean, as in Eq. 9, and are not clipped. IoU, accuracy and CSPS do not depend on the rule.
    """
    update = cawa_weights(counts, **options)
    if rule == "cawa":
        return update
    formula = RECALL_RULES[rule] if isinstance(rule, str) else rule
    held = options.get("held")
    new = ~update.pixel_accuracy.isnan() & _trained(options["class_counts"], update.pixel_accuracy > 0)
    if held is not None:
        new &= ~held
    recall = update.pixel_accuracy[new]
    # All classes may be held. Rules that look for the best and the worst class need at least one.
    values = formula(recall) if len(recall) else recall
    try:
        raw = torch.as_tensor(values, dtype=recall.dtype, device=recall.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"AdaptiveClassWeights: rule must return a tensor ({len(recall)},), one weight per class, got "
            f"{_validate.described(values)}"
        ) from None
    if raw.shape != recall.shape or not bool(((raw >= 0) & raw.isfinite()).all()):
        raise ValueError(
            f"AdaptiveClassWeights: rule must return one finite value of at least 0 for each of the {len(recall)} "
            f"classes with ground truth, got {raw.tolist()}"
        )
    base = torch.full_like(update.weight, torch.nan)
    ratio = base.clone()
    base[new], ratio[new] = raw, 1.0
    weight = normalized(raw, new, options.get("last_weight"), held)
    return update._replace(base_weight=base, ratio_weight=ratio, weight=weight)

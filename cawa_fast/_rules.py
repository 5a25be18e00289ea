"""From the counts of a validation pass to class weights: CAWASeg's rule, and two rivals that need only recall.

:class:`cawa_fast.AdaptiveClassWeights` counts, and calls :func:`update_weights` once a step. The counts, the sums over
processes and the state are the same for all rules, so that rules compare like with like.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from .reference import WeightUpdate

RULES = ("cawa", "recall", "difficulty")

# Sinha et al.: keeps the quotient of their dynamic exponent finite while the worst class is at 0.
_BIAS_EPS = 0.01


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
    if gamma is None:
        bias = accuracy.max() / (accuracy.min() + _BIAS_EPS) - 1
        return (1 - accuracy) ** (2 * bias.sigmoid())
    return (1 - accuracy) ** gamma


def update_weights(rule: str, gamma: float | None, counts: Tensor, **options: Any) -> WeightUpdate:
    """The next weights by ``rule``; ``options`` are those of :func:`cawa_fast.reference.update_weights`.

    With a rival's rule ``base_weight`` is its formula, ``ratio_weight`` is 1, and the weights are the formula's over
    their mean, as Eq. 9 has it: not clipped. IoU, accuracy and CSPS are what they always are.
    """
    update = reference.update_weights(counts, **options)
    if rule == "cawa":
        return update
    held = options.get("held")
    new = ~update.pixel_accuracy.isnan() if held is None else ~update.pixel_accuracy.isnan() & ~held
    accuracy = update.pixel_accuracy[new]
    raw = recall_weight(accuracy) if rule == "recall" else difficulty_weight(accuracy, gamma)
    base = torch.full_like(update.weight, torch.nan)
    ratio = base.clone()
    base[new], ratio[new] = raw, 1.0
    weight = reference.normalized(raw, new, options.get("last_weight"), held)
    return update._replace(base_weight=base, ratio_weight=ratio, weight=weight)

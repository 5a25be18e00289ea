"""Scores of classes from a part of the validation set: ratio estimates with their standard errors, in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_UNKNOWN_VARIANCE = 0.25
"""Of a score that one image alone says: the largest that values in [0, 1] can have."""


class Estimate(NamedTuple):
    """What a sample of images says of the whole set.

    Attributes:
        counts: ``(3, C)`` float64: estimated tp, fp, fn of the whole set.
        error: ``(C,)`` float64, at least 0: standard error of CSPS; NaN where the sample does not have the class.
    """

    counts: Tensor
    error: Tensor


def estimate(rows: Tensor, probability: Tensor, delta: float) -> Estimate:
    r"""Horvitz-Thompson totals of images that were drawn with known probabilities, and the error of their ratios.

    An image that is drawn with probability :math:`\pi_i` stands for :math:`1/\pi_i` images:
    :math:`\widehat{TP} = \sum_i TP_i/\pi_i`, and so on. IoU, PA and CSPS are ratios of such totals (a common factor
    does not matter). The variance of CSPS is the jackknife's: how far it moves when one image is left out (Wolter,
    Introduction to Variance Estimation, 2007, chapter 4; with the correction for a finite population),

    .. math:: V = \frac{m-1}{m} \sum_i (1 - \pi_i) \bigl(CSPS_{(-i)} - CSPS\bigr)^2

    over the :math:`m` images that have the class. Linearised formulas leave out that an image with a large part of the
    class's pixels pulls the ratio towards itself, and came out up to half too small with few images. One image alone
    says nothing about the spread; its variance counts as 0.25.

    Args:
        rows: ``(n, 3, C)`` integers: tp, fp, fn of each drawn image; all zero for one that was not observed.
        probability: ``(n,)`` float64 in ``(0, 1]``: with which each was drawn.
        delta: share of the IoU in CSPS.

    Example:
        >>> rows = torch.tensor([[[3], [1], [0]], [[1], [1], [2]]])  # two images, one class
        >>> result = estimate(rows, torch.tensor([0.5, 0.5]), delta=1.0)
        >>> result.counts.squeeze().tolist(), round(result.error.item(), 4)
        ([8.0, 4.0, 4.0], 0.1768)
    """
    tp, fp, fn = rows.double().unbind(1)
    probability = probability.double().unsqueeze(1)
    union, truth = tp + fp + fn, tp + fn
    hits, unions, truths = ((x / probability).sum(0) for x in (tp, union, truth))
    counts = torch.stack([(x / probability).sum(0) for x in (tp, fp, fn)])

    moved = torch.zeros_like(tp)
    for share, whole, total in ((delta, union, unions), (1 - delta, truth, truths)):
        ratio, rest = hits / total, total - whole / probability
        without = (hits - tp / probability) / rest
        moved += share * (without.where(rest > 0, 0) - ratio)  # nothing is left: as far as it can
    there = union > 0
    images = there.sum(0)
    spread = ((1 - probability) * moved**2).where(there, 0).sum(0)
    alone = ((1 - probability) * there).sum(0) * _UNKNOWN_VARIANCE
    variance = torch.where(images > 1, spread * (images - 1) / images, alone)
    return Estimate(counts, variance.sqrt().where(truths > 0, torch.nan))


class Average(NamedTuple):
    """A moving average over steps: discounted counts ``(3, C)``, and the discounted variance of CSPS ``(C,)``."""

    counts: Tensor
    variance: Tensor

    def add(self, new: Estimate, momentum: float) -> Average:
        """``counts <- momentum * counts + new``: a class that is missing this time keeps what is known of it.

        Counts are averaged and not scores: a step that saw little of a class has little weight in its score. CSPS is
        about the mean of the steps' with weights as their unions, so the variances add with these weights squared.
        """
        union = new.counts.sum(0)
        variance = (union * new.error).nan_to_num(0) ** 2
        return Average(momentum * self.counts + new.counts, momentum**2 * self.variance + variance)

    def estimate(self) -> Estimate:
        """The average as an estimate."""
        return Estimate(self.counts, self.variance.sqrt() / self.counts.sum(0))

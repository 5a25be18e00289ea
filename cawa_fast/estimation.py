"""Class scores estimated from a sample of the validation images, with standard errors, in float64.

Shapes in this module: ``n`` images in the sample, ``C`` classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _validate

_UNKNOWN_VARIANCE = 0.25
"""Variance of a score that is known from one image only: the largest variance of values in [0, 1]."""


class Estimate(NamedTuple):
    """Totals of the whole validation set, estimated from a sample of its images.

    The equations are those of :func:`estimate`.

    Attributes:
        counts: ``(3, C)`` float64, at least 0: estimated tp, fp and fn, in pixels of the whole set.
        error: ``(C,)`` float64, at least 0: standard error of CSPS, in units of CSPS, which lies in ``[0, 1]``. NaN for
            a class without ground truth in the sample.

    Example:
        >>> result = Estimate(torch.tensor([[8.0], [4.0], [4.0]]), torch.tensor([0.18]))
        >>> (result.counts[0] / result.counts.sum(0)).item()  # IoU
        0.5
    """

    counts: Tensor
    error: Tensor


def estimate(rows: Tensor, probability: Tensor, delta: float) -> Estimate:
    r"""Horvitz-Thompson totals of images drawn with known probabilities, and the standard error of the resulting CSPS.

    An image drawn with probability :math:`\pi_i` represents :math:`1/\pi_i` images of the set:

    .. math:: \widehat{TP} = \sum_i TP_i / \pi_i, \quad \widehat{FP} = \sum_i FP_i / \pi_i, \quad
        \widehat{FN} = \sum_i FN_i / \pi_i

    IoU, PA and CSPS are ratios of such totals, in which a common factor cancels. The variance of CSPS is estimated with
    the jackknife, which measures how far CSPS moves when one image is left out, with the correction for a finite
    population:

    .. math:: V = \frac{m-1}{m} \sum_i (1 - \pi_i) \bigl(CSPS_{(-i)} - CSPS\bigr)^2

    over the :math:`m` images in which the class has TP, FP or FN. A ratio for which no pixels are left without the
    image counts as 0. If :math:`m = 1` there is no spread to measure; :math:`V` is then :math:`0.25\,(1 - \pi_i)`,
    where 0.25 is the largest variance of values in ``[0, 1]``.

    Linearised variance formulas do not fit here: they ignore that an image with a large part of the class's pixels
    pulls the ratio towards its own. With few images their result was up to half too small.

    Sources: Horvitz and Thompson 1952; Wolter, Introduction to Variance Estimation, 2007, chapter 4; CSPS: CAWASeg, Eq.
    2.

    Args:
        rows: ``(n, 3, C)`` integers, at least 0: tp, fp and fn of each drawn image, in pixels; all zero for an image
            that was not observed.
        probability: ``(n,)`` float64 in ``(0, 1]``: the probability with which each image was drawn.
        delta: weight of the IoU in CSPS, in ``[0, 1]``.

    Returns:
        :class:`Estimate`.

    Raises:
        TypeError: an argument has another type. The caller checks the values.

    Example:
        >>> rows = torch.tensor([[[3], [1], [0]], [[1], [1], [2]]])  # two images, one class
        >>> result = estimate(rows, torch.tensor([0.5, 0.5]), delta=1.0)
        >>> result.counts.squeeze().tolist(), round(result.error.item(), 4)
        ([8.0, 4.0, 4.0], 0.1768)
    """
    _validate.check_tensor("estimate", "rows", rows, "a tensor (n, 3, C)")
    _validate.check_tensor("estimate", "probability", probability, "a tensor (n,)")
    delta = _validate.as_number("estimate", "delta", delta)
    tp, fp, fn = rows.double().unbind(1)
    probability = probability.double().unsqueeze(1)
    union, truth = tp + fp + fn, tp + fn
    hits, unions, truths = ((x / probability).sum(0) for x in (tp, union, truth))
    counts = torch.stack([(x / probability).sum(0) for x in (tp, fp, fn)])

    moved = torch.zeros_like(tp)
    for share, whole, total in ((delta, union, unions), (1 - delta, truth, truths)):
        ratio, rest = hits / total, total - whole / probability
        without = (hits - tp / probability) / rest
        moved += share * (without.where(rest > 0, 0) - ratio)  # a ratio without pixels counts as 0
    there = union > 0
    images = there.sum(0)
    spread = ((1 - probability) * moved**2).where(there, 0).sum(0)
    alone = ((1 - probability) * there).sum(0) * _UNKNOWN_VARIANCE
    variance = torch.where(images > 1, spread * (images - 1) / images, alone)
    return Estimate(counts, variance.sqrt().where(truths > 0, torch.nan))


class Average(NamedTuple):
    """Moving average of estimates over steps.

    Attributes:
        counts: ``(3, C)`` float64, at least 0: discounted sum of tp, fp and fn, in pixels.
        variance: ``(C,)`` float64, at least 0: discounted sum of the squared products of union and standard error.

    Example:
        >>> average = Average(torch.zeros(3, 1), torch.zeros(1))
        >>> new = Estimate(torch.tensor([[8.0], [4.0], [4.0]]), torch.tensor([0.1]))
        >>> average = average.add(new, momentum=0.5).add(new, momentum=0.5)
        >>> average.counts.squeeze().tolist(), round(average.estimate().error.item(), 4)
        ([12.0, 6.0, 6.0], 0.0745)
    """

    counts: Tensor
    variance: Tensor

    def add(self, new: Estimate, momentum: float) -> Average:
        r"""The average after one more step.

        .. math:: counts \leftarrow \mu \cdot counts + \widehat{counts}, \quad
            variance \leftarrow \mu^2 \cdot variance + (union \cdot error)^2, \\
            union = \widehat{TP} + \widehat{FP} + \widehat{FN}

        A class that is missing in this step keeps what earlier steps counted. The average is over counts and not over
        scores, so that a step that saw few pixels of a class has little influence on its score. CSPS is then
        approximately the mean of the steps' CSPS, weighted by their unions; the variances add with the squares of these
        weights.

        Args:
            new: estimate of this step. A standard error of NaN counts as 0.
            momentum: :math:`\mu`, in ``[0, 1)``.

        Returns:
            A new :class:`Average`; this one is not modified.
        """
        union = new.counts.sum(0)
        variance = (union * new.error).nan_to_num(0) ** 2
        return Average(momentum * self.counts + new.counts, momentum**2 * self.variance + variance)

    def estimate(self) -> Estimate:
        r"""The average as an :class:`Estimate`.

        Its error is :math:`\sqrt{variance} / (TP + FP + FN)`, NaN for a class without TP, FP and FN.
        """
        return Estimate(self.counts, self.variance.sqrt() / self.counts.sum(0))

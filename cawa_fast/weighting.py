r"""Static class weights: baselines for adaptive weights, each computed from the number of pixels per class.

Every function takes ``counts`` ``(C,)``: the pixels per class in the training set, as a tensor of any dtype or a
sequence of numbers, each 0 or in ``[1e-18, 1e18]``, not all zero. It returns ``(C,)`` float32 on the device of
``counts``. A class without pixels is left out of all sums, means and medians and gets weight 1, which no pixel uses.
Each formula keeps the scale of its source; the scale cancels in losses with ``reduction="mean"``.

Symbols: :math:`n_i` pixels of class i, :math:`p_i = n_i / \sum_j n_j` their share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import _validate

__all__ = [
    "effective_number",
    "enet",
    "enet_power",
    "inverse_frequency",
    "log_frequency",
    "median_frequency",
    "power",
    "uniform",
]

Counts = Tensor | Sequence[int] | Sequence[float]
_MOST = 1e18


def uniform(counts: Counts) -> Tensor:
    """The same weight for every class: :math:`w_i = 1`.

    Args:
        counts: ``(C,)`` pixels per class.

    Returns:
        ``(C,)`` float32, all ones.

    Raises:
        ValueError: ``counts`` is not ``(C,)``, finite, not negative and not all zero.

    Example:
        >>> uniform([90, 10])
        tensor([1., 1.])
    """
    return _per_class(counts, torch.ones_like)


def inverse_frequency(counts: Counts) -> Tensor:
    r"""Inverse frequency: :math:`w_i = \sum_j n_j / (C n_i)`. All classes then have the same total weight.

    Source: scikit-learn, ``class_weight="balanced"``. ``C`` counts the classes that have pixels.

    Args:
        counts: ``(C,)`` pixels per class.

    Returns:
        ``(C,)`` float32, positive.

    Raises:
        ValueError: ``counts`` is not ``(C,)``, finite, not negative and not all zero.

    Example:
        >>> inverse_frequency([75, 25])
        tensor([0.6667, 2.0000])
    """
    return _per_class(counts, lambda n: n.sum() / (n.numel() * n))


def median_frequency(counts: Counts) -> Tensor:
    r"""Median-frequency balancing: :math:`w_i = \mathrm{median}_j(p_j) / p_i`.

    Source: Eigen and Fergus 2015. They divide the pixels of a class by the pixels of the images that contain it. That
    needs more than counts per class; here the share of all pixels is used.

    Args:
        counts: ``(C,)`` pixels per class.

    Returns:
        ``(C,)`` float32, positive.

    Raises:
        ValueError: ``counts`` is not ``(C,)``, finite, not negative and not all zero.

    Example:
        >>> median_frequency([80, 15, 5])
        tensor([0.1875, 1.0000, 3.0000])
    """
    return _per_class(counts, lambda n: n.quantile(0.5) / n)


def effective_number(counts: Counts, beta: float = 0.999999) -> Tensor:
    r"""Class-balanced weights: :math:`w_i \propto (1 - \beta) / (1 - \beta^{n_i})`, normalised to mean 1.

    Source: Cui et al. 2019. The paper's values of 0.99 to 0.9999 are for counts of images; counts of pixels need a
    larger ``beta``.

    Args:
        counts: ``(C,)`` pixels per class.
        beta: in ``[0, 1)``. 0 gives uniform weights; towards 1 the weights approach inverse frequency. Beyond about
            ``1 / (1 - beta)`` pixels, more pixels of a class hardly change its weight.

    Returns:
        ``(C,)`` float32, positive, mean 1 over the classes that have pixels.

    Raises:
        ValueError: ``beta`` lies outside ``[0, 1)``, or ``counts`` is not ``(C,)``, finite, not negative and not all
            zero.

    Example:
        >>> effective_number([3, 1], beta=0.5)
        tensor([0.7273, 1.2727])
    """
    if not 0 <= _validate.as_number("effective_number", "beta", beta) < 1:
        raise ValueError(f"effective_number: beta must lie in [0, 1), got {beta}")

    def weights(n: Tensor) -> Tensor:
        # 1 - beta^n as -expm1(n log beta): no cancellation when n (1 - beta) is small.
        log_beta = torch.log(torch.tensor(beta, dtype=n.dtype, device=n.device))
        raw = (1 - beta) / -torch.expm1(n * log_beta)
        return raw / raw.mean()

    return _per_class(counts, weights)


def enet(counts: Counts, c: float = 1.02) -> Tensor:
    r"""ENet's weights: :math:`w_i = 1 / \ln(c + p_i)`.

    Source: ENet, Paszke et al. 2016.

    Args:
        counts: ``(C,)`` pixels per class.
        c: finite and greater than 1. It bounds the weights: with 1.02 they lie in ``[1.42, 50.5]``.

    Returns:
        ``(C,)`` float32, positive.

    Raises:
        ValueError: ``c`` is not finite and greater than 1, or ``counts`` is not ``(C,)``, finite, not negative and not
            all zero.

    Example:
        >>> enet([90, 10])
        tensor([1.5330, 8.8239])
    """
    if not 1 < _validate.as_number("enet", "c", c) < math.inf:
        raise ValueError(f"enet: c must be greater than 1{' and finite' if c == math.inf else ''}, got {c}")
    return _per_class(counts, lambda n: 1 / torch.log(c + n / n.sum()))


def log_frequency(counts: Counts) -> Tensor:
    r"""Log frequency: :math:`w_i = \ln(1 + \sum_j n_j / n_i)`.

    Source: CAWASeg, the static factor of Eq. 5, without ``eps``.

    Args:
        counts: ``(C,)`` pixels per class.

    Returns:
        ``(C,)`` float32, at least ln 2.

    Raises:
        ValueError: ``counts`` is not ``(C,)``, finite, not negative and not all zero.

    Example:
        >>> log_frequency([90, 10])
        tensor([0.7472, 2.3979])
    """
    return _per_class(counts, lambda n: torch.log1p(n.sum() / n))


def power(counts: Counts, gamma: float = 0.5) -> Tensor:
    r"""Power of the frequency: :math:`w_i \propto p_i^{-\gamma}`, normalised to mean 1.

    The default, the square root, is the usual compromise between uniform weights (0) and inverse frequency (1): it is
    the static rule to beat (docs/settings.md).

    Source: Mikolov et al. 2013 and Mahajan et al. 2018, who sample by it.

    Args:
        counts: ``(C,)`` pixels per class.
        gamma: finite and at least 0.

    Returns:
        ``(C,)`` float32, positive, mean 1 over the classes that have pixels.

    Raises:
        ValueError: ``gamma`` is not finite and at least 0, or ``counts`` is not ``(C,)``, finite, not negative and not
            all zero.

    Example:
        >>> power([90, 10])
        tensor([0.5000, 1.5000])
    """
    if not 0 <= _validate.as_number("power", "gamma", gamma) < math.inf:
        raise ValueError(f"power: gamma must be finite and at least 0, got {gamma}")

    def weights(n: Tensor) -> Tensor:
        # Relative to the rarest class, in logarithms: no power overflows.
        raw = torch.exp(-gamma * (n / n.min()).log())
        return raw / raw.mean()

    return _per_class(counts, weights)


def enet_power(counts: Counts, gamma: float = 0.5, c: float = 1.02) -> Tensor:
    r"""Power of ENet's weights: :math:`w_i = (1 / \ln(c + p_i))^\gamma`.

    Args:
        counts: ``(C,)`` pixels per class.
        gamma: finite and at least 0. 0 gives uniform weights, 1 :func:`enet`.
        c: as for :func:`enet`.

    Returns:
        ``(C,)`` float32, positive.

    Raises:
        ValueError: ``gamma`` is not finite and at least 0, or as :func:`enet`.

    Example:
        >>> enet_power([90, 10])
        tensor([1.2381, 2.9705])
    """
    if not 0 <= _validate.as_number("enet_power", "gamma", gamma) < math.inf:
        raise ValueError(f"enet_power: gamma must be finite and at least 0, got {gamma}")
    return _per_class(counts, lambda n: enet(n, c).double() ** gamma)


def log_prior(counts: Counts) -> Tensor:
    r"""Logarithm of the class prior: :math:`\ln p_i`. :class:`cawa_fast.LogitAdjustedLoss` adds it to the logits.

    This is not a weight. The logarithm of a class without pixels would be infinite; the class gets the value of the
    rarest class that has pixels.

    Source: Menon et al. 2021, section 5.

    Args:
        counts: ``(C,)`` pixels per class.

    Returns:
        ``(C,)`` float32, at most 0.

    Raises:
        ValueError: ``counts`` is not ``(C,)``, finite, not negative and not all zero.

    Example:
        >>> log_prior([75, 25, 0])
        tensor([-0.2877, -1.3863, -1.3863])
    """
    n = _checked(counts)
    return (n / n.sum()).where(n > 0, n[n > 0].min() / n.sum()).log().float()


def _per_class(counts: Counts, formula: Callable[[Tensor], Tensor]) -> Tensor:
    n = _checked(counts)
    seen = n > 0
    weight = torch.ones_like(n)
    weight[seen] = formula(n[seen])
    return weight.float()


def _checked(counts: Counts) -> Tensor:
    n = _validate.as_counts("", "counts", counts).double()
    if n.dim() != 1 or n.numel() == 0:
        raise ValueError(f"counts must have the shape (C,), one number of pixels per class, got {tuple(n.shape)}")
    if not bool(((n >= 0) & n.isfinite()).all()) or not bool((n > 0).any()):
        raise ValueError(
            f"counts must be finite, not negative and not all zero, got {n.tolist()}; pass pixels per class"
        )
    if n.max() > _MOST or n[n > 0].min() < 1 / _MOST:  # beyond, quotients and sums leave the range of float32
        raise ValueError(
            f"counts must be 0 or lie in [{1 / _MOST:g}, {_MOST:g}], got {n.tolist()}; pass pixels per class"
        )
    return n

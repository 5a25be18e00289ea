"""Static class weights: the rivals of adaptive ones, each from pixels per class to a ``(C,)`` weight.

All take ``counts`` ``(C,)``, pixels per class in the training set (finite, not negative, not all zero), and return
``(C,)`` float32. A class with no pixels is left out of every sum, mean and median and gets weight 1: no pixel has it.
The formulas are the sources' own, scale included; the scale cancels with ``reduction="mean"``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "effective_number",
    "enet",
    "inverse_frequency",
    "log_frequency",
    "median_frequency",
    "uniform",
]

Counts = Tensor | Sequence[int] | Sequence[float]


def uniform(counts: Counts) -> Tensor:
    """``w_i = 1``.

    Example:
        >>> uniform([90, 10])
        tensor([1., 1.])
    """
    return _per_class(counts, torch.ones_like)


def inverse_frequency(counts: Counts) -> Tensor:
    r""":math:`w_i = \sum_j n_j / (C n_i)`: every class has the same total weight (scikit-learn's "balanced").

    Example:
        >>> inverse_frequency([75, 25])
        tensor([0.6667, 2.0000])
    """
    return _per_class(counts, lambda n: n.sum() / (n.numel() * n))


def median_frequency(counts: Counts) -> Tensor:
    r""":math:`w_i = \mathrm{median}_j(f_j) / f_i` (Eigen and Fergus 2015), :math:`f_i` the share of all pixels.

    Example:
        >>> median_frequency([80, 15, 5])
        tensor([0.1875, 1.0000, 3.0000])
    """
    return _per_class(counts, lambda n: n.quantile(0.5) / n)


def effective_number(counts: Counts, beta: float = 0.999999) -> Tensor:
    r""":math:`w_i \propto (1 - \beta) / (1 - \beta^{n_i})`, mean 1 (class-balanced loss, Cui et al. 2019).

    Args:
        counts: pixels per class.
        beta: in ``[0, 1)``. 0 is uniform, towards 1 it becomes inverse frequency; ``1 / (1 - beta)`` is the number of
            pixels beyond which more say little. (The paper's 0.99 to 0.9999 are for counts of images.)

    Raises:
        ValueError: ``beta`` outside ``[0, 1)``.

    Example:
        >>> effective_number([3, 1], beta=0.5)
        tensor([0.7273, 1.2727])
    """
    if not 0 <= beta < 1:
        raise ValueError(f"effective_number: beta must lie in [0, 1), got {beta}")

    def weights(n: Tensor) -> Tensor:
        # 1 - beta^n as -expm1(n log beta): exact where n (1 - beta) is small.
        log_beta = torch.log(torch.tensor(beta, dtype=n.dtype, device=n.device))
        raw = (1 - beta) / -torch.expm1(n * log_beta)
        return raw / raw.mean()

    return _per_class(counts, weights)


def enet(counts: Counts, c: float = 1.02) -> Tensor:
    r""":math:`w_i = 1 / \ln(c + p_i)`, :math:`p_i` the class's share of pixels (ENet, Paszke et al. 2016).

    Args:
        counts: pixels per class.
        c: greater than 1; 1.02 bounds the weights to ``[1.42, 50.5]``.

    Raises:
        ValueError: ``c`` not greater than 1.

    Example:
        >>> enet([90, 10])
        tensor([1.5330, 8.8239])
    """
    if not c > 1:
        raise ValueError(f"enet: c must be greater than 1, got {c}")
    return _per_class(counts, lambda n: 1 / torch.log(c + n / n.sum()))


def log_frequency(counts: Counts) -> Tensor:
    r""":math:`w_i = \ln(1 + \sum_j n_j / n_i)`: the static factor of CAWASeg's base weight (Eq. 5).

    Example:
        >>> log_frequency([90, 10])
        tensor([0.7472, 2.3979])
    """
    return _per_class(counts, lambda n: torch.log1p(n.sum() / n))


def log_prior(counts: Counts) -> Tensor:
    r""":math:`\ln(n_i / \sum_j n_j)`, no weight but what :class:`cawa_fast.LogitAdjustedLoss` adds to the logits.

    A class with no pixels, whose logarithm would be infinite, gets the rarest class's.

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
    n = torch.as_tensor(counts).detach().double()
    if n.dim() != 1 or n.numel() == 0:
        raise ValueError(f"counts must be (C,) pixels per class, got shape {tuple(n.shape)}")
    if not bool(((n >= 0) & n.isfinite()).all()) or not bool((n > 0).any()):
        raise ValueError(f"counts must be finite, not negative and not all zero, got {n.tolist()}")
    return n

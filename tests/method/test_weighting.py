"""The static weights: each formula on a table worked by hand, and in 50-digit decimals for extreme counts."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from cawa_fast import _rules, weighting

EVERY = [getattr(weighting, name) for name in weighting.__all__]


def close(actual, expected, rtol=2e-7):
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32), rtol=rtol, atol=0)


def test_by_hand():
    """60, 30 and 10 pixels of 100."""
    counts = [60, 30, 10]
    close(weighting.uniform(counts), [1, 1, 1])
    close(weighting.inverse_frequency(counts), [100 / 180, 100 / 90, 100 / 30])
    close(weighting.median_frequency(counts), [0.5, 1, 3])
    # ln(1 + 100/60), ln(1 + 100/30), ln 11
    close(weighting.log_frequency(counts), [0.980829253, 1.46633707, 2.39789527])
    close(weighting.enet(counts), [2.07285613, 3.60189369, 8.8238913])  # 1 / ln 1.62, 1.32, 1.12
    # 1 - .9^n = .99820299, .95760884, .65132156; .1 over each is .10018002 .10442677 .15353400, with mean .11938026
    close(weighting.effective_number(counts, beta=0.9), [0.839167395, 0.874740673, 1.28609193])


def test_median_of_an_even_number_is_the_mean_of_the_middle_two():
    close(weighting.median_frequency([1, 3, 5, 11]), [4, 4 / 3, 4 / 5, 4 / 11])


@pytest.mark.parametrize("formula", EVERY)
def test_a_class_without_pixels_has_weight_1_and_changes_no_other(formula):
    without = formula([60, 30, 10])
    assert formula([60, 0, 30, 10, 0]).tolist() == [without[0], 1, without[1], without[2], 1]


@pytest.mark.parametrize("formula", EVERY)
@pytest.mark.parametrize(
    "counts",
    [torch.tensor([60, 30, 10], dtype=d) for d in (torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64)]
    + [(60.0, 30.0, 10.0), np.array([60, 30, 10])],
)
def test_any_kind_of_counts(formula, counts):
    assert formula(counts).equal(formula([60, 30, 10]))


@pytest.mark.parametrize("formula", EVERY)
def test_rare_classes_weigh_no_less(formula):
    weight = formula([10**9, 10**6, 10**3, 1])
    assert weight.isfinite().all()
    assert (weight.diff() >= 0).all()


@pytest.mark.parametrize("formula", [weighting.uniform, weighting.enet, weighting.effective_number])
def test_one_class(formula):
    assert formula([7]).shape == (1,)


def test_enet_is_bounded():
    """1 / ln(1.02 + p) is 50.4983 for p = 0 and 1.42228 for p = 1; another c changes these bounds."""
    weight = weighting.enet([1, 10**12])
    close(weight, [50.4983498, 1.42227783], rtol=1e-6)
    close(weighting.enet([10], c=2.0), [0.910239227])  # 1 / ln 3


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.99, 0.9999, 0.999999, 1 - 1e-12, 1 - 3e-14])
def test_effective_number_for_large_counts(beta):
    """Against (1 - beta) / (1 - beta^n), divided by the mean, in 50-digit decimals."""
    counts = [10**9, 3 * 10**7, 10**4, 13, 7, 1]
    with localcontext() as context:
        context.prec = 50
        raw = [(1 - Decimal(beta)) / (1 - Decimal(beta) ** n) for n in counts]
        expected = [float(r * len(raw) / sum(raw)) for r in raw]
    close(weighting.effective_number(counts, beta=beta), expected)


def test_effective_number_at_its_ends():
    close(weighting.effective_number([10**9, 5, 1], beta=0.0), [1, 1, 1])
    inverse = weighting.inverse_frequency([1000, 10])
    close(weighting.effective_number([1000, 10], beta=1 - 1e-13), (inverse / inverse.mean()).tolist(), rtol=1e-6)


def test_log_frequency_is_the_static_factor_of_the_base_weight():

    counts = torch.tensor([60.0, 30.0, 10.0], dtype=torch.float64)
    csps = torch.full((3,), 0.5, dtype=torch.float64)
    base = _rules.base_weight(csps, counts, 1e-9) / torch.log1p(torch.tensor(3.0, dtype=torch.float64))
    torch.testing.assert_close(weighting.log_frequency(counts), base.float())


@pytest.mark.parametrize("formula", EVERY)
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([], r"counts.*\(0,\)"),
        ([[1, 2]], r"counts.*\(1, 2\)"),
        ([0, 0], r"counts.*all zero.*\[0.0, 0.0\]"),
        ([1, -2], r"counts.*negative.*\[1.0, -2.0\]"),
        ([1.0, float("nan")], r"counts.*finite.*\[1.0, nan\]"),
        ([1.0, float("inf")], r"counts.*finite.*\[1.0, inf\]"),
    ],
)
def test_errors_name_the_counts(formula, counts, message):
    with pytest.raises(ValueError, match=message):
        formula(counts)


@pytest.mark.parametrize("beta", [-0.1, 1.0, 2.0, float("nan")])
def test_beta_out_of_range(beta):
    with pytest.raises(ValueError, match=rf"beta must lie in \[0, 1\), got {beta}"):
        weighting.effective_number([1, 2], beta=beta)


@pytest.mark.parametrize("c", [1.0, 0.5, float("nan")])
def test_c_out_of_range(c):
    with pytest.raises(ValueError, match=f"c must be greater than 1, got {c}"):
        weighting.enet([1, 2], c=c)

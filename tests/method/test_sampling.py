"""Validation on a sample of the images: which are drawn, what is estimated from them, which weights are held."""

import numpy as np
import pytest
import torch

import cawa_fast as cf
from cawa_fast import _rules
from cawa_fast.estimation import Average, Estimate, estimate
from cawa_fast.sampling import Rarest, ValidationSampler, draw, inclusion_probabilities
from tests.support.observed import presence
from tests.support.population import Population, scores

NAN = float("nan")
C = 6


def rng(seed):
    return np.random.default_rng(seed)


# ---------------------------------------------------------------------------------------- which images are drawn


def test_the_rarest_class_of_an_image():
    table = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]).bool()  # in 3, 2 and 1 images
    order, rarity = Rarest.of(table)
    assert order.tolist() == [1, 2, 0, 3]
    assert rarity.tolist() == [1 / 2, 1 / 3, 1, 0]


@pytest.mark.parametrize("size", [0, 1, 8, 24, 150, 299, 300])
def test_probabilities_sum_to_the_size(size):
    table = presence()
    result = inclusion_probabilities(Rarest.of(table).rarity, size)
    assert result.sum().item() == pytest.approx(size)
    assert (result <= 1).all()
    assert (result > 0).all() or size == 0
    if size == 300:
        assert (result == 1).all()


def test_every_class_is_expected_once_in_twice_as_many_images_as_classes():
    table = presence(images=5000, classes=40)
    expected = (inclusion_probabilities(Rarest.of(table).rarity, 80)[:, None] * table).sum(0)
    evenly = 80 / 5000 * table.sum(0)
    assert expected.min() >= 1
    assert evenly.min() < 1  # with equal probabilities, for the rarest class


def test_without_an_index_all_images_are_equally_likely():
    result = inclusion_probabilities(torch.zeros(10), 4)
    torch.testing.assert_close(result, torch.full((10,), 0.4, dtype=torch.float64))


def test_images_are_drawn_with_their_probabilities():
    table = presence(images=60)
    order, rarity = Rarest.of(table)
    probability = inclusion_probabilities(rarity, 15)
    times = torch.zeros(60)
    for seed in range(4000):
        drawn = draw(probability, order, rng(seed))
        assert len(drawn) == 15 == len(drawn.unique())
        times[drawn] += 1
    error = (probability * (1 - probability) / 4000).sqrt()
    assert ((times / 4000 - probability).abs() <= 4.5 * error + 1e-12).all()


def test_a_class_whose_probabilities_sum_to_one_is_always_drawn():
    table = presence(images=2000, classes=10)
    order, rarity = Rarest.of(table)
    probability = inclusion_probabilities(rarity, 40)
    lengths = torch.zeros(11, dtype=torch.float64).index_add_(0, order, probability)
    sure = (lengths >= 1).nonzero().flatten()
    assert len(sure) >= 5
    for seed in range(200):
        assert set(sure.tolist()) <= set(order[draw(probability, order, rng(seed))].tolist())


def test_a_million_images_in_seconds():
    table = torch.rand(1_000_000, 20) < torch.logspace(0, -4, 20)
    sampler = ValidationSampler(table, 500, seed=0)
    indices, probability = sampler.draw()
    assert len(indices) == 500 == len(probability)
    assert table[indices].any(0).all()


# ----------------------------------------------------------------------------------- what is estimated from them


def test_all_images_give_the_totals_without_error():
    population = Population.make(50, 8, seed=1)
    rows = population.rows(torch.arange(50))
    result = estimate(rows, torch.ones(50, dtype=torch.float64), 0.9)
    assert result.counts.equal(population.totals().double())
    assert (result.error == 0).all()


def test_estimate_by_hand():
    """Two images are drawn with probabilities 1/2 and 1/4.

    Class 1 is only in the second image, class 2 in none, and class 3 has no ground truth.
    """
    rows = torch.tensor([[[3, 0, 0, 0], [1, 0, 0, 2], [0, 0, 0, 0]], [[1, 2, 0, 0], [1, 1, 0, 0], [2, 1, 0, 0]]])
    counts, error = estimate(rows, torch.tensor([0.5, 0.25]), delta=0.9)
    assert counts.tolist() == [[10, 8, 0, 0], [6, 4, 0, 4], [8, 4, 0, 0]]
    # class 0: tp 6 + 4, union 8 + 16, ground truth 6 + 12; e1 is without the first image, e2 without the second
    e1 = 0.9 * (4 / 16 - 10 / 24) + 0.1 * (4 / 12 - 10 / 18)
    e2 = 0.9 * (6 / 8 - 10 / 24) + 0.1 * (6 / 6 - 10 / 18)
    variance = 1 / 2 * (0.5 * e1**2 + 0.75 * e2**2)
    assert error[0].item() == pytest.approx(variance**0.5)
    assert error[1].item() == pytest.approx((0.25 * 0.75) ** 0.5)  # a single image
    assert error[2:].isnan().all()


def test_estimates_have_little_bias_and_realistic_errors():
    """Over many draws the bias is small, and the stated error is the actual one or slightly larger."""
    population = Population.make(1500, 10, rarest=0.01, seed=2)
    order, rarity = Rarest.of(population.presence())
    probability = inclusion_probabilities(rarity, 90)
    truth = scores(population.totals(), 0.9)
    found, stated = [], []
    for seed in range(400):
        drawn = draw(probability, order, rng(seed))
        counts, error = estimate(population.rows(drawn), probability[drawn], 0.9)
        found.append(scores(counts, 0.9))
        stated.append(error)
    found, stated = torch.stack(found), torch.stack(stated)
    rmse = (found - truth).square().mean(0).sqrt()
    bias = (found.mean(0) - truth).abs()
    assert (bias < 0.35 * rmse + 3 * rmse / 400**0.5).all()
    ratio = stated.square().mean(0).sqrt() / rmse
    assert (ratio > 0.85).all(), ratio
    assert (ratio < 1.3).all(), ratio


def test_equal_probabilities_estimate_rare_classes_worse():
    population = Population.make(3000, 12, rarest=0.003, seed=3)
    order, rarity = Rarest.of(population.presence())
    truth = scores(population.totals(), 0.9)
    errors = []
    for kind in (rarity, torch.zeros(3000)):
        probability = inclusion_probabilities(kind, 60)
        found = []
        for seed in range(150):
            drawn = draw(probability, order if kind is rarity else torch.zeros(3000), rng(seed))
            found.append(scores(estimate(population.rows(drawn), probability[drawn], 0.9).counts, 0.9))
        missing = torch.stack(found).isnan()
        errors.append((torch.stack(found).nan_to_num(0) - truth).square().mean(0).sqrt()[-3:])
        if kind is rarity:
            assert missing.float().mean(0).max() < 0.1
        else:
            assert missing[:, -1].float().mean() > 0.5
    assert (errors[0] < 0.7 * errors[1]).all()


def test_the_moving_average_by_hand():
    first = Estimate(torch.tensor([[4.0], [2.0], [2.0]]).double(), torch.tensor([0.1]).double())
    second = Estimate(torch.tensor([[1.0], [1.0], [0.0]]).double(), torch.tensor([0.2]).double())
    nothing = Estimate(torch.zeros(3, 1).double(), torch.tensor([NAN]).double())
    average = Average(torch.zeros(3, 1).double(), torch.zeros(1).double()).add(first, 0.5).add(second, 0.5)
    assert average.counts.flatten().tolist() == [3, 2, 1]
    # unions 8 and 2, discounted 4 and 2: error^2 = ((4 * .1)^2 + (2 * .2)^2) / 6^2
    assert average.estimate().error.item() == pytest.approx((0.4**2 + 0.4**2) ** 0.5 / 6)
    after = average.add(nothing, 0.5)
    assert after.counts.flatten().tolist() == [1.5, 1, 0.5]
    assert after.estimate().error.item() == pytest.approx(average.estimate().error.item())


def test_the_average_is_no_worse_than_one_sample():
    population = Population.make(800, 8, rarest=0.02, seed=5)
    order, rarity = Rarest.of(population.presence())
    probability = inclusion_probabilities(rarity, 24)
    truth = scores(population.totals(), 0.9)
    single, averaged, stated = [], [], []
    for seed in range(120):
        average = Average(torch.zeros(3, 8).double(), torch.zeros(8).double())
        for step in range(6):
            drawn = draw(probability, order, rng(100 * seed + step))
            new = estimate(population.rows(drawn), probability[drawn], 0.9)
            average = average.add(new, 0.7)
        single.append(scores(new.counts, 0.9).nan_to_num(0) - truth)
        averaged.append(scores(average.counts, 0.9) - truth)
        stated.append(average.estimate().error)
    rmse = torch.stack(averaged).square().mean(0).sqrt()
    assert (rmse < 0.75 * torch.stack(single).square().mean(0).sqrt()).all()
    ratio = torch.stack(stated).square().mean(0).sqrt() / rmse
    assert (ratio > 0.85).all(), ratio
    assert (ratio < 1.3).all(), ratio


# ------------------------------------------------------------------------------------------ weights that are held


def test_a_held_class_keeps_its_weight_and_the_mean_stays_1():
    options = {"class_counts": None, "delta": 0.9, "eps": 1e-6, "ratio": "smoothed", "ratio_eps": 0.01}
    options |= {"w_min": 0.1, "w_max": 20.0}
    first = torch.tensor([[60, 10, 5, 0], [20, 30, 5, 0], [20, 10, 10, 0]])
    last = torch.tensor([0.5, 0.9, 1.6, 1.0], dtype=torch.float64)
    known = torch.tensor([0.5, 0.3, 0.2, NAN]).double()
    held = torch.tensor([False, False, True, True])
    update = _rules.cawa_weights(first, last_csps=known, last_weight=last, held=held, **options)
    assert update.weight[2:].tolist() == [1.6, 1.0]
    assert update.weight.mean().item() == pytest.approx(1)
    # the others are computed as if the third had its last score and a fixed weight
    csps = torch.tensor([0.6 * 0.9 + 0.1 * 0.75, 0.2 * 0.9 + 0.1 * 0.5, 0.2]).double()
    base = _rules.base_weight(csps, torch.tensor([80.0, 20, 15]).double(), 1e-6)
    raw = (base * (csps + 0.01) / (known[:3] + 0.01))[:2].clamp(0.1, 20)
    torch.testing.assert_close(update.weight[:2], raw / raw.sum() * (4 - 2.6))
    assert update.csps[2].item() == pytest.approx(0.9 * 5 / 20 + 0.1 * 5 / 15)  # the observed score is reported


def test_held_classes_are_reported_and_compare_with_their_last_trusted_score():
    weights = cf.AdaptiveClassWeights(2, normalize="none", classes="all")
    cam = torch.zeros(1, 2, 1, 8)
    cam[0, 0, 0, :4] = 1
    target = torch.tensor([[[0, 0, 0, 0, 0, 1, 1, 1]]])
    weights.observe(cam, target)
    weights.step()
    before, csps = weights.weight.clone(), weights.last_csps.clone()
    weights.begin_sample(torch.tensor([0.5, 0.5]))
    weights.observe_sample(cam.flip(-1), target, 0)  # one image of two does not tell how typical it is
    weights.step()
    assert weights.held.tolist() == [True, True]
    assert weights.weight.equal(before)
    assert weights.last_csps.equal(csps)
    assert weights.standard_error.tolist() == pytest.approx([0.125**0.5] * 2)
    assert weights.history[-1]["held"] == [True, True]
    assert weights.history[-1]["images"] == 2

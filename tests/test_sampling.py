"""Validation on a part of the images: who is drawn, what is estimated from it, how much time it may take."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import cawa_fast as cf
from bench.population import Population, scores
from cawa_fast import reference, sampling
from cawa_fast.estimation import Average, Estimate, estimate
from cawa_fast.sampling import Rarest, ValidationSampler, draw, inclusion_probabilities

NAN = float("nan")
C = 6


def presence(images=300, classes=12, seed=0):
    return Population.make(images, classes, rarest=0.01, seed=seed).presence()


def rng(seed):
    return np.random.default_rng(seed)


# ------------------------------------------------------------------------------------------------ who is drawn


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
    assert evenly.min() < 1  # what an even draw gives the rarest


def test_without_an_index_every_image_is_as_likely():
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


def test_a_class_with_a_length_of_one_is_never_missed():
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


# ------------------------------------------------------------------------------------- what is estimated from it


def test_all_images_give_the_totals_without_error():
    population = Population.make(50, 8, seed=1)
    rows = population.rows(torch.arange(50))
    result = estimate(rows, torch.ones(50, dtype=torch.float64), 0.9)
    assert result.counts.equal(population.totals().double())
    assert (result.error == 0).all()


def test_estimate_by_hand():
    """Two images drawn with 1/2 and 1/4; class 1 is in the second alone, class 2 in none, class 3 without truth."""
    rows = torch.tensor([[[3, 0, 0, 0], [1, 0, 0, 2], [0, 0, 0, 0]], [[1, 2, 0, 0], [1, 1, 0, 0], [2, 1, 0, 0]]])
    counts, error = estimate(rows, torch.tensor([0.5, 0.25]), delta=0.9)
    assert counts.tolist() == [[10, 8, 0, 0], [6, 4, 0, 4], [8, 4, 0, 0]]
    # class 0: 6 + 4 hits of 8 + 16 in the union, of 6 + 12 of ground truth; then without the one, without the other
    e1 = 0.9 * (4 / 16 - 10 / 24) + 0.1 * (4 / 12 - 10 / 18)
    e2 = 0.9 * (6 / 8 - 10 / 24) + 0.1 * (6 / 6 - 10 / 18)
    variance = 1 / 2 * (0.5 * e1**2 + 0.75 * e2**2)
    assert error[0].item() == pytest.approx(variance**0.5)
    assert error[1].item() == pytest.approx((0.25 * 0.75) ** 0.5)  # one image alone
    assert error[2:].isnan().all()


def test_estimates_are_right_and_their_errors_honest():
    """Over many draws: no bias to speak of, and the stated error is the real one or a little more."""
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


def test_an_even_draw_knows_less_of_rare_classes():
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
    update = reference.update_weights(first, last_csps=known, last_weight=last, held=held, **options)
    assert update.weight[2:].tolist() == [1.6, 1.0]
    assert update.weight.mean().item() == pytest.approx(1)
    # the others as if the third had its last score and could not be changed
    csps = torch.tensor([0.6 * 0.9 + 0.1 * 0.75, 0.2 * 0.9 + 0.1 * 0.5, 0.2]).double()
    base = reference.base_weight(csps, torch.tensor([80.0, 20, 15]).double(), 1e-6)
    raw = (base * (csps + 0.01) / (known[:3] + 0.01))[:2].clamp(0.1, 20)
    torch.testing.assert_close(update.weight[:2], raw / raw.sum() * (4 - 2.6))
    assert update.csps[2].item() == pytest.approx(0.9 * 5 / 20 + 0.1 * 5 / 15)  # what was seen is told all the same


def test_held_classes_are_reported_and_compare_with_their_last_trusted_score():
    weights = cf.AdaptiveClassWeights(2, normalize="none", classes="all")
    cam = torch.zeros(1, 2, 1, 8)
    cam[0, 0, 0, :4] = 1
    target = torch.tensor([[[0, 0, 0, 0, 0, 1, 1, 1]]])
    weights.observe(cam, target)
    weights.step()
    before, csps = weights.weight.clone(), weights.last_csps.clone()
    weights.begin_sample(torch.tensor([0.5, 0.5]))
    weights.observe_sample(cam.flip(-1), target, 0)  # one image of two: nobody can tell how far it is typical
    weights.step()
    assert weights.held.tolist() == [True, True]
    assert weights.weight.equal(before)
    assert weights.last_csps.equal(csps)
    assert weights.standard_error.tolist() == pytest.approx([0.125**0.5] * 2)
    assert weights.history[-1]["held"] == [True, True]
    assert weights.history[-1]["images"] == 2


# -------------------------------------------------------------------------------------- the loop with a budget


class Data(torch.utils.data.Dataset):
    """Images that show their labels, so that a fixed network has scores that differ from class to class."""

    def __init__(self, images=40):
        generator = torch.Generator().manual_seed(1)
        common = torch.rand(images, 8, 8, generator=generator)
        self.labels = (common**3 * C).long().repeat_interleave(2, 1).repeat_interleave(2, 2).to(torch.uint8)
        self.labels[:, 0] = 255
        self.images = torch.randn(images, 3, 16, 16, generator=generator)
        self.images[:, 0] += self.labels.float().where(self.labels < C, 0)
        self.presence = torch.stack([(self.labels == c).flatten(1).any(1) for c in range(C)], 1)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, C, 1))


@torch.no_grad()
def validate(cawa, model, loader):
    model.eval()
    for images, labels in loader:
        model(images)
        cawa.observe(labels)
    return cawa.step().clone()


@pytest.mark.parametrize("source", ["cam", "argmax"])
def test_a_budget_for_all_images_is_no_budget(source):
    data, model = Data(), network()
    whole = cf.CAWA(model, C, ignore_index=255, source=source)
    part = cf.CAWA(model, C, ignore_index=255, source=source, budget=40)
    for _ in range(2):
        expected = validate(whole, model, DataLoader(data, 7))
        assert validate(part, model, DataLoader(data, 7, sampler=part.sampler(data))).equal(expected)
    assert (part.weights.standard_error == 0).all()


def test_each_step_draws_others_and_a_resumed_run_draws_the_same():
    data, model = Data(), network()

    def begin():
        cawa = cf.CAWA(model, C, ignore_index=255, budget=9, momentum=0.5)
        return cawa, cawa.sampler(data, seed=5)

    cawa, sampler = begin()
    loader = DataLoader(data, 4, sampler=sampler)
    drawn, results, states = [], [], []
    for _ in range(4):
        assert list(sampler) == list(sampler)  # until the step
        drawn.append(list(sampler))
        results.append(validate(cawa, model, loader))
        states.append(copy.deepcopy(cawa.state_dict()))
    assert len({tuple(sorted(sample)) for sample in drawn}) == 4
    other, sampler = begin()
    other.load_state_dict(states[1])
    assert list(sampler) == drawn[2]
    assert validate(other, model, DataLoader(data, 3, sampler=sampler)).equal(results[2])
    late = cf.CAWA(model, C, ignore_index=255, budget=9, momentum=0.5)
    late.load_state_dict(states[1])
    assert list(late.sampler(data, seed=5)) == drawn[2]  # the sampler may come after the checkpoint


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0
        monkeypatch.setattr(sampling.time, "perf_counter_ns", lambda: int(self.now * 1e9))

    def pass_(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(("image", "images"), [(0.1, 400), (0.02, 400), (3.0, 400), (0.001, 12)])
def test_the_whole_of_it_stays_within_the_budget(monkeypatch, image, images):
    """100 s of training an epoch, a forward pass of so many seconds an image, a budget of 2 %."""
    clock = Clock(monkeypatch)
    sampler = ValidationSampler(presence(images), 0.02, seed=0)
    for epoch in range(30):
        sampler.train()
        clock.pass_(60)
        sampler.train()
        clock.pass_(40)
        drawn = list(sampler)
        for _ in drawn:
            clock.pass_(image)
            sampler.take(1)
        sampler.stepped(sampler.times())
        clock.pass_(17)  # a checkpoint is written: neither training nor weighting
        training, spent = sampler.seconds
        assert training == pytest.approx(100 * (epoch + 1))
        if epoch >= 12:
            assert spent <= 0.02 * training * 1.001 + 1e-6
    enough = image * images <= 0.02 * 100
    assert sampler.size == images if enough else spent > 0.01 * training  # and the budget is used


def test_a_slow_first_pass_is_paid_back():
    sampler = ValidationSampler(presence(400), 0.02, seed=0)
    first = sampler.size
    sampler.stepped([100 * 10**9, first * 2 * 10**9])  # 16 s where 2 were to be had
    assert sampler.size == 0
    empty = 0
    while sampler.size == 0:
        sampler.stepped([100 * 10**9, 0])
        empty += 1
    assert empty == 14  # until 2 % of all training so far, and of the next, are those 16 s and another 16 s


def test_an_empty_sample_changes_nothing(monkeypatch):
    data, model = Data(), network()
    cawa = cf.CAWA(model, C, ignore_index=255, budget=0.02)
    sampler = cawa.sampler(data)
    loader = DataLoader(data, 4, sampler=sampler)
    validate(cawa, model, loader)
    sampler.size = 0
    before, steps = cawa.weight.clone(), len(cawa.weights.history)
    assert len(loader) == 0
    assert validate(cawa, model, loader).equal(before)
    assert len(cawa.weights.history) == steps


def test_training_time_is_measured_by_the_networks_own_passes(monkeypatch):
    clock = Clock(monkeypatch)
    data, model = Data(), network()
    cawa = cf.CAWA(model, C, ignore_index=255, budget=0.5)
    sampler = cawa.sampler(data)
    model.eval()(data.images[:2])
    clock.pass_(1000)  # before training: not counted
    model.train()
    for _ in range(3):
        model(data.images[:2])
        clock.pass_(10)
    validate(cawa, model, DataLoader(data, 4, sampler=sampler))
    assert sampler.seconds == (30, 0)


def test_errors_of_the_budget():
    model = network()
    for budget in (0, 1, -0.1, 1.5, 0.0):
        with pytest.raises(ValueError, match=f"budget must be a share.*got {budget}"):
            cf.CAWA(model, C, budget=budget)
    with pytest.raises(ValueError, match="metrics=True needs all images"):
        cf.CAWA(model, C, budget=0.1, metrics=True)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        cf.CAWA(model, C, every=0)
    with pytest.raises(ValueError, match="there is no budget"):
        cf.CAWA(model, C).sampler(10)
    cawa = cf.CAWA(model, C, budget=0.1)
    with pytest.raises(ValueError, match=r"bool of shape \(images, 6\).*int64 \(4, 6\)"):
        cawa.sampler(torch.zeros(4, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(images, 6\).*bool \(4, 5\)"):
        cawa.sampler(np.zeros((4, 5), dtype=bool))
    with pytest.raises(ValueError, match="no images"):
        cawa.sampler(0)
    with torch.no_grad():
        model(torch.zeros(2, 3, 16, 16))
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
    for call in (lambda: cawa.observe(labels), cawa.step):
        with pytest.raises(RuntimeError, match=r"sampler=cawa.sampler\(index\)"):
            call()
    cawa.sampler(80)
    for _ in range(4):
        cawa.observe(labels)
    with pytest.raises(ValueError, match="image 10 of the pass, but the sample has 8"):
        cawa.observe(labels)


def test_a_network_that_does_not_know_the_classes_of_images():
    data, model = Data(), network()
    cawa = cf.CAWA(model, C, ignore_index=255, budget=20)
    validate(cawa, model, DataLoader(data, 4, sampler=cawa.sampler(len(data))))
    assert cawa.weights.history[-1]["images"] == 20


# ------------------------------------------------------------------------------- images that are there twice


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("ignore", [255, -100])
def test_a_mask_leaves_images_out(dtype, ignore):
    data, model = Data(12), network()
    labels = data.labels.to(dtype)
    if ignore == -100:
        labels = labels.where(labels < C, 0)
    masked, plain = (cf.CAWA(model, C, ignore_index=ignore, metrics=True) for _ in range(2))
    with torch.no_grad():
        model(data.images)
        masked.observe(labels, mask=[True] * 9 + [False] * 3)
        model(data.images[:9])
        plain.observe(labels[:9])
    assert masked.weights.counts.equal(plain.weights.counts)
    assert masked.weights.confusion.equal(plain.weights.confusion)
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(9,\).*\(8,\)"):
        plain.observe(labels[:9], mask=torch.ones(8, dtype=torch.bool))


@pytest.mark.parametrize(("images", "processes"), [(10, 3), (12, 4), (7, 5), (3, 4)])
def test_padding_of_a_distributed_sampler(images, processes):
    seen = []
    for rank in range(processes):
        sampler = DistributedSampler(range(images), processes, rank, shuffle=True, seed=4)
        seen += [index for index, real in zip(sampler, cf.unpadded(sampler), strict=True) if real]
    assert sorted(seen) == list(range(images))

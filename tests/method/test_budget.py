"""``CAWA`` with a budget of time or images: what is observed, what it costs, and what is saved."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import cawa_fast as cf
from cawa_fast import sampling
from cawa_fast.sampling import ValidationSampler
from tests.support.observed import presence

NAN = float("nan")
C = 6


# -------------------------------------------------------------------------------------- the loop with a budget


class Data(torch.utils.data.Dataset):
    """Images that contain their labels, so that a fixed network has scores that differ between classes."""

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
def test_a_budget_for_all_images_equals_no_budget(source):
    data, model = Data(), network()
    whole = cf.CAWA(model, C, ignore_index=255, source=source, ratio="smoothed")  # a step depends on the last
    part = cf.CAWA(model, C, ignore_index=255, source=source, ratio="smoothed", budget=40)
    for _ in range(2):
        expected = validate(whole, model, DataLoader(data, 7))
        assert validate(part, model, DataLoader(data, 7, sampler=part.sampler(data))).equal(expected)
    assert (part.weights.standard_error == 0).all()


def test_each_step_draws_others_and_a_resumed_run_draws_the_same():
    data, model = Data(), network()

    def begin():
        cawa = cf.CAWA(model, C, ignore_index=255, budget=9, momentum=0.5, ratio="smoothed")
        return cawa, cawa.sampler(data, seed=5)

    cawa, sampler = begin()
    loader = DataLoader(data, 4, sampler=sampler)
    drawn, results, states = [], [], []
    for _ in range(4):
        assert list(sampler) == list(sampler)  # the sample is the same until the step
        drawn.append(list(sampler))
        results.append(validate(cawa, model, loader))
        states.append(copy.deepcopy(cawa.state_dict()))
    assert len({tuple(sorted(sample)) for sample in drawn}) == 4
    other, sampler = begin()
    other.load_state_dict(states[1])
    assert list(sampler) == drawn[2]
    assert validate(other, model, DataLoader(data, 3, sampler=sampler)).equal(results[2])
    late = cf.CAWA(model, C, ignore_index=255, budget=9, momentum=0.5, ratio="smoothed")
    late.load_state_dict(states[1])
    assert list(late.sampler(data, seed=5)) == drawn[2]  # the sampler may be made after loading


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0
        monkeypatch.setattr(sampling.time, "perf_counter_ns", lambda: int(self.now * 1e9))

    def pass_(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(("image", "images"), [(0.1, 400), (0.02, 400), (3.0, 400), (0.001, 12)])
def test_the_total_time_stays_within_the_budget(monkeypatch, image, images):
    """An epoch trains for 100 s, a forward pass takes ``image`` seconds per image, and the budget is 2 %."""
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
        clock.pass_(17)  # a checkpoint is written, which is neither training nor weighting
        training, spent = sampler.seconds
        assert training == pytest.approx(100 * (epoch + 1))
        if epoch >= 12:
            assert spent <= 0.02 * training * 1.001 + 1e-6
    enough = image * images <= 0.02 * 100
    assert sampler.size == images if enough else spent > 0.01 * training  # the budget is used


def test_a_slow_first_pass_is_paid_back():
    sampler = ValidationSampler(presence(400), 0.02, seed=0)
    first = sampler.size
    sampler.stepped([100 * 10**9, first * 2 * 10**9])  # 16 s instead of 2
    assert sampler.size == 0
    empty = 0
    while sampler.size == 0:
        sampler.stepped([100 * 10**9, 0])
        empty += 1
    assert empty == 14  # until 2 % of all training, including the next epoch, pay for those 16 s and another 16 s


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
    for _ in range(5):
        with torch.no_grad():
            model(torch.zeros(2, 3, 16, 16))
        if cawa._sampler.taken < 8:
            cawa.observe(labels)
    with pytest.raises(ValueError, match="image 10 of the pass, but the sample has 8"):
        cawa.observe(labels)


def test_a_sampler_without_an_index_of_classes():
    data, model = Data(), network()
    cawa = cf.CAWA(model, C, ignore_index=255, budget=20)
    validate(cawa, model, DataLoader(data, 4, sampler=cawa.sampler(len(data))))
    assert cawa.weights.history[-1]["images"] == 20


# ----------------------------------------------------------------------------------- images that occur twice


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


@pytest.mark.parametrize(("images", "world_size"), [(10, 3), (12, 4), (7, 5), (3, 4)])
def test_padding_of_a_distributed_sampler(images, world_size):
    seen = []
    for rank in range(world_size):
        sampler = DistributedSampler(range(images), world_size, rank, shuffle=True, seed=4)
        seen += [index for index, real in zip(sampler, cf.unpadded(sampler), strict=True) if real]
    assert sorted(seen) == list(range(images))

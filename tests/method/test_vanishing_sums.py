"""Losses and rules whose sum of weights is 0, almost 0 or too large: everything stays finite."""

import math

import pytest
import torch

import cawa_fast as cf
from cawa_fast import _rules, weighting
from tests.support.cases import noise

C = 4
ZERO = torch.tensor([1.0, 0.0, 2.0, 1e-42])
LOSSES = {
    "cross-entropy": cf.CrossEntropyLoss,
    "smoothed": lambda weight: cf.CrossEntropyLoss(weight, label_smoothing=0.2),
    "focal": lambda weight: cf.FocalLoss(2.0, weight),
    "focal, gamma 0.5": lambda weight: cf.FocalLoss(0.5, weight),
    "logit-adjusted": lambda weight: cf.LogitAdjustedLoss([5, 1, 1, 0], weight=weight),
}
EQ = {"delta": 0.9, "eps": 1e-6, "ratio": "none", "ratio_eps": 0.01, "w_min": 0.1, "w_max": 20.0}


def confusion_counts(matrix):
    tp = matrix.diagonal()
    return torch.stack((tp, matrix.sum(0) - tp, matrix.sum(1) - tp))


def assert_zero(loss, leaf):
    loss.backward()
    assert loss == 0
    assert (leaf.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("label", [1, 3], ids=["zero", "denormal"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_of_one_class_whose_weight_vanishes(loss, label, dtype):
    leaf = torch.randn(2, C, 5, 6).to(dtype).requires_grad_()
    target = torch.full((2, 9, 11), label)
    target[0, 0] = -100
    assert_zero(LOSSES[loss](ZERO)(leaf, target), leaf)


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_alone_still_give_nan(loss):
    leaf = torch.randn(2, C, 5, 6, requires_grad=True)
    loss = LOSSES[loss](ZERO)(leaf, torch.full((2, 9, 11), -100))
    loss.backward()
    assert loss.isnan()
    assert (leaf.grad == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "valid_mean", "sum", "class_mean", "pixel_mean"])
@pytest.mark.parametrize("size", [(4, 6), (8, 12)])
def test_recall_loss_of_a_batch_without_a_wrong_prediction(size, reduction):
    target = torch.zeros(1, *size, dtype=torch.uint8)
    target[:, : size[0] // 2] = 2
    logits = torch.zeros(1, C, 4, 6)
    logits[:, 2, :2], logits[:, 0, 2:] = 4.0, 3.0
    leaf = logits.requires_grad_()
    assert_zero(cf.RecallLoss(reduction=reduction)(leaf, target), leaf)


@pytest.mark.parametrize("loss", [cf.CrossEntropyLoss, lambda weight: cf.FocalLoss(2.0, weight)], ids=["ce", "focal"])
@pytest.mark.parametrize("rule", ["recall", "difficulty", lambda recall: (recall < 1).double()])
def test_everything_predicted_as_the_majority(rule, loss):
    """The usual first epoch. The majority then has recall 1 and weight 0, and a crop of it alone trains nothing."""
    weights = cf.AdaptiveClassWeights(3, rule=rule, source="argmax")
    weights.observe_confusion(torch.tensor([[900, 0, 0], [80, 0, 0], [20, 0, 0]]))
    assert weights.step().tolist() == [0.0, 1.5, 1.5]
    leaf = torch.randn(1, 3, 4, 4, requires_grad=True)
    assert_zero(loss(weights)(leaf, torch.zeros(1, 8, 8, dtype=torch.uint8)), leaf)
    target = torch.zeros(1, 8, 8, dtype=torch.uint8)
    target[0, 0, 0] = 1
    loss(weights)(leaf, target).backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.any()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([0.0, 0.0, 0.0], [1, 1, 1]),
        ([5e-324, 5e-324, 5e-324], [1, 1, 1]),  # their mean is 0 in float64
        ([0.0, 5e-324, 0.0], [0, 3, 0]),
        ([1e308, 1e308, 1e308], [1, 1, 1]),  # their sum is infinite
        ([1e308, 5e307, 0.0], [2, 1, 0]),
    ],
)
def test_a_rule_whose_weights_sum_to_almost_nothing_or_too_much(raw, expected):
    weights = cf.AdaptiveClassWeights(3, source="argmax", rule=lambda recall: raw)
    weights.observe_confusion(torch.tensor([[5, 1, 0], [2, 3, 0], [0, 1, 1]]))
    torch.testing.assert_close(weights.step(), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("raw", [[0.0, 0.0], [1.0, 3.0]])
@pytest.mark.parametrize(
    ("last", "held", "rest"),
    [
        ([2.5, 0.25, 0.25], [True, False, False], 0.5),
        ([3.0, 0.0, 0.0], [True, False, False], 0.0),
        ([3.3, 0.3, 0.3], [True, False, False], 0.0),  # more than there is, as a checkpoint may have it
    ],
)
def test_held_classes_leave_the_others_the_rest(last, held, rest, raw):
    """Also if all new weights are 0; the mean stays 1, and no weight is negative."""
    last, held = torch.tensor(last), torch.tensor(held)
    weight = _rules.normalized(torch.tensor(raw, dtype=torch.float64), ~held, last, held)
    parts = [0.5, 0.5] if not any(raw) else [0.25, 0.75]
    torch.testing.assert_close(weight.float(), torch.tensor([last[0].item(), *(rest * part for part in parts)]))


HOSTILE = [
    {"eps": 5e-324},
    {"eps": 5e-324, "ratio": "paper"},
    {"ratio": "smoothed", "ratio_eps": 5e-324},
    {"w_min": 0.0},
    {"w_max": math.inf, "eps": 5e-324},
    {"w_max": 1e308, "w_min": 1e308},
    {"delta": 0.0, "eps": 5e-324},
]


@pytest.mark.parametrize("matrix", [[[0, 9], [4, 0]], [[9, 0], [4, 0]], [[9, 0], [0, 4]], [[0, 0], [4, 0]]], ids=str)
@pytest.mark.parametrize("options", HOSTILE, ids=str)
def test_extreme_settings_give_finite_weights_of_mean_1(options, matrix):
    weights = cf.AdaptiveClassWeights(2, source="argmax", **options)
    for _ in range(3):
        weights.observe_confusion(torch.tensor(matrix))
        weight = weights.step()
        assert weight.isfinite().all()
        assert (weight >= 0).all()
        assert weight.mean().item() == pytest.approx(1)


def test_eq_6_to_the_letter_with_an_eps_of_almost_0():
    """Class 1 keeps CSPS 0: its BW is the largest number there is, its RW is 0, and their product is clipped to 0.1.

    Class 0 has CSPS c, of which the sum is c, and 9 of 13 pixels: BW = ln 2 ln(1 + 13 / 9).
    """
    weights = cf.AdaptiveClassWeights(2, source="argmax", ratio="paper", eps=5e-324)
    for _ in range(2):
        weights.observe_confusion(torch.tensor([[9, 0], [4, 0]]))
        weights.step()
    base = math.log(2) * math.log1p(13 / 9)
    assert weights.weight.tolist() == pytest.approx([2 * base / (base + 0.1), 0.2 / (base + 0.1)])


@pytest.mark.parametrize("class_counts", [None, [90, 10]])
def test_a_class_that_was_not_seen_for_long(class_counts):
    """With momentum its counts approach 0 but stay positive."""
    weights = cf.AdaptiveClassWeights(2, source="argmax", momentum=0.1, class_counts=class_counts)
    weights.observe_confusion(torch.tensor([[3, 1], [1, 3]]))
    weights.step()
    for _ in range(400):
        weights.observe_confusion(torch.tensor([[3, 1], [0, 0]]))
        assert weights.step().isfinite().all()


STATIC = {
    "uniform": weighting.uniform,
    "inverse_frequency": weighting.inverse_frequency,
    "median_frequency": weighting.median_frequency,
    "effective_number": weighting.effective_number,
    "enet": weighting.enet,
    "log_frequency": weighting.log_frequency,
}


@pytest.mark.parametrize(
    "counts", [[1e-18, 1e18], [1e-18, 1e-18], [1e18, 1e18, 0], [1, 10**18], [1e-9, 1 - 1e-9]], ids=str
)
@pytest.mark.parametrize("rule", STATIC)
def test_static_weights_are_finite_and_positive(rule, counts):
    weight = STATIC[rule](torch.tensor(counts, dtype=torch.float64))
    assert weight.isfinite().all()
    assert (weight > 0).all()


@pytest.mark.parametrize("counts", [[1e308, 1e308], [1e-320, 1.0], [1e39, 1e-3]], ids=str)
@pytest.mark.parametrize("rule", [*STATIC.values(), weighting.log_prior], ids=[*STATIC, "log_prior"])
def test_counts_whose_quotients_would_overflow_are_refused(rule, counts):
    with pytest.raises(ValueError, match=r"counts must be .*1e-18.*pass pixels per class"):
        rule(torch.tensor(counts, dtype=torch.float64))


def test_enet_without_a_finite_c_is_refused():
    with pytest.raises(ValueError, match="c must be greater than 1 and finite, got inf"):
        weighting.enet([1, 2], math.inf)


# ------------------------------------------------------------------------------- classes without training pixels


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("rule", ["cawa", "recall", "difficulty", lambda recall: 2 - recall])
def test_a_class_without_training_pixels_takes_no_weight_from_the_others(rule, momentum):
    """Its weight is 1, the mean of the others is 1, and theirs are those without the class; its scores are kept."""
    matrix = torch.tensor([[80, 5, 0, 3], [9, 20, 0, 0], [0, 4, 0, 2], [1, 0, 0, 6]])
    options = {"source": "argmax", "rule": rule, "momentum": momentum}
    weights = cf.AdaptiveClassWeights(4, class_counts=[900, 90, 0, 10], **options)
    others = cf.AdaptiveClassWeights(4, class_counts=[900, 90, 1, 10], **options)
    for _ in range(2):
        weights.observe_confusion(matrix)
        without = matrix.clone()
        without[0, 1], without[2] = without[0, 1] + 0, 0  # nobody has label 2; its pixels were false positives
        others.observe_confusion(without + torch.diag(torch.zeros(4, dtype=torch.int64)))
        weight = weights.step()
        others.step()
    assert weight[2] == 1
    assert weight[[0, 1, 3]].mean().item() == pytest.approx(1)
    assert weight[[0, 1, 3]].max() < 3
    assert weights.iou[2] == 0
    assert weights.pixel_accuracy[2] == 0
    assert weights.csps[2] == 0
    assert weights.base_weight[2].isnan()
    if rule != "cawa":  # recall does not depend on the false positives
        torch.testing.assert_close(weight, others.weight)


def test_only_classes_without_training_pixels_were_observed():
    weights = cf.AdaptiveClassWeights(3, source="argmax", class_counts=[5, 0, 0])
    weights.observe_confusion(torch.tensor([[0, 0, 0], [1, 2, 0], [0, 0, 1]]))
    assert weights.step().tolist() == [1.0, 1.0, 1.0]


def test_an_exact_table_with_a_class_without_training_pixels():
    """Eq. 5 for the two classes with training pixels: CSPS .9 and .3, n = 90 and 10."""
    counts = torch.tensor([[90, 10, 0], [10, 70 / 3, 5], [0, 0, 5]], dtype=torch.float64)
    update = _rules.cawa_weights(
        counts, class_counts=torch.tensor([90, 10, 0]), last_csps=torch.full((3,), math.nan), **EQ | {"delta": 1.0}
    )
    assert update.iou.tolist() == pytest.approx([0.9, 0.3, 0.0])
    base = [math.log1p(1.2 / 0.9) * math.log1p(100 / 90), math.log1p(1.2 / 0.3) * math.log1p(100 / 10)]
    mean = sum(base) / 2
    assert update.weight.tolist() == pytest.approx([base[0] / mean, base[1] / mean, 1.0], rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_with_a_class_without_training_pixels(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = cf.AdaptiveClassWeights(4, source="argmax", class_counts=[900, 90, 0, 10])
    weights.begin_sample(torch.full((6,), 0.5, dtype=torch.float64))
    for image in range(6):
        logits = torch.randn(1, 4, 6, 6, generator=generator)
        weights.observe_sample(logits, torch.randint(0, 4, (1, 6, 6), generator=generator), image)
    weight = weights.step()
    assert weight[2] == 1
    assert weight.mean().item() == pytest.approx(1)


def random_losses():
    case = noise(C, 2, (6, 9), (24, 36))
    return case.logits, case.target


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_0_for_some_labels_equal_the_mean_over_the_others(seed):
    torch.manual_seed(seed)
    logits, target = random_losses()
    for loss in (cf.CrossEntropyLoss, lambda weight, ignore_index: cf.FocalLoss(2.0, weight, ignore_index)):
        partly = loss(torch.tensor([1.0, 0.0, 2.0, 0.5]), ignore_index=255)(logits, target)
        without = loss(torch.tensor([1.0, 1.0, 2.0, 0.5]), ignore_index=255)(logits, target.where(target != 1, 255))
        torch.testing.assert_close(partly, without)

"""The baselines of CAWA: rules on tables worked by hand, and losses against the formulas of their papers."""

import copy
import functools
import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cawa_fast as cf
from cawa_fast import _rules, weighting
from cawa_fast.recipes.config import ADAPTIVE
from cawa_fast.recipes.models import build_model
from cawa_fast.recipes.runs.folder import RunFolder
from cawa_fast.recipes.training.trainer import Trainer
from tests.support.tiny_runs import TINY, Silent

NAN = float("nan")


def close(actual, expected, rtol=2e-6):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=rtol, atol=1e-7, equal_nan=True)


def confusion(truth, hits):
    """A confusion matrix with ``hits`` on the diagonal; a class's other pixels go to the next one."""
    hits = torch.tensor(hits)
    miss = torch.tensor(truth) - hits
    return torch.diag(hits) + torch.diag(miss).roll(1, 1)


def difficulty(gamma):
    return functools.partial(_rules.difficulty_weight, gamma=gamma)


# Four classes, the last without ground truth.
#
#   pixels             100        40         10         0
#   right              90         20         0          -
#   recall             .9         .5         0          -
#   1 - recall         .1         .5         1          -       mean 1.6 / 3
#   recall's weight    .1875      .9375      1.875      1
#   (1 - recall)^3     .001       .125       1          -       mean .375333333
#   its weight         .00266429840  .333037300  2.66429840  1
#   dynamic exponent   max .9, min 0: bias .9 / .01 - 1 = 89, 2 sigmoid(89) = 2
#   (1 - recall)^2     .01        .25        1          -       mean .42
#   its weight         .0238095238  .595238095  2.38095238  1
TRUTH, HITS = [100, 40, 10, 0], [90, 20, 0, 0]
BY_HAND = [
    ({"rule": "recall"}, [0.1, 0.5, 1.0, NAN], [0.1875, 0.9375, 1.875, 1.0]),
    ({"rule": difficulty(1.0)}, [0.1, 0.5, 1.0, NAN], [0.1875, 0.9375, 1.875, 1.0]),
    ({"rule": difficulty(3.0)}, [0.001, 0.125, 1.0, NAN], [0.0026642984, 0.3330373, 2.6642984, 1.0]),
    ({"rule": "difficulty"}, [0.01, 0.25, 1.0, NAN], [0.0238095238, 0.595238095, 2.38095238, 1.0]),
]


@pytest.mark.parametrize(
    ("options", "raw", "expected"), BY_HAND, ids=["recall", "difficulty-1", "difficulty-3", "difficulty"]
)
def test_rules_by_hand(options, raw, expected):
    weights = cf.AdaptiveClassWeights(4, source="argmax", **options)
    for _ in range(2):  # the second step must not depend on the first
        weights.observe_confusion(confusion(TRUTH, HITS))
        assert weights.step() is weights.weight
        close(weights.weight, expected)
        close(weights.base_weight, raw)
        close(weights.ratio_weight, [1.0, 1.0, 1.0, NAN])
        close(weights.pixel_accuracy, [0.9, 0.5, 0.0, NAN])
        close(weights.iou, [0.9, 20 / 50, 0.0, NAN])
    assert weights.history[-1]["weight"] == weights.weight.tolist()


def test_the_dynamic_exponent_by_hand():
    """With recalls .8 and .39, the bias is .8 / .4 - 1 = 1 and the exponent 2 / (1 + 1/e) = 1.46211716.

    With equal recalls the exponent is about 1.
    """
    accuracy = torch.tensor([0.8, 0.39], dtype=torch.float64)
    expected = (1 - accuracy) ** 1.4621171572600098
    torch.testing.assert_close(_rules.difficulty_weight(accuracy), expected, rtol=1e-12, atol=0)
    equal = torch.full((3,), 0.99, dtype=torch.float64)
    torch.testing.assert_close(_rules.difficulty_weight(equal), 1 - equal, rtol=0.03, atol=0)


def test_a_held_class_keeps_its_weight():
    """The second class of BY_HAND is held at 2.5. The others share the remaining 3 - 2.5 in the ratio .1 to 1."""
    matrix = confusion(TRUTH, HITS)
    tp = matrix.diagonal()
    counts = torch.stack((tp, matrix.sum(0) - tp, matrix.sum(1) - tp))
    last = torch.tensor([0.25, 2.5, 0.25, 1.0])
    held = torch.tensor([False, True, False, False])
    options = {"delta": 0.9, "eps": 1e-6, "ratio": "none", "ratio_eps": 0.01, "w_min": 0.1, "w_max": 20.0}
    state = {"class_counts": None, "last_csps": torch.full((4,), NAN), "last_weight": last, "held": held}
    update = _rules.next_weights("recall", counts, **options, **state)
    close(update.weight.float(), [0.5 * 0.1 / 1.1, 2.5, 0.5 / 1.1, 1.0])
    close(update.base_weight.float(), [0.1, NAN, 1.0, NAN])


@pytest.mark.parametrize("rule", ["recall", "difficulty"])
def test_perfect_classes_leave_the_weights_at_1(rule):
    weights = cf.AdaptiveClassWeights(2, source="argmax", rule=rule)
    weights.observe_confusion(torch.tensor([[5, 0], [0, 3]]))
    close(weights.step(), [1.0, 1.0])


def test_rules_score_activation_maps_too():
    """The pseudo mask has one of the two pixels of class 1, so that the recalls are 1 and 1/2."""
    weights = cf.AdaptiveClassWeights(2, rule="recall")
    cam = torch.tensor([[[[4.0, 1.0, 1.0]], [[0.0, 0.0, 2.0]]]])
    weights.observe(cam, torch.tensor([[[0, 1, 1]]]))
    close(weights.step(), [0.0, 2.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cf.AdaptiveClassWeights(2, rule="best"), "difficulty, balanced, decoupled; got 'best'"),
        (lambda: difficulty(-1.0)(torch.ones(2)), "gamma must be finite and at least 0, or None, got -1.0"),
        (lambda: difficulty(math.inf)(torch.ones(2)), "gamma must be finite and at least 0, or None, got inf"),
        (lambda: replace(TINY, difficulty_gamma=-1.0), "difficulty_gamma must be finite and at least 0, got -1.0"),
    ],
)
def test_rule_errors_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_rule_may_be_a_function_of_the_recall():
    weights = cf.AdaptiveClassWeights(3, source="argmax", rule=lambda recall: torch.where(recall < 0.6, 3.0, 1.0))
    weights.observe_confusion(confusion([100, 40, 0], [90, 20, 0]))
    close(weights.step(), [0.5, 1.5, 1.0])


AS = pytest.mark.parametrize("make", [torch.tensor, np.array, list], ids=["tensor", "numpy", "list"])


@AS
@pytest.mark.parametrize("raw", [[1.0], [1.0, -1.0], [1.0, math.nan], [[1.0, 1.0]]], ids=str)
def test_what_a_rule_returns_is_checked(raw, make):
    """And a step that fails leaves the state as it was."""
    weights = cf.AdaptiveClassWeights(3, source="argmax", momentum=0.5, rule=lambda recall: make(raw))
    weights.observe_confusion(confusion([100, 40, 0], [90, 20, 0]))
    before = copy.deepcopy(weights.state_dict())
    with pytest.raises(ValueError, match="rule must return one finite value of at least 0 for each of the 2 classes"):
        weights.step()
    torch.testing.assert_close(weights.state_dict(), before, rtol=0, atol=0, equal_nan=True)


@AS
def test_a_rule_may_return_an_array_or_a_list(make):
    weights = cf.AdaptiveClassWeights(3, source="argmax", rule=lambda recall: make([1.0, 3.0]))
    weights.observe_confusion(confusion([100, 40, 0], [90, 20, 0]))
    close(weights.step(), [0.5, 1.5, 1.0])


@pytest.mark.parametrize("rule", ["recall", "difficulty"])
def test_a_step_that_holds_all_classes_changes_no_weight(rule):
    matrix = confusion(TRUTH, HITS)
    tp = matrix.diagonal()
    counts = torch.stack((tp, matrix.sum(0) - tp, matrix.sum(1) - tp))
    last = torch.tensor([0.25, 2.5, 0.25, 1.0])
    options = {"delta": 0.9, "eps": 1e-6, "ratio": "none", "ratio_eps": 0.01, "w_min": 0.1, "w_max": 20.0}
    state = {"class_counts": None, "last_csps": torch.full((4,), NAN), "last_weight": last, "held": last > 0}
    assert torch.equal(_rules.next_weights(rule, counts, **options, **state).weight.float(), last)


def test_cawa_has_every_argument_of_its_weights():
    """``CAWA`` has every argument of ``AdaptiveClassWeights``, with the same default and annotation.

    But for ``align_corners``, which it finds out by default.
    """
    of_weights = inspect.signature(cf.AdaptiveClassWeights).parameters
    of_loop = inspect.signature(cf.CAWA).parameters
    others = of_weights.keys() - {"num_classes", "align_corners"}
    assert {name: of_loop[name] for name in others} == {name: of_weights[name] for name in others}
    assert of_loop["align_corners"].default is None
    assert not [name for name, parameter in of_loop.items() if parameter.kind is parameter.VAR_KEYWORD]


# ------------------------------------------------------------------------------------------------ logit adjustment


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(8, 12), (32, 48), (5, 7), (21, 50)])
def test_adding_the_prior_to_low_resolution_logits_equals_adding_it_to_the_resized_ones(size, align_corners):
    """Value and gradient, compared in float64."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 8, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 5, (2, *size), generator=generator)
    counts = torch.tensor([1e6, 3e4, 500, 7, 2e5])
    loss_fn = cf.LogitAdjustedLoss(counts, tau=1.5, align_corners=align_corners).double()
    loss = loss_fn(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)

    prior = (counts.double() / counts.double().sum()).log().view(1, 5, 1, 1)
    resized = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    expected = F.cross_entropy(resized + 1.5 * prior, target)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # the prior is stored in float32
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-9)


def test_logit_adjustment_without_a_prior_is_cross_entropy():
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    plain = cf.CrossEntropyLoss()(logits, target)
    torch.testing.assert_close(cf.LogitAdjustedLoss([5, 1, 1], tau=0.0)(logits, target), plain, rtol=0, atol=0)
    torch.testing.assert_close(cf.LogitAdjustedLoss([4, 4, 4])(logits, target), plain)


def test_logit_adjustment_gives_a_rare_class_a_margin():
    """Where all logits are equal, the loss of a label is -log of its prior."""
    loss_fn = cf.LogitAdjustedLoss([90, 10], reduction="none")
    loss = loss_fn(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))
    close(loss, [[[-math.log(0.9), -math.log(0.1)]]])


@pytest.mark.parametrize("shape", [(4,), (6, 4), (2, 4, 5), (2, 4, 3, 3)])
def test_logit_adjustment_takes_the_shapes_of_cross_entropy(shape):
    input = torch.randn(shape)
    target = torch.randint(0, 4, (shape[0], *shape[2:]) if len(shape) > 1 else ())
    prior = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    expected = F.cross_entropy(
        (input.movedim(min(len(shape) - 1, 1), -1) + prior).movedim(-1, min(len(shape) - 1, 1)), target
    )
    torch.testing.assert_close(cf.LogitAdjustedLoss([4, 2, 1, 1])(input, target), expected)


def test_logit_adjustment_of_bfloat16_adds_in_float32():
    logits = torch.full((1, 2, 2, 2), 100.0, dtype=torch.bfloat16, requires_grad=True)  # where steps are 0.5
    target = torch.zeros(1, 2, 2, dtype=torch.uint8)
    loss = cf.LogitAdjustedLoss([9, 10])(logits, target)
    close(loss.detach(), -math.log(9 / 19))
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16


def test_a_class_without_pixels_has_the_rarest_ones_prior():
    close(weighting.log_prior([6, 0, 2]), [math.log(0.75), math.log(0.25), math.log(0.25)])


def test_logit_adjustment_errors_are_named():
    with pytest.raises(ValueError, match="tau must be finite, got nan"):
        cf.LogitAdjustedLoss([1, 2], tau=NAN)
    with pytest.raises(ValueError, match=r"counts.*all zero.*\[0.0, 0.0\]"):
        cf.LogitAdjustedLoss([0, 0])
    with pytest.raises(ValueError, match=r"input \(1, 3, 2, 2\) must have the 2 classes of class_counts"):
        cf.LogitAdjustedLoss([1, 2])(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8))


# ------------------------------------------------------------------------------------------------------ recall loss


@pytest.mark.parametrize("reduction", ["valid_mean", "mean", "sum"])
def test_recall_loss_is_the_papers_formula(reduction):
    """The formula on logits at label resolution: the batch's recall per class, then the weighted cross-entropy."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 6, 6, generator=generator, requires_grad=True)
    target = torch.randint(0, 3, (2, 12, 12), generator=generator)  # no pixel of class 3
    target[0, :3] = 255
    loss_fn = cf.RecallLoss(ignore_index=255, reduction=reduction)
    loss = loss_fn(logits, target)

    resized = F.interpolate(logits, (12, 12), mode="bilinear")
    prediction, valid = resized.argmax(1), target != 255
    weight = torch.ones(4)
    for c in range(3):
        of_class = valid & (target == c)
        weight[c] = 1 - (prediction[of_class] == c).float().mean()
    assert 0 < weight[0] < 1
    torch.testing.assert_close(loss_fn.weight, weight)
    each = F.cross_entropy(resized, target, weight, ignore_index=255, reduction="none")
    divisor = {"valid_mean": valid.sum(), "mean": weight[target[valid]].sum(), "sum": 1}[reduction]
    torch.testing.assert_close(loss, each.sum() / divisor)
    gradient, expected = (torch.autograd.grad(value, logits)[0] for value in (loss, each.sum() / divisor))
    torch.testing.assert_close(gradient, expected)


def test_two_batches_of_recall_loss_may_share_one_backward_pass():
    loss_fn = cf.RecallLoss()
    logits = torch.randn(2, 1, 3, 4, 4, requires_grad=True)
    target = torch.randint(0, 3, (2, 1, 8, 8))
    apart = [torch.autograd.grad(loss_fn(logits[i], target[i]), logits)[0][i] for i in range(2)]
    (loss_fn(logits[0], target[0]) + loss_fn(logits[1], target[1])).backward()
    torch.testing.assert_close(logits.grad, torch.stack(apart))


def test_recall_loss_names_a_wrong_reduction():
    with pytest.raises(ValueError, match=r"RecallLoss: reduction must be one of .*; got 'best'"):
        cf.RecallLoss(reduction="best")


# -------------------------------------------------------------------------------------------------------- training


def trainer(path, **changes):
    return Trainer(replace(TINY, **changes), RunFolder(path), Silent())


@pytest.mark.parametrize("weighting_name", ADAPTIVE)
def test_an_adaptive_weighting_is_a_rule(tmp_path, weighting_name):
    made = trainer(tmp_path, weighting=weighting_name, difficulty_gamma=1.5)
    rule = made.cawa.weights.rule
    if weighting_name == "difficulty":
        assert (rule.func, rule.keywords) == (_rules.difficulty_weight, {"gamma": 1.5})
    else:
        assert rule == weighting_name
    assert made.cawa.weights.source == ("cam" if weighting_name == "cawa" else "argmax")
    assert made.criterion is made.cawa.criterion


def test_recall_weights_in_training_are_those_of_the_recorded_accuracy(tmp_path):
    record = trainer(tmp_path, weighting="recall", epochs=1).fit()[0]
    raw = 1 - torch.tensor(record["accuracy"], dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(record["weight"]), (raw / raw.mean()).float())


def test_logit_adjustment_in_training_is_of_the_training_pixels(tmp_path):
    made = trainer(tmp_path, weighting="logit_adjustment", logit_tau=0.5)
    share = made.train_pixels.double() / made.train_pixels.sum()
    torch.testing.assert_close(made.criterion.adjustment, (0.5 * share.log()).float())


def test_recall_batch_in_training_is_the_papers_loss(tmp_path):
    made = trainer(tmp_path, weighting="recall_batch")
    assert type(made.criterion) is cf.RecallLoss
    assert made.criterion.ignore_index == made.train_set.ignore_index


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam", "layercam"])
def test_cawa_scores_the_chosen_kind_of_maps(method):
    torch.manual_seed(0)
    model = build_model("compact", 4).eval()
    images = torch.randn(2, 3, 32, 32)
    cawa = cf.CAWA(model, 4, method=method)
    with torch.no_grad(), cf.GradCAM(model, method=method) as cam:
        model(images)
        assert torch.equal(cawa.maps(), cam())
    plain = cf.CAWA(model, 4)
    with torch.no_grad():
        model(images)
    assert torch.equal(cawa.maps(), plain.maps()) == (method in ("gradcam", "hirescam"))


def test_cawa_names_a_wrong_method():
    with pytest.raises(ValueError, match=r"CAWA: method must be one of gradcam, .*; got 'best'"):
        cf.CAWA(build_model("compact", 4), 4, method="best")


def test_the_kind_of_maps_is_a_setting(tmp_path):
    assert trainer(tmp_path, cam_method="layercam").cawa.method == "layercam"

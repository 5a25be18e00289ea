"""``AdaptiveClassWeights``: its state, contexts such as inference mode, and error messages."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cawa_fast as cf
from tests.support.observed import FIRST, SECOND, THIRD, adaptive, batch

NAN = float("nan")
RATIOS = ("paper", "smoothed", "none")


# ------------------------------------------------------------------------------------------------------ state


def same(a, b):
    state = a.state_dict()
    assert state.keys() == b.state_dict().keys()
    assert all(
        torch.equal(x.nan_to_num(9), y.nan_to_num(9))
        for x, y in zip(state.values(), b.state_dict().values(), strict=True)
    )
    assert repr(a.history) == repr(b.history)


@pytest.mark.parametrize("class_counts", [None, [900, 90, 10, 5], [0.9, 0.09, 0.01, 0.005]])
def test_a_resumed_run_has_the_same_bits(class_counts):
    weights = adaptive(4, ratio="paper", class_counts=class_counts)
    for counts in (FIRST, SECOND):
        weights.observe(*batch(counts))
        weights.step()
    weights.observe(*batch(THIRD))  # in the middle of a validation pass

    file = io.BytesIO()
    torch.save({"weights": weights.state_dict()}, file)
    file.seek(0)
    resumed = adaptive(4, ratio="paper", class_counts=class_counts)
    resumed.load_state_dict(torch.load(file, weights_only=True)["weights"], strict=True)
    same(weights, resumed)
    assert len(resumed.history) == 2
    for w in (weights, resumed):
        w.observe(*batch(FIRST))
        w.step()
    same(weights, resumed)
    assert len(resumed.history) == 3


def test_loading_into_the_module_that_a_loss_uses():
    trained, fresh = adaptive(4), adaptive(4)
    trained.observe(*batch(FIRST))
    trained.step()
    loss_fn = cf.CrossEntropyLoss(fresh)
    fresh.load_state_dict(trained.state_dict())
    logits, target = torch.randn(1, 4, 3, 3), torch.randint(0, 4, (1, 3, 3))
    torch.testing.assert_close(loss_fn(logits, target), F.cross_entropy(logits, target, trained.weight))


def test_deepcopy():
    weights = adaptive(4)
    weights.observe(*batch(FIRST))
    weights.step()
    twin = copy.deepcopy(weights)
    same(weights, twin)
    twin.observe(*batch(SECOND))
    twin.step()
    assert len(weights.history) == 1


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.bfloat16)])
def test_a_cast_network_keeps_float32_weights(cast):
    weights = adaptive(4, class_counts=[900, 90, 10, 5])
    weights.observe(*batch(FIRST))
    weights.step()
    before = copy.deepcopy(weights)
    cast(nn.ModuleList([nn.Linear(2, 2), weights]))
    same(before, weights)
    assert weights.weight.dtype == torch.float32


def test_only_buffers():
    assert not list(adaptive(4).parameters())
    assert not any(b.requires_grad for b in adaptive(4).buffers())


# --------------------------------------------------------------------------------------------- contexts, errors


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)]
)
@pytest.mark.parametrize("source", ["cam", "argmax"])
def test_observe_in_any_context_then_step_outside(context, source):
    layer = nn.Conv2d(2, 4, 1)
    target = torch.randint(0, 4, (1, 24, 24))
    weights, plain = (cf.AdaptiveClassWeights(4, source=source) for _ in range(2))
    with context():
        maps = layer(torch.ones(1, 2, 6, 6)).abs()
        weights.observe(maps, target)
    plain.observe(maps.detach().clone(), target)
    assert weights.step().equal(plain.step())
    assert not weights.weight.is_inference()
    assert not weights.weight.requires_grad


def test_step_inside_inference_mode_then_train():
    weights = adaptive(4)
    with torch.inference_mode():
        weights.observe(*batch(FIRST))
        weights.step()
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    cf.CrossEntropyLoss(weights)(logits, torch.zeros(1, 3, 3, dtype=torch.uint8)).backward()
    assert logits.grad.isfinite().all()


def test_momentum_adds_discounted_counts():
    """Class 3 is missing in the second step and keeps its score, so that its ratio is 1."""
    averaged, plain = adaptive(4, momentum=0.5), adaptive(4)
    first, second = (
        [(60, 20, 20), (10, 30, 10), (8, 4, 12), (6, 2, 4)],
        [(64, 16, 16), (16, 4, 4), (5, 15, 5), (0, 0, 0)],
    )
    for weights in (averaged, plain):
        weights.observe(*batch(first))
        weights.step()
    assert averaged.weight.equal(plain.weight)
    averaged.observe(*batch(second))
    averaged.step()
    sums = [(94, 26, 26), (21, 19, 9), (9, 17, 11), (3, 1, 2)]  # second + first / 2
    plain.observe(*batch(sums))
    plain.step()
    for name in ("weight", "iou", "csps", "base_weight", "ratio_weight"):
        torch.testing.assert_close(getattr(averaged, name), getattr(plain, name))
    assert averaged.csps[3].item() == pytest.approx(0.9 * 6 / 12 + 0.1 * 6 / 10)
    assert averaged.ratio_weight[3].item() == pytest.approx(1)
    assert averaged.history[-1]["pixels"] == [120, 30, 20, 5]


def test_momentum_is_in_the_state():
    one, other = adaptive(4, momentum=0.7), adaptive(4, momentum=0.7)
    for counts in (FIRST, SECOND):
        one.observe(*batch(counts))
        one.step()
    other.load_state_dict(one.state_dict())
    for weights in (one, other):
        weights.observe(*batch(THIRD))
        weights.step()
    same(one, other)


def test_metrics_from_confusion_matrices_without_a_loop():
    """Two batches: 3 + 2 of 8 pixels of class 0 and 1 of 2 of class 1 are right."""
    weights = cf.AdaptiveClassWeights(2, source="argmax", metrics=True)
    for matrix in ([[3, 1], [0, 1]], [[2, 2], [1, 0]]):
        weights.observe_metrics(torch.tensor(matrix))
        weights.observe_confusion(torch.tensor(matrix))
    weights.step()
    assert weights.metrics.iou.tolist() == [5 / 9, 1 / 5]
    assert weights.metrics.pixel_accuracy == 0.6
    assert not weights.confusion.any()


@pytest.mark.parametrize("name", ["observe_metrics", "observe_confusion"])
def test_confusion_matrices_that_do_not_fit_are_named(name):
    weights = cf.AdaptiveClassWeights(3, source="argmax", metrics=True)
    for wrong in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(
            ValueError, match=rf"{name}: matrix must be \(3, 3\), got \({', '.join(map(str, wrong.shape))}"
        ):
            getattr(weights, name)(wrong)
    with pytest.raises(ValueError, match=f"{name}: matrix is on meta, but the weights are on cpu"):
        getattr(weights, name)(torch.zeros(3, 3, dtype=torch.int64, device="meta"))


def test_metrics_that_were_not_asked_for_are_refused():
    with pytest.raises(RuntimeError, match="observe_metrics: pass metrics=True"):
        cf.AdaptiveClassWeights(3).observe_metrics(torch.zeros(3, 3, dtype=torch.int64))


def test_metrics_are_those_of_torchmetrics(reference_libraries):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    model = nn.Conv2d(3, 5, 1)
    cawa = cf.CAWA(model, 5, ignore_index=255, metrics=True)
    assert cawa.weights.metrics is None
    jaccard, accuracy = (
        kind(5, average="none", ignore_index=255) for kind in (MulticlassJaccardIndex, MulticlassAccuracy)
    )
    overall = MulticlassAccuracy(5, average="micro", ignore_index=255)
    for _ in range(3):
        target = torch.randint(0, 5, (2, 12, 14))
        target[:, :2] = 255
        with torch.no_grad():
            prediction = F.interpolate(model(torch.randn(2, 3, 6, 7)), size=(12, 14), mode="bilinear").argmax(1)
        cawa.observe(target)
        for metric in (jaccard, accuracy, overall):
            metric.update(prediction, target)
    cawa.step()
    metrics = cawa.weights.metrics
    torch.testing.assert_close(metrics.iou.float(), jaccard.compute())
    torch.testing.assert_close(metrics.accuracy.float(), accuracy.compute())
    assert metrics.miou == pytest.approx(jaccard.compute().mean().item())
    assert metrics.mean_accuracy == pytest.approx(accuracy.compute().mean().item())
    assert metrics.pixel_accuracy == pytest.approx(overall.compute().item())
    other = cf.AdaptiveClassWeights(5, ignore_index=255, metrics=True)
    other.load_state_dict(cawa.weights.state_dict())
    assert other.metrics.iou.equal(metrics.iou)  # restored, and counted only once
    assert (other.confusion == 0).all()


@pytest.mark.parametrize("source", ["cam", "argmax"])
def test_metrics_change_no_weight(source):
    model = nn.Conv2d(3, 5, 1)
    with_metrics, without = (cf.CAWA(model, 5, source=source, metrics=on) for on in (True, False))
    with torch.no_grad():
        model(torch.randn(2, 3, 6, 7))
    target = torch.randint(0, 5, (2, 12, 14))
    for cawa in (with_metrics, without):
        cawa.observe(target)
    assert with_metrics.step().equal(without.step())


def test_step_without_observe():
    weights = adaptive(4, ignore_index=255)
    with pytest.raises(RuntimeError, match=r"observe\(cam, target\).*ignore_index=255"):
        weights.step()
    weights.observe(torch.rand(1, 4, 2, 2), torch.full((1, 4, 4), 255))
    with pytest.raises(RuntimeError, match="observe"):
        weights.step()
    weights.observe(*batch(FIRST))
    weights.step()
    with pytest.raises(RuntimeError, match="observe"):  # a step resets the counts
        weights.step()
    assert len(weights.history) == 1


def test_observe_errors():
    weights = adaptive(4)
    with pytest.raises(ValueError, match=r"cam has 3 channels.*num_classes=4"):
        weights.observe(torch.rand(1, 3, 2, 2), torch.zeros(1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"cam.*\(4, 2, 2\)"):
        weights.observe(torch.rand(4, 2, 2), torch.zeros(1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="the value 4"):
        weights.observe(torch.rand(1, 4, 2, 2), torch.full((1, 4, 4), 4))
    with pytest.raises(ValueError, match=r"matrix.*\(4, 4\).*\(3, 3\)"):
        weights.observe_confusion(torch.zeros(3, 3, dtype=torch.int64))
    assert (weights.counts == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_classes": -3}, "num_classes must be at least 1, got -3"),
        ({"delta": 1.1}, r"delta must lie in \[0, 1\], got 1.1"),
        ({"delta": NAN}, r"delta must lie in \[0, 1\], got nan"),
        ({"tau": -0.5}, r"tau must lie in \[0, 1\], got -0.5"),
        ({"w_min": -1.0}, "w_min must be.*at least 0, got -1.0"),
        ({"w_min": 3.0, "w_max": 2.0}, "w_max must be at least w_min=3.0, got 2.0"),
        ({"w_min": 0.0, "w_max": 0.0}, "w_max must be positive, got 0.0"),
        ({"w_max": NAN}, "w_max must .*, got nan"),
        ({"eps": 0.0}, "eps must be positive.*, got 0.0"),
        ({"ratio_eps": -0.1}, "ratio_eps must be positive.*, got -0.1"),
        ({"source": "logits"}, "source must be one of cam, argmax; got 'logits'"),
        ({"ratio": "letter"}, "ratio must be one of paper, smoothed, none; got 'letter'"),
        ({"normalize": "softmax"}, "normalize must be one of max, minmax, gradcam, none; got 'softmax'"),
        ({"classes": "some"}, "classes must be one of present, all; got 'some'"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"momentum": NAN}, "momentum must.*, got nan"),
        ({"max_error": 0.0}, "max_error must be positive, got 0.0"),
        ({"class_counts": [1, 2]}, r"class_counts must have the shape \(4,\), got \(2,\)"),
        ({"class_counts": [1, 2, -3, 4]}, r"class_counts must be.*not negative.*\[1, 2, -3, 4\]"),
        ({"class_counts": [0, 0, 0, 0]}, r"class_counts must be.*not all zero.*\[0, 0, 0, 0\]"),
        ({"class_counts": [1.0, 2.0, NAN, 4.0]}, "class_counts must be finite.*nan"),
        ({"class_names": ["road"]}, r"class_names must have 4 names, got \['road'\]"),
    ],
)
def test_constructor_errors_name_the_argument_and_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        cf.AdaptiveClassWeights(**{"num_classes": 4} | options)

"""``AdaptiveClassWeights``: Eq. 2 to 9 on tables worked by hand, and its state."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast import reference

NAN = float("nan")
RATIOS = ("paper", "smoothed", "none")


def batch(counts):
    """Maps (0 or 1) and labels, one image of one row, with these (tp, fp, fn) by class under ``normalize="none"``."""
    counts = torch.as_tensor(counts)
    classes = torch.arange(len(counts))
    target = classes.repeat_interleave(counts[:, 0] + counts[:, 2])
    cam = torch.zeros(len(counts), len(target))
    for c, (tp, fp, _) in enumerate(counts.tolist()):
        cam[c, (target == c).nonzero()[:tp]] = 1
        cam[c, (target != c).nonzero()[:fp]] = 1
    return cam[None, :, None], target.view(1, 1, -1)


def adaptive(num_classes, **options):
    return cf.AdaptiveClassWeights(num_classes, **{"normalize": "none", "classes": "all"} | options)


def close(actual, expected, rtol=2e-6):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=rtol, atol=1e-7, equal_nan=True)


# Four classes, delta = 0.9. Class 3 has no ground truth: no IoU, in no sum and no mean, weight 1.
#
#                      class 0       class 1       class 2       class 3
#   tp fp fn           60 20 20      10 30 10      0 5 10        0 7 0
#   (3) IoU            60/100 = .6   10/50 = .2    0             -
#   (4) PA             60/80 = .75   10/20 = .5    0             -
#   (2) CSPS           .54 + .075    .18 + .05     0             -         sum .845
#                      = .615        = .23
#   (5) ln(1+.845/c)   .864568506    1.54199321    13.6470931    -         .845 / 1e-6 in class 2
#       ln(1+110/n)    .864997430    1.87180213    2.48490656    -         n = 80, 20, 10
#       BW             .747849536    2.88630619    33.9117511    -
#   (6) RW             1             1             1             -         the first step
#   (8) clip           .747849536    2.88630619    20            -         mean 7.87805191
#   (9) w              .0949282316   .366373086    2.53869868    1
FIRST = [(60, 20, 20), (10, 30, 10), (0, 5, 10), (0, 7, 0)]

# Then, with the same ground truth; class 2 leaves 0:
#
#   tp fp fn           64 16 16      16 4 4        5 15 5        0 3 0
#   IoU, PA            2/3, .8       2/3, .8       .2, .5        -
#   CSPS               .68           .68           .23           -         sum 1.59
#   BW                 1.04270361    2.25634757    5.14005077    -
#   RW paper           1.10568926    2.95650888    230000        -         .68 / .615001, .68 / .230001, .23 / 1e-6
#   RW smoothed        1.104         2.875         24            -         .69 / .625, .69 / .24, .24 / .01
#   clip paper         1.15290618    6.67091162    20            -
#   clip smoothed      1.15114479    6.48699925    20            -
#   clip none          1.04270361    2.25634757    5.14005077    -
SECOND = [(64, 16, 16), (16, 4, 4), (5, 15, 5), (0, 3, 0)]
SECOND_RATIO = {"paper": [1.10568926, 2.95650888, 230000], "smoothed": [1.104, 2.875, 24], "none": [1, 1, 1]}
SECOND_WEIGHT = {
    "paper": [0.124307835, 0.719266314, 2.15642585, 1],
    "smoothed": [0.124951746, 0.704135478, 2.17091278, 1],
    "none": [0.370668687, 0.802104625, 1.82722669, 1],
}

# Then class 1 falls to 0 and the others stay: its ratio is 0 to the letter, .01 / .69 smoothed.
#
#   tp fp fn           64 16 16      0 4 20        5 15 5        0 0 0
#   CSPS               .68           0             .23           -         sum .91
#   BW                 .734725059    25.6833733    3.97759182    -
#   RW paper           .999998529    0             .999995652    -
#   RW smoothed        1             .0144927536   1             -
#   clip paper         .734723979    .1            3.97757453    -
#   clip smoothed      .734725059    .372222801    3.97759182    -
#   clip none          .734725059    20            3.97759182    -
THIRD = [(64, 16, 16), (0, 4, 20), (5, 15, 5), (0, 0, 0)]
THIRD_WEIGHT = {
    "paper": [0.45802893, 0.0623402725, 2.4796308, 1],
    "smoothed": [0.433505355, 0.219620354, 2.34687429, 1],
    "none": [0.0891933843, 2.42793908, 0.482867532, 1],
}


@pytest.mark.parametrize("ratio", RATIOS)
def test_three_steps_by_hand(ratio):
    weights = adaptive(4, ratio=ratio)
    close(weights.weight, [1.0, 1.0, 1.0, 1.0])
    weights.observe(*batch(FIRST))
    assert weights.step() is weights.weight
    close(weights.iou, [0.6, 0.2, 0.0, NAN])
    close(weights.pixel_accuracy, [0.75, 0.5, 0.0, NAN])
    close(weights.csps, [0.615, 0.23, 0.0, NAN])
    close(weights.base_weight, [0.747849536, 2.88630619, 33.9117511, NAN])
    close(weights.ratio_weight, [1.0, 1.0, 1.0, NAN])
    close(weights.weight, [0.0949282316, 0.366373086, 2.53869868, 1.0])

    weights.observe(*batch(SECOND))
    weights.step()
    close(weights.csps, [0.68, 0.68, 0.23, NAN])
    close(weights.base_weight, [1.04270361, 2.25634757, 5.14005077, NAN])
    close(weights.ratio_weight, [float(r) for r in SECOND_RATIO[ratio]] + [NAN])
    close(weights.weight, [float(w) for w in SECOND_WEIGHT[ratio]])

    weights.observe(*batch(THIRD))
    weights.step()
    close(weights.weight, [float(w) for w in THIRD_WEIGHT[ratio]])

    assert [record["step"] for record in weights.history] == [1, 2, 3]
    close(torch.tensor(weights.history[1]["weight"]), [float(w) for w in SECOND_WEIGHT[ratio]])
    close(torch.tensor(weights.history[2]["csps"]), [0.68, 0.0, 0.23, NAN])


def test_the_default_ratio_has_no_dead_class_trap():
    """To the letter, a class that is at 0 twice falls to ``w_min``; by default its ratio is 1."""
    weights, letter = adaptive(4), adaptive(4, ratio="paper")
    for w in (weights, letter):
        for _ in range(2):
            w.observe(*batch(FIRST))
            w.step()
    close(letter.ratio_weight[2], 0.0)
    assert letter.weight[2] == letter.weight.min()
    close(weights.ratio_weight[2], 1.0)
    close(weights.weight, [0.0949282316, 0.366373086, 2.53869868, 1.0])


def test_class_counts_replace_the_observed_pixels():
    """n = 900, 90, 10 of 1000: ln(1 + 1000/n) = .747214401 2.49412329 4.61512042, clip .646018038 3.8459212 20."""
    weights = adaptive(4, class_counts=[900, 90, 10, 0])
    weights.observe(*batch(FIRST))
    close(weights.step(), [0.0791302843, 0.471084118, 2.4497856, 1.0])


def test_clipping():
    """To [2, 5]: 2, 2.88630619, 5, of mean 3.29543540."""
    weights = adaptive(4, w_min=2.0, w_max=5.0)
    weights.observe(*batch(FIRST))
    close(weights.step(), [0.606900078, 0.875849726, 1.5172502, 1.0])


def test_a_class_seen_for_the_first_time_later_has_ratio_1():
    weights = adaptive(3)
    weights.observe(*batch([(5, 1, 5), (6, 0, 4), (0, 0, 0)]))
    weights.step()
    weights.observe(*batch([(5, 1, 5), (6, 0, 4), (3, 0, 7)]))
    weights.step()
    close(weights.ratio_weight, [1.0, 1.0, 1.0])


def test_a_class_missing_for_one_step_compares_with_the_step_before():
    """CSPS .6 (no false positives: IoU = PA = CSPS), nothing, .3: the ratio is (.3 + .01) / (.6 + .01)."""
    weights = adaptive(2)
    for last in [(6, 0, 4), (0, 0, 0), (3, 0, 7)]:
        weights.observe(*batch([(5, 0, 5), last]))
        weights.step()
    close(weights.ratio_weight, [1.0, 0.31 / 0.61])


def test_one_class():
    weights = adaptive(1)
    weights.observe(*batch([(3, 0, 4)]))
    close(weights.step(), [1.0])


# Cityscapes: 200,000 pixels of 19 classes. Road, building, pole and traffic sign have 36.9, 22.8, 1.23 and 0.55 % of
# them and a CSPS of .97, .90, .60 and .75; the other 15 share the rest and have .7187 each, so that all sum to 14.
CITYSCAPES = [(71586, 0, 2214), (41040, 0, 4560), (1476, 0, 984), (825, 0, 275)] + 15 * [(3691, 0, 1445)]


def test_cityscapes_example_of_the_paper():
    csps = torch.tensor([0.97, 0.90, 0.60, 0.75] + 15 * [(14 - 3.22) / 15])
    share = torch.tensor([0.369, 0.228, 0.0123, 0.0055] + 15 * [0.3852 / 15])
    base = reference.base_weight(csps.double(), 200_000 * share.double(), 1e-6)[:4]
    assert [round(b, 1) for b in base.tolist()] == [3.6, 4.7, 14.1, 15.5]
    assert (base / base.mean()).tolist() == pytest.approx([0.379, 0.499, 1.485, 1.637], abs=6e-4)

    weights = adaptive(19)
    weights.observe(*batch(CITYSCAPES))
    weights.step()
    close(weights.csps[:4], [0.97, 0.90, 0.60, 0.75])
    assert [round(b, 1) for b in weights.base_weight[:4].tolist()] == [3.6, 4.7, 14.1, 15.5]
    four = weights.weight[:4] / weights.weight[:4].mean()
    assert four.tolist() == pytest.approx([0.379, 0.499, 1.485, 1.637], abs=6e-4)
    assert weights.weight.mean().item() == pytest.approx(1)


def test_counts_of_batches_are_summed_before_any_quotient():
    together, apart = adaptive(4), adaptive(4)
    cam, target = batch(FIRST)
    together.observe(cam, target)
    for columns in (slice(0, 17), slice(17, 18), slice(18, None)):
        apart.observe(cam[..., columns], target[..., columns])
    assert together.step().equal(apart.step())


def test_argmax_source_is_the_confusion_matrix():
    logits, target = torch.randn(2, 4, 6, 6), torch.randint(0, 4, (2, 24, 24))
    target[:, :4] = 255
    weights = cf.AdaptiveClassWeights(4, source="argmax", ignore_index=255)
    weights.observe(logits, target)
    weights.step()
    matrix = CF.confusion_matrix(logits, target, ignore_index=255).double()
    tp = matrix.diagonal()
    close(weights.iou, (tp / (matrix.sum(0) + matrix.sum(1) - tp)).float().tolist())
    close(weights.pixel_accuracy, (tp / matrix.sum(1)).float().tolist())
    other = cf.AdaptiveClassWeights(4, source="argmax")
    other.observe_confusion(matrix.long())
    assert other.step().equal(weights.weight)


def test_cam_options_reach_the_counting():
    cam, target = torch.rand(2, 4, 6, 6), torch.randint(0, 4, (2, 23, 25))
    options = {"tau": 0.7, "normalize": "minmax", "classes": "all", "ignore_index": 1, "align_corners": True}
    weights = cf.AdaptiveClassWeights(4, **options)
    weights.observe(cam, target)
    tp, fp, fn = CF.cam_counts(cam, target, **options)
    weights.step()
    expected = (tp / (tp + fp + fn)).where(tp + fn > 0, NAN)
    close(weights.iou, expected.tolist())


def test_the_weight_is_updated_in_place_and_a_loss_sees_it():
    weights = adaptive(4)
    buffer, address = weights.weight, weights.weight.data_ptr()
    loss_fn = cf.CrossEntropyLoss(weights)
    logits, target = torch.randn(1, 4, 3, 3), torch.randint(0, 4, (1, 9, 9))
    before = loss_fn(logits, target)
    weights.observe(*batch(FIRST))
    weights.step()
    assert weights.weight is buffer
    assert weights.weight.data_ptr() == address
    z = F.interpolate(logits, (9, 9), mode="bilinear")
    torch.testing.assert_close(before, F.cross_entropy(z, target))
    torch.testing.assert_close(loss_fn(logits, target), F.cross_entropy(z, target, weights.weight))


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
    """Class 3 of the first step is missing in the second, and keeps its score: its ratio is 1."""
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


def test_metrics_are_those_of_torchmetrics(peers):
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
    assert other.metrics.iou.equal(metrics.iou)  # kept, and not counted twice
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
    with pytest.raises(RuntimeError, match="observe"):  # the counts start anew
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
        ({"source": "logits"}, "source must be one of cam, argmax, got 'logits'"),
        ({"ratio": "letter"}, "ratio must be one of paper, smoothed, none, got 'letter'"),
        ({"normalize": "softmax"}, "normalize must be one of max, minmax, gradcam, none, got 'softmax'"),
        ({"classes": "some"}, "classes must be one of present, all, got 'some'"),
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

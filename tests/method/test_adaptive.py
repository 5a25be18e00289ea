"""``AdaptiveClassWeights``: Eq. 2 to 9 on tables worked by hand."""

import pytest
import torch
import torch.nn.functional as F

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast import _rules
from tests.support.observed import (
    FIRST,
    SECOND,
    SECOND_RATIO,
    SECOND_WEIGHT,
    THIRD,
    THIRD_WEIGHT,
    adaptive,
    batch,
    close,
)

NAN = float("nan")
RATIOS = ("paper", "smoothed", "none")


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


@pytest.mark.parametrize("ratio", ["smoothed", "none"])
def test_only_the_papers_ratio_traps_a_dead_class(ratio):
    """With the paper's ratio, a class whose score is 0 in two steps falls to ``w_min``. With the others its ratio is 1.

    The default is one of the others.
    """
    assert cf.AdaptiveClassWeights(4).ratio == "none"
    weights, letter = adaptive(4, ratio=ratio), adaptive(4, ratio="paper")
    for w in (weights, letter):
        for _ in range(2):
            w.observe(*batch(FIRST))
            w.step()
    close(letter.ratio_weight[2], 0.0)
    assert letter.weight[2] == letter.weight.min()
    close(weights.ratio_weight[2], 1.0)
    close(weights.weight, [0.0949282316, 0.366373086, 2.53869868, 1.0])


def test_class_counts_replace_the_observed_pixels():
    """n = 900, 90, 10 of 1000: ln(1 + 1000/n) = .747214401 2.49412329 4.61512042; clip .646018038 3.8459212 20."""
    weights = adaptive(4, class_counts=[900, 90, 10, 0])
    weights.observe(*batch(FIRST))
    close(weights.step(), [0.0791302843, 0.471084118, 2.4497856, 1.0])


def test_clipping():
    """Clipped to [2, 5]: 2, 2.88630619, 5, with mean 3.29543540."""
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
    """The CSPS is .6, missing, then .3, so that the ratio is (.3 + .01) / (.6 + .01).

    Without false positives, IoU = PA = CSPS.
    """
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
    base = _rules.base_weight(csps.double(), 200_000 * share.double(), 1e-6)[:4]
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


def test_a_default_device_does_not_matter():
    """With ``torch.set_default_device``, a step still creates its tensors on the device of the counts."""
    weights = cf.AdaptiveClassWeights(3)
    weights.observe(torch.rand(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8)))
    with torch.device("meta"):
        weights.step()
    assert weights.weight.isfinite().all()

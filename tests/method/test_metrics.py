"""``SegmentationMetrics``: values by hand, those of torchmetrics and MMSegmentation, contexts, state, figures."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast import evaluation
from cawa_fast.metrics import MetricValues

C = 5
TABLE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def batch(classes: int = C) -> tuple[Tensor, Tensor]:
    target = torch.randint(0, classes, (3, 20, 24), dtype=torch.uint8)
    target[:, :3] = 255
    return torch.randn(3, classes, 5, 6), target


def values_of(prediction: Tensor, target: Tensor, classes: int, **options: Any) -> MetricValues:
    metrics = cf.SegmentationMetrics(classes, **options)
    metrics.update(prediction, target)
    return metrics.compute()


def same(a: MetricValues, b: MetricValues) -> None:
    for name, value in a._asdict().items():
        torch.testing.assert_close(value, getattr(b, name), rtol=0, atol=0, equal_nan=True)


def test_by_hand() -> None:
    """Ten pixels; class 3 does not occur, class 2 is predicted once and never labelled.

    =====  ==  ==  ==  ======  ========  =======
    class  TP  FP  FN  IoU     accuracy  Dice
    0       3   1   3  3 / 7   3 / 6     6 / 10
    1       3   2   1  3 / 6   3 / 4     6 / 9
    2       0   1   0  0       undef.    0
    =====  ==  ==  ==  ======  ========  =======
    """
    target = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 9]]])
    prediction = torch.tensor([[[0, 0, 0, 1, 1, 2, 1, 1, 1, 0, 0]]])
    values = values_of(prediction, target, 4, ignore_index=9)
    nan = math.nan
    expected = {
        "miou": (3 / 7 + 3 / 6 + 0) / 3,
        "mean_accuracy": (3 / 6 + 3 / 4) / 2,
        "pixel_accuracy": 6 / 10,
        "iou": [3 / 7, 3 / 6, 0, nan],
        "accuracy": [3 / 6, 3 / 4, nan, nan],
        "mean_dice": (6 / 10 + 6 / 9 + 0) / 3,
        "dice": [6 / 10, 6 / 9, 0, nan],
        "frequency_weighted_iou": (6 * 3 / 7 + 4 * 3 / 6) / 10,
    }
    assert values._asdict().keys() == expected.keys() | {"confusion"}
    for name, value in expected.items():
        wanted = torch.tensor(value, dtype=torch.float64)
        found = torch.as_tensor(getattr(values, name), dtype=torch.float64)
        torch.testing.assert_close(found, wanted, equal_nan=True, msg=name)
    assert values.confusion.tolist() == [[3, 2, 1, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def mmsegmentation(prediction: Tensor, target: Tensor, classes: int, ignore_index: int) -> dict[str, Tensor]:
    """The values of its ``IoUMetric``, from the definition in its documentation, not rounded and not in percent."""
    kept = target != ignore_index
    prediction, target = prediction[kept], target[kept]
    hit = torch.bincount(target[prediction == target], minlength=classes)[:classes].double()
    predicted, labelled = (torch.bincount(x, minlength=classes)[:classes].double() for x in (prediction, target))
    precision, recall = hit / predicted, hit / labelled
    result = {
        "IoU": hit / (predicted + labelled - hit),
        "Acc": hit / labelled,
        "Dice": 2 * hit / (predicted + labelled),
        "Fscore": 2 * precision * recall / (precision + recall),
    }
    return result | {f"m{name}": value.nanmean() for name, value in result.items()} | {"aAcc": hit.sum() / kept.sum()}


@pytest.mark.parametrize("classes", [2, 19, 150])
@pytest.mark.usefixtures("torchmetrics")
def test_torchmetrics_and_mmsegmentation_where_all_classes_occur(classes: int) -> None:
    from torchmetrics.classification import (
        MulticlassAccuracy,
        MulticlassConfusionMatrix,
        MulticlassF1Score,
        MulticlassJaccardIndex,
    )

    options = {"num_classes": classes, "ignore_index": 255}
    theirs = {
        "iou": MulticlassJaccardIndex(average="none", **options),
        "miou": MulticlassJaccardIndex(average="macro", **options),
        "frequency_weighted_iou": MulticlassJaccardIndex(average="weighted", **options),
        "accuracy": MulticlassAccuracy(average="none", **options),
        "mean_accuracy": MulticlassAccuracy(average="macro", **options),
        "pixel_accuracy": MulticlassAccuracy(average="micro", **options),
        "dice": MulticlassF1Score(average="none", **options),
        "mean_dice": MulticlassF1Score(average="macro", **options),
        "confusion": MulticlassConfusionMatrix(**options),
    }
    metrics = cf.SegmentationMetrics(classes, ignore_index=255)
    seen = []
    for _ in range(2):
        target = torch.randint(0, classes, (3, 60, 72))
        target[:, :3] = 255
        logits = torch.randn(3, classes, 15, 18) + F.one_hot(target[:, ::4, ::4] % 255, 256).movedim(-1, 1)[:, :classes]
        prediction = F.interpolate(logits, target.shape[1:], mode="bilinear").argmax(1)
        metrics.update(logits, target)
        for metric in theirs.values():
            metric.update(prediction, target)
        seen.append((prediction, target))
    ours = metrics.compute()
    assert (ours.confusion.sum(0) > 0).all()
    for name, metric in theirs.items():
        found = torch.as_tensor(getattr(ours, name))
        torch.testing.assert_close(found, metric.compute(), check_dtype=False, rtol=1e-5, atol=1e-6)
    prediction, target = (torch.cat(part) for part in zip(*seen, strict=True))
    mmseg = mmsegmentation(prediction, target, classes, 255)
    pairs = {"iou": "IoU", "miou": "mIoU", "accuracy": "Acc", "mean_accuracy": "mAcc", "dice": "Dice"}
    for name, other in (pairs | {"mean_dice": "mDice", "pixel_accuracy": "aAcc"}).items():
        torch.testing.assert_close(torch.as_tensor(getattr(ours, name), dtype=torch.float64), mmseg[other])


class TestTheTableOfDifferences:
    """The rows of docs/metrics.md in their order: classes 0 both, 1 labelled only, 2 predicted only, 3 neither."""

    target = torch.tensor([[[0, 0, 0, 1, 1, 0]]])
    prediction = torch.tensor([[[0, 0, 2, 0, 0, 0]]])

    @pytest.fixture(autouse=True)
    def _setup(self, torchmetrics: None) -> None:
        import torchmetrics.classification
        import torchmetrics.segmentation

        self.classification, self.segmentation = torchmetrics.classification, torchmetrics.segmentation
        self.ours = values_of(self.prediction, self.target, 4)
        self.mmseg = mmsegmentation(self.prediction, self.target, 4, 255)

    def theirs(self, kind: str, average: str = "none", **options: Any) -> Tensor:
        metric = getattr(self.classification, kind)(4, average=average, **options)
        metric.update(self.prediction, self.target)
        return metric.compute()

    def row(self, start: str) -> None:
        assert f"\n| {start}" in TABLE

    def test_neither(self) -> None:
        self.row("a class that is neither labelled nor predicted: IoU, Dice by class | NaN | 0; ")
        assert self.ours.iou[3].isnan()
        assert self.ours.dice[3].isnan()
        assert self.theirs("MulticlassJaccardIndex")[3] == self.theirs("MulticlassF1Score")[3] == 0
        dice = self.segmentation.DiceScore(4, input_format="index", average="none", include_background=True)
        mean = self.segmentation.MeanIoU(4, input_format="index", per_class=True)
        for metric in (dice, mean):
            metric.update(self.prediction, self.target)
        assert dice.compute()[3].isnan()
        assert mean.compute()[3] == -1
        assert self.mmseg["IoU"][3].isnan()
        assert self.mmseg["Dice"][3].isnan()

    def test_neither_in_the_means_and_predicted_only_in_the_means(self) -> None:
        self.row("the same class in the means | left out | left out | left out |")
        self.row("a class that is predicted but not labelled, in the mean IoU and Dice | counts as 0 |")
        iou, dice = 3 / 6, 2 * 3 / 9  # of class 0; those of 1 and 2 are 0
        assert self.ours.miou == pytest.approx(iou / 3)
        assert self.ours.mean_dice == pytest.approx(dice / 3)
        assert self.theirs("MulticlassJaccardIndex", "macro") == pytest.approx(iou / 3)
        assert self.theirs("MulticlassF1Score", "macro") == pytest.approx(dice / 3)
        assert self.mmseg["mIoU"] == pytest.approx(iou / 3)
        assert self.mmseg["mDice"] == pytest.approx(dice / 3)

    def test_accuracy_without_labels(self) -> None:
        self.row("a class without labels: accuracy by class | NaN | 0 | NaN |")
        self.row('the same class in the mean accuracy | left out | counts as 0 (`average="macro"`) | left out |')
        assert self.ours.accuracy.isnan().tolist() == self.mmseg["Acc"].isnan().tolist() == [False, False, True, True]
        assert self.theirs("MulticlassAccuracy")[2:].tolist() == [0, 0]
        assert self.ours.mean_accuracy == self.mmseg["mAcc"] == (3 / 4 + 0) / 2
        assert self.theirs("MulticlassAccuracy", "macro") == (3 / 4 + 0 + 0) / 3

    def test_f1_without_a_true_positive(self) -> None:
        self.row("a class without a true positive, in the mean F1 | counts as 0 | counts as 0 | `mFscore`: left out;")
        assert self.mmseg["mFscore"] == pytest.approx(2 / 3)
        assert self.ours.dice[1:3].tolist() == self.theirs("MulticlassF1Score")[1:3].tolist() == [0, 0]

    def test_an_ignore_index_that_is_a_class(self) -> None:
        self.row("`ignore_index` is one of the classes, and is predicted elsewhere: IoU, mean IoU | counts as 0 | left")
        self.target, self.prediction = torch.tensor([[[0, 0, 1, 1, 2, 2]]]), torch.tensor([[[0, 1, 1, 0, 2, 1]]])
        ours = values_of(self.prediction, self.target, 4, ignore_index=1)
        assert ours.iou[:3].tolist() == [0.5, 0, 0.5]
        assert ours.miou == mmsegmentation(self.prediction, self.target, 4, 1)["mIoU"] == pytest.approx(1 / 3)
        assert self.theirs("MulticlassJaccardIndex", "macro", ignore_index=1) == 0.5

    def test_nothing(self) -> None:
        self.row("nothing was counted: all values | NaN | 0 | NaN |")
        self.target = torch.full_like(self.target, 255)
        ours = values_of(self.prediction, self.target, 4, ignore_index=255)
        numbers = [torch.as_tensor(value) for value in ours[:-1]]
        assert all(number.isnan().all() for number in numbers)
        assert not ours.confusion.any()
        same(ours, cf.SegmentationMetrics(4).compute())
        for kind in ("MulticlassJaccardIndex", "MulticlassAccuracy", "MulticlassF1Score"):
            assert self.theirs(kind, "micro", ignore_index=255) == 0
        assert mmsegmentation(self.prediction, self.target, 4, 255)["aAcc"].isnan()

    def test_several_batches(self) -> None:
        self.row("several batches | one matrix | one matrix; `segmentation.MeanIoU`: mean of the images' values |")
        metrics = cf.SegmentationMetrics(2)
        jaccard = self.classification.MulticlassJaccardIndex(2, average="none")
        mean = self.segmentation.MeanIoU(2, input_format="index", per_class=True)
        for prediction, target in (([0, 0, 0, 0], [0, 0, 0, 1]), ([0, 1, 1, 1], [1, 0, 1, 1])):
            for metric in (metrics, jaccard, mean):
                metric.update(torch.tensor([[prediction]]), torch.tensor([[target]]))
        assert metrics.compute().iou.tolist() == [3 / 6, 2 / 5]
        torch.testing.assert_close(jaccard.compute(), torch.tensor([3 / 6, 2 / 5]))
        torch.testing.assert_close(mean.compute(), torch.tensor([(3 / 4 + 0) / 2, (0 + 2 / 4) / 2]))


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_in_any_context(context: Any) -> None:
    logits, target = batch()
    with context():
        inside = cf.SegmentationMetrics(C, ignore_index=255, align_corners=True)
        inside._apply(torch.clone).update(logits, target)  # what .to(device) does
        inside.compute()
    inside.update(logits.requires_grad_(), target)
    matrix = CF.confusion_matrix(logits, target, ignore_index=255, align_corners=True)
    assert inside.compute().confusion.equal(2 * matrix)
    assert not inside.summed.is_inference()


def test_logits_predictions_volumes_and_masks() -> None:
    logits, target = batch()
    whole = values_of(logits, target, C, ignore_index=255)
    prediction = F.interpolate(logits, target.shape[1:], mode="bilinear").argmax(1)
    same(whole, values_of(prediction.to(torch.uint8), target, C, ignore_index=255))
    same(whole, values_of(prediction[None], target[None], C, ignore_index=255))
    one_hot = F.one_hot(prediction, C).movedim(-1, 0)[None].float()
    same(whole, values_of(one_hot, target[None], C, ignore_index=255))
    masked = cf.SegmentationMetrics(C, ignore_index=255)
    masked.update(logits, target, mask=[True, False, True])
    same(masked.compute(), values_of(logits[::2], target[::2], C, ignore_index=255))


def test_updates_add_up_and_reset_forgets() -> None:
    metrics, (first, second) = cf.SegmentationMetrics(C, ignore_index=255), (batch(), batch())
    metrics.update(*first)
    same(metrics.compute(), values_of(*first, C, ignore_index=255))
    metrics.sync()
    metrics.update(*second)  # what was summed before is kept
    both = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
    for sync in (False, True):
        same(metrics.compute(sync=sync), values_of(*both, C, ignore_index=255))
    metrics.reset()
    metrics.update(*second)
    same(metrics.compute(), values_of(*second, C, ignore_index=255))


def test_sums_over_processes_are_not_summed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another process had counted the same, and a process that only prints did not wait for it."""
    sums = []
    monkeypatch.setattr(evaluation, "sum_if_distributed", lambda counts, group: sums.append(counts.mul_(2)))
    metrics, (logits, target) = cf.SegmentationMetrics(C), batch()
    target = target.clamp(max=4)
    matrix = CF.confusion_matrix(logits, target)
    metrics.update(logits, target)
    assert metrics.compute(sync=False).confusion.equal(matrix)
    assert metrics.compute().confusion.equal(2 * matrix)
    assert metrics.compute().confusion.equal(2 * matrix)
    assert len(sums) == 1
    metrics.update(logits, target)
    assert metrics.compute(sync=False).confusion.equal(3 * matrix)
    assert metrics.compute().confusion.equal(4 * matrix)
    metrics.reset()
    assert not metrics.compute().confusion.any()
    assert len(sums) == 3  # the others may have counted


@pytest.mark.parametrize(
    "twin",
    [
        copy.deepcopy,
        lambda metrics: pickle.loads(pickle.dumps(metrics)),
        lambda metrics: (
            fresh := cf.SegmentationMetrics(C, ignore_index=255),
            fresh.load_state_dict(metrics.state_dict()),
        )[0],
    ],
    ids=["deepcopy", "pickle", "state_dict"],
)
def test_state(twin: Any) -> None:
    metrics = cf.SegmentationMetrics(C, ignore_index=255).half()
    metrics.update(*batch())
    metrics.sync()
    metrics.update(*batch())
    other = twin(metrics)
    assert {name: value.dtype for name, value in other.state_dict().items()} == dict.fromkeys(
        ("local", "summed"), torch.int64
    )
    for each in (metrics, other):
        torch.manual_seed(1)
        each.update(*batch())
    same(metrics.compute(), other.compute())


def test_the_values_of_the_closed_loop_are_the_same() -> None:
    logits, target = batch()
    cawa = cf.CAWA(None, C, ignore_index=255, metrics=True)
    cawa.observe(target, logits=logits)
    cawa.step()
    same(cawa.weights.metrics, values_of(logits, target, C, ignore_index=255))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, r"num_classes must lie in \[1, 65535\], got 0"),
        ({"num_classes": "19"}, TypeError, "num_classes must be an integer, got the str '19'"),
        ({"ignore_index": None}, TypeError, "ignore_index must be an integer, got None"),
        ({"align_corners": "yes"}, TypeError, "align_corners must be True or False"),
        ({"class_names": ["road"]}, ValueError, r"class_names must have 5 names, got \['road'\]"),
        ({"class_names": "road"}, TypeError, "class_names must be a list of 5 names, got the str 'road'"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"SegmentationMetrics: {message}"):
        cf.SegmentationMetrics(**({"num_classes": C} | options))


def test_batches_that_do_not_fit_change_nothing() -> None:
    metrics, (logits, target) = cf.SegmentationMetrics(C), batch()
    for arguments, message in [
        ((logits[:, :4], target), r"input has 4 channels, but num_classes=5; got \(3, 4, 5, 6\)"),
        ((logits, target), "target: 216 pixels have the value 255"),
        ((logits, target[:2]), r"target must be \(N, H, W\) with N = 3"),
        ((torch.full_like(target, 5), target.clamp(max=4)), "input: 1440 pixels have the value 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            metrics.update(*arguments)
    with pytest.raises(ValueError, match=r"SegmentationMetrics.update: mask must be bool of shape \(3,\)"):
        metrics.update(logits, target, mask=[True])
    with pytest.raises(TypeError, match=r"SegmentationMetrics\.sync: group must be None or a process group"):
        metrics.sync(group=0)
    assert not metrics.local.any()


def test_the_figure() -> None:
    import matplotlib.pyplot as plt

    metrics = cf.SegmentationMetrics(C, ignore_index=255, class_names=["road", "$x$", "a$", "pole", "none"])
    logits, target = batch(4)
    metrics.update(F.pad(logits, (0, 0, 0, 0, 0, 1), value=-9), target)
    figure, axes = metrics.plot()
    values = metrics.compute()
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([*values.iou[:4].tolist(), 0])
    figure.canvas.draw()
    assert [label.get_text().replace("\\", "") for label in axes.get_yticklabels()] == list(metrics.class_names)
    assert axes.texts[4].get_text() == "–"
    assert f"mIoU {values.miou:.3f}" in axes.get_title()
    plt.close(figure)

"""Training: what a run computes, measures and writes."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cawa_fast as cf
from cawa_fast import functional as CF
from cawa_fast.metrics import segmentation_metrics
from cawa_fast.recipes.config import LOSSES, WEIGHTINGS, TrainConfig
from cawa_fast.recipes.datasets import build_dataset
from cawa_fast.recipes.runs.folder import RunFolder
from cawa_fast.recipes.training.loaders import Loaders, normalize_images, open_split
from cawa_fast.recipes.training.metrics_log import metrics_record
from cawa_fast.recipes.training.trainer import Trainer
from tests.support import trees
from tests.support.tiny_runs import TINY, Silent, camvid_with_void, run


@pytest.mark.parametrize("weighting", ["recall", "difficulty"])
def test_crops_of_a_class_with_weight_0_train_nothing_and_end_no_run(tmp_path: Path, weighting: str) -> None:
    """Where everything is predicted as the frequent class, it has recall 1, and many crops contain no other class."""
    mask = np.zeros((64, 64), np.uint8)
    mask[2:6, 2:6], mask[50:53, 50:53] = 1, 2
    root = tmp_path / "data"
    for split, images in (("train", 16), ("val", 4)):
        trees.folder(root, split, [mask] * images, classes="ground\npole\nsign\n")
    config = TrainConfig(
        dataset="folder",
        root=str(root),
        weighting=weighting,
        crop=(24, 24),
        batch_size=2,
        epochs=3,
        threads=1,
        workers=0,
        device="cpu",
    )
    records = run(tmp_path / "run", config)
    assert records[0]["weight"] == [0.0, 1.5, 1.5]
    assert all(math.isfinite(record["train_loss"]) for record in records)


_UNIFORM = ("uniform", "focal", "logit_adjustment", "dice", "seesaw")
"""Weightings without class weights."""


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_trains_and_writes_the_documented_records(tmp_path: Path, weighting: str) -> None:
    progress = Silent()
    config = replace(TINY, weighting=weighting)
    records = Trainer(config, RunFolder(tmp_path), progress).fit()
    assert progress.images == {"train": 16, "validate": 8}
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == records
    assert [record["epoch"] for record in records] == [1, 2]
    for record in records:
        for name in ("iou", "accuracy", "csps", "weight"):
            assert len(record[name]) == 10
        assert record["train_loss"] > 0
        assert 0 < record["miou"] < 1
        assert 0 < record["pixel_accuracy"] < 1
        parts = {"data", "forward", "loss", "backward", "optimizer", "val_data", "val_forward", "val_metric", "total"}
        assert parts <= record["seconds"].keys()
        assert sum(record["seconds"].values()) - record["seconds"]["total"] <= record["seconds"]["total"]
    adaptive = weighting in ("cawa", "recall", "difficulty", "balanced", "decoupled")
    assert ("observe" in records[0]["seconds"]) == adaptive
    assert (records[0]["awa_overhead"] > 0) == adaptive
    assert any(value is not None for value in records[0]["csps"]) == adaptive
    assert (len(set(records[-1]["weight"])) == 1) == (weighting in _UNIFORM)
    assert {path.name for path in tmp_path.iterdir() if "tfevents" not in path.name} == {
        "config.json",
        "dataset.json",
        "metrics.jsonl",
        "confusion.json",
        "latest.pt",
        "previous.pt",
        "best.pt",
    }
    assert RunFolder(tmp_path).read_config() == config
    kept = json.loads((tmp_path / "confusion.json").read_text())
    assert kept["epoch"] == 2
    assert kept["matrix"] == validated(tmp_path, config).tolist()
    metrics = metrics_record(segmentation_metrics(torch.tensor(kept["matrix"])))
    assert metrics == {name: records[-1][name] for name in metrics}


@pytest.mark.parametrize("weighting", ["power", "balanced"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_with_class_weights(tmp_path: Path, loss: str, weighting: str) -> None:
    trainer = Trainer(replace(TINY, weighting=weighting, loss=loss), RunFolder(tmp_path), Silent())
    records = trainer.fit()
    assert all(record["train_loss"] > 0 for record in records)
    parts = {"ce": [cf.CrossEntropyLoss], "ohem": [cf.OhemCrossEntropyLoss], "focal": [cf.FocalLoss]}
    parts |= {"dice": [cf.DiceLoss], "jaccard": [cf.JaccardLoss], "tversky": [cf.TverskyLoss]}
    expected = [kind for part in loss.split("+") for kind in parts[part]]
    modules = [m for m in (trainer.criterion, *trainer.criterion.children()) if type(m) in expected]
    assert [type(m) for m in modules] == expected
    for module in modules:
        weights = module.weight if weighting == "power" else module.adaptive.weight
        assert weights.tolist() == records[-1]["weight"]


def test_a_weighting_that_is_a_loss_refuses_another_loss() -> None:
    with pytest.raises(ValueError, match=r"loss='ce\+dice' does not go with weighting='focal'.*use loss='ce'"):
        replace(TINY, weighting="focal", loss="ce+dice")


def validated(path: Path, config: TrainConfig) -> torch.Tensor:
    """The confusion matrix of the run's last network, computed from the checkpoint."""
    network = config.network(10)
    network.load_state_dict(torch.load(path / "latest.pt", weights_only=True)["model"])
    network.eval()
    data = open_split(config, "val")
    pairs = [data.read(index) for index in range(len(data))]
    images = torch.stack([torch.tensor(image).permute(2, 0, 1) for image, _ in pairs])
    labels = torch.stack([torch.tensor(label) for _, label in pairs])
    with torch.no_grad():
        return CF.confusion_matrix(network(normalize_images(images)), labels, ignore_index=255)


@pytest.mark.parametrize(
    "options", [{"source": "argmax"}, {"budget": 3}, {"every": 2, "epochs": 3}], ids=["argmax", "budget", "every"]
)
def test_metrics_are_of_all_validation_images_however_classes_are_scored(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    config = replace(TINY, **options)
    records = run(tmp_path, config)
    metrics = metrics_record(segmentation_metrics(validated(tmp_path, config)))
    assert metrics == {name: records[-1][name] for name in metrics}


def test_tensorboard_events_hold_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = run(tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("miou")] == [1, 2]
    for event, record in zip(events.Scalars("weight/pole"), records, strict=True):
        assert event.value == pytest.approx(record["weight"][6])


def test_metrics_equal_torchmetrics(torchmetrics: None) -> None:
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 5, (4000,), generator=generator)
    prediction = torch.where(torch.rand(4000, generator=generator) < 0.6, target, target.roll(1))
    matrix = torch.zeros(5, 5, dtype=torch.int64)
    matrix.index_put_((target, prediction), torch.tensor(1), accumulate=True)
    metrics = metrics_record(segmentation_metrics(matrix))
    iou = multiclass_jaccard_index(prediction, target, 5, average="none")
    assert metrics["iou"] == pytest.approx(iou.tolist(), abs=1e-6)
    assert metrics["miou"] == pytest.approx(iou.mean().item(), abs=1e-6)
    accuracy = multiclass_accuracy(prediction, target, 5, average="none")
    assert metrics["accuracy"] == pytest.approx(accuracy.tolist(), abs=1e-6)
    assert metrics["pixel_accuracy"] == pytest.approx((prediction == target).double().mean().item())


def test_metrics_of_an_absent_class_are_none_and_left_out_of_the_mean() -> None:
    metrics = metrics_record(segmentation_metrics(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])))
    assert metrics["iou"] == [0.75, 0.8, None]
    assert metrics["miou"] == pytest.approx(0.775)


def test_the_seed_decides_order_and_augmentation() -> None:
    """In each epoch. The images of the dataset are the same for all seeds."""

    def drawn(seed: int, epoch: int) -> tuple[list[tuple[int, int]], torch.Tensor]:
        train, val = (build_dataset("street", split=split, length=8, resize=(48, 96)) for split in ("train", "val"))
        loaders = Loaders(replace(TINY, seed=seed), train, val, pinned=False)
        loaders.sampler.set_epoch(epoch)
        return list(loaders.sampler), loaders.train.dataset[epoch, 5][0]

    order, image = drawn(3, 1)
    again, same_image = drawn(3, 1)
    assert again == order
    assert torch.equal(same_image, image)
    for seed, epoch in ((4, 1), (3, 2)):
        other_order, other_image = drawn(seed, epoch)
        assert [index for _, index in other_order] != [index for _, index in order]
        assert not torch.equal(other_image, image)


def test_images_are_normalised_as_imagenet() -> None:
    image = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = torch.tensor([(1 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))])
    torch.testing.assert_close(normalize_images(image)[0, :, 0, 0], expected)


def test_argmax_scoring_uses_the_confusion_matrix(tmp_path: Path) -> None:
    records = run(tmp_path, replace(TINY, source="argmax", delta=1.0, epochs=1))
    assert records[0]["csps"] == pytest.approx(records[0]["iou"], abs=1e-6)


def test_pixel_counts_of_the_base_weight(tmp_path: Path) -> None:
    """Eq. 5 with the pixels of the training set, or of the scored validation images."""
    base = {}
    for counts in ("observed", "train"):
        folder = tmp_path / counts
        record = run(folder, replace(TINY, counts=counts, epochs=1))[0]
        base[counts] = torch.tensor(record["base_weight"], dtype=torch.float64)
        csps = torch.tensor(record["csps"], dtype=torch.float64)
        if counts == "train":
            pixels = json.loads((folder / "dataset.json").read_text())["train_pixels"]
        else:
            pixels = torch.tensor(json.loads((folder / "confusion.json").read_text())["matrix"]).sum(1).tolist()
        seen = csps.isfinite()
        n = torch.tensor(pixels, dtype=torch.float64)[seen]
        score = torch.log1p(csps[seen].sum() / (csps[seen] + 1e-6))
        expected = score * torch.log1p(n.sum() / (n + 1e-6))
        torch.testing.assert_close(base[counts][seen], expected, rtol=1e-4, atol=0)
    assert not torch.equal(base["observed"].nan_to_num(), base["train"].nan_to_num())


@pytest.mark.slow
def test_the_dead_class_trap_of_the_printed_ratio_and_its_absence_when_smoothed(tmp_path: Path) -> None:
    """Exactly by Eq. 6, a class not learned by the second pass falls to the smallest weight and is never learned."""
    config = replace(TINY, epochs=4, train_images=48, val_images=16, resize=None, source="argmax", scale=(0.75, 1.5))
    weight, iou = {}, {}
    for ratio in ("paper", "smoothed"):
        records = run(tmp_path / ratio, replace(config, ratio=ratio))
        weight[ratio] = torch.tensor([record["weight"] for record in records])
        iou[ratio] = torch.tensor([record["iou"] for record in records])
    rare = slice(6, 10)  # pole, traffic_sign, person, rider
    assert torch.equal(
        weight["paper"][0], weight["smoothed"][0]
    )  # no ratio in the first step: unlearned classes have the largest weights
    assert weight["paper"][0, rare].min() == weight["paper"][0].max()
    assert (weight["paper"][1:, rare] < 0.1).all()
    assert weight["paper"][1:, :6].mean(1).min() > 1
    assert (iou["paper"][1:, rare] == 0).all()
    assert (weight["smoothed"][:, rare] > 1).all()


def test_a_batch_without_a_label_is_no_broken_loss(tmp_path: Path) -> None:
    camvid_with_void(tmp_path / "data", {"train": 2, "val": 8})
    config = replace(TINY, dataset="camvid", root=str(tmp_path / "data"), resize=None, train_images=None, batch_size=2)
    records = run(tmp_path / "run", config)
    assert all(0 < record["train_loss"] < 10 for record in records)


def test_a_split_without_a_label_is_named_before_training(tmp_path: Path) -> None:
    camvid_with_void(tmp_path / "data", {"train": 8, "val": 0})
    config = replace(TINY, dataset="camvid", root=str(tmp_path / "data"), resize=None)
    with pytest.raises(ValueError, match="no image of the split 'val' of camvid has a labelled pixel"):
        run(tmp_path / "run", config)


def test_a_part_of_camvid_is_spread_over_its_videos(tmp_path: Path) -> None:
    camvid_with_void(tmp_path, {"val": 8})
    part = build_dataset("camvid", root=str(tmp_path), split="val", length=4)
    assert [int(part.read(index)[1][0, 0]) for index in range(4)] == [0, 2, 4, 6]


def test_new_weights_every_second_epoch(tmp_path: Path) -> None:
    records = run(tmp_path, replace(TINY, epochs=4, every=2))
    weights = [record["weight"] for record in records]
    assert weights[0] == [1.0] * 10 != weights[1] == weights[2] != weights[3]
    assert ["step" in record["seconds"] for record in records] == [False, True, False, True]
    assert [record["awa_overhead"] > 0 for record in records] == [False, True, False, True]


def test_a_budget_has_a_pass_of_its_own_that_counts_as_overhead(tmp_path: Path) -> None:
    records = run(tmp_path / "part", replace(TINY, budget=3))
    for record in records:
        seconds = record["seconds"]
        awa = sum(seconds[part] for part in ("sample_data", "sample_forward", "observe", "step"))
        assert record["awa_overhead"] == pytest.approx(awa / (seconds["total"] - awa))
    assert run(tmp_path / "whole", replace(TINY, budget=4))[0]["weight"] == run(tmp_path / "none")[0]["weight"]


def test_the_table_says_which_classes_kept_their_weight(tmp_path: Path) -> None:
    from rich.console import Console

    from cawa_fast.recipes.training.progress import epoch_table

    records = run(tmp_path, replace(TINY, budget=2, val_images=12))
    assert records[1]["sample_images"] == 2
    held, kept = records[1]["held"], [a == b for a, b in zip(*(r["weight"] for r in records), strict=True)]
    assert any(held)
    assert all(same for same, is_held in zip(kept, held, strict=True) if is_held)
    console = Console(width=100, file=io.StringIO())
    console.print(epoch_table(records[1], build_dataset("street").class_names, records[0]["weight"]))
    lines = [line for line in console.file.getvalue().splitlines() if "│" in line]
    assert ["kept" in line for line in lines] == held
    assert [
        f"± {100 * error:.2f}" in line for line, error in zip(lines, records[1]["csps_error"], strict=True) if error
    ]


def test_a_budget_is_a_share_or_a_number_of_images() -> None:
    assert replace(TINY, budget=0.02).sample() == 0.02
    assert isinstance(replace(TINY, budget=3.0).sample(), int)
    for budget in (0.0, 1.0, 2.5, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"budget must be a share.*got {budget}"):
            replace(TINY, budget=budget)

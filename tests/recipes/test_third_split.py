"""Images that no rule reads: ``--test-split``, in runs, ablations and reports, and ``cawa-fast calibrate``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cawa_fast import functional as CF
from cawa_fast.metrics import segmentation_metrics
from cawa_fast.recipes.ablation.ablation import Ablation, choose_rows
from cawa_fast.recipes.ablation.results import markdown, with_statistics
from cawa_fast.recipes.config import TrainConfig
from cawa_fast.recipes.datasets import EvalView
from cawa_fast.recipes.runs.checkpoint import read_checkpoint
from cawa_fast.recipes.runs.compare import comparison_table
from cawa_fast.recipes.runs.read import load_run
from cawa_fast.recipes.training.loaders import normalize_images, open_split
from cawa_fast.recipes.training.losses import SeesawLoss
from tests.support import trees
from tests.support.fake_runs import ablation
from tests.support.tiny_runs import TINY, invoke, run

BALANCED = replace(TINY, weighting="balanced", ratio="none")


def confusion(config: TrainConfig, split: str, model: dict[str, Any]) -> torch.Tensor:
    network = config.network(10, pretrained=False).eval()
    network.load_state_dict(model)
    matrix = torch.zeros(10, 10, dtype=torch.int64)
    with torch.no_grad():
        for image, label in EvalView(open_split(config, split)):
            logits = network(normalize_images(image.unsqueeze(0)))
            matrix += CF.confusion_matrix(logits, label.unsqueeze(0), ignore_index=255)
    return matrix


def test_a_run_is_scored_on_images_that_change_nothing_else(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", BALANCED)
    config = replace(BALANCED, test_split="test")
    records = run(tmp_path / "tested", config)
    timed = ("seconds", "awa_overhead")
    for record, other in zip(records, plain, strict=True):
        assert {k: v for k, v in record.items() if k not in (*timed, "test")} == {
            k: v for k, v in other.items() if k not in timed
        }
    assert any(records[1]["offset"])
    model = read_checkpoint(tmp_path / "tested" / "latest.pt", "")["model"]
    for split, found in (("test", records[-1]["test"]), ("val", records[-1])):
        expected = segmentation_metrics(confusion(config, split, model))
        assert found["miou"] == pytest.approx(expected.miou, abs=1e-3)
    assert records[-1]["test"]["iou"] != records[-1]["iou"]
    assert json.loads((tmp_path / "tested" / "dataset.json").read_text())["test_images"] == 4
    # in the comparison, the first of the totals
    table = comparison_table([load_run(tmp_path / "tested"), load_run(tmp_path / "plain")])
    totals = [row for row in table if row.index is None]
    assert [row.label for row in totals[:4]] == [
        "test mIoU",
        "test mIoU of 4 rare classes",
        "mIoU",
        "mIoU of 4 rare classes",
    ]
    assert totals[0].cells[0].final == records[-1]["test"]["miou"]
    assert totals[0].cells[1].final is None


def test_halves_of_the_validation_images(tmp_path: Path) -> None:
    for split, images in (("train", 4), ("val", 5), ("test", 3)):
        trees.folder(tmp_path, split, [torch.zeros(8, 8).byte().numpy()] * images, classes="ground\npole\n")
    config = TrainConfig(dataset="folder", root=str(tmp_path), test_split="half")
    whole = open_split(replace(config, test_split=None), "val").pairs
    assert list(open_split(config, "val").pairs) == list(whole[:3])
    assert list(open_split(config, "test").pairs) == list(whole[3:])
    named = replace(config, test_split="test")
    assert list(open_split(named, "val").pairs) == list(whole)
    assert {pair.image.parent.name for pair in open_split(named, "test").pairs} == {"test"}
    with pytest.raises(ValueError, match="there is only 1 validation image; name another split"):
        open_split(replace(config, val_images=1), "test")
    with pytest.raises(FileNotFoundError, match="holds neither images/best nor best/images"):
        open_split(replace(config, test_split="best"), "test")
    for name in ("val", "../val", ""):
        with pytest.raises(ValueError, match=f"test_split must be the name of a split other than .*, got '{name}'"):
            replace(config, test_split=name)


def test_halves_of_drawn_scenes() -> None:
    config = replace(TINY, test_split="half")
    whole, first, second = (open_split(one, split) for one, split in ((TINY, "val"), (config, "val"), (config, "test")))
    assert (len(first), len(second)) == (2, 2)
    for index in range(4):
        part = (first, second)[index // 2]
        assert (part.read(index % 2)[0] == whole.read(index)[0]).all()


@pytest.mark.slow
def test_an_ablation_shows_the_test_first(tmp_path: Path) -> None:
    base = replace(BALANCED, test_split="test", epochs=1)
    rows = choose_rows(["power", "balanced"])
    made = Ablation(tmp_path, base, rows, (0, 1), jobs=1, against="power")

    class Quiet:
        def update(self, state: Any) -> None:
            assert state.error is None

    made.run(Quiet())
    result = made.results()
    assert result is not None
    done = {row["name"]: row for row in result["rows"]}
    record = load_run(tmp_path / "balanced-s1").final
    assert done["balanced"]["runs"][1]["test_miou"] == record["test"]["miou"]
    difference = done["balanced"]["paired"]["test_miou"]["differences"][1]
    assert difference == record["test"]["miou"] - done["power"]["runs"][1]["test_miou"]
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    head = "| row | test mIoU | test rare IoU | mIoU | rare IoU | Δ test mIoU | Δ test rare IoU |"
    assert any(line.startswith(head) for line in lines)
    assert "--test-split test" in result["command"]
    result = invoke("report", str(tmp_path), "--out", str(tmp_path / "page.html"), "--images", "0")
    assert result.exit_code == 0, result.output
    assert "Δ test rare IoU" in (tmp_path / "page.html").read_text()


def test_ablations_without_test_images_are_as_before(tmp_path: Path) -> None:
    result = ablation(tmp_path)
    result["rows"] = with_statistics(result["rows"], "uniform")
    text = markdown(result, result["groups"])
    assert "| row | mIoU | rare IoU | pixel accuracy | Δ mIoU | Δ rare IoU |" in text
    assert "of the test" not in text
    assert "test mIoU" not in text


def test_calibrate_writes_the_network_that_it_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a narrow table breaks its head
    config = replace(TINY, weighting="power", test_split="test", epochs=2, lr=0.1)
    run(tmp_path / "run", config)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").glob("*.pt")}
    result = invoke("calibrate", str(tmp_path / "run"), "--strength", "inf")
    assert result.exit_code == 0, result.output
    assert "test IoU" in result.output
    kept = json.loads((tmp_path / "run" / "calibration.json").read_text())
    model = read_checkpoint(tmp_path / "run" / "calibrated.pt", "")["model"]
    old = read_checkpoint(tmp_path / "run" / "latest.pt", "")["model"]
    torch.testing.assert_close(model["classifier.bias"], old["classifier.bias"] + torch.tensor(kept["offset"]))
    for split in ("val", "test"):
        for when, weights in (("before", old), ("after", model)):
            expected = segmentation_metrics(confusion(config, split, weights)).miou
            assert kept["scores"][split][when]["miou"] == pytest.approx(expected, abs=1e-3)
    assert kept["scores"]["val"]["after"]["miou"] != kept["scores"]["val"]["before"]["miou"]
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before
    wrong = invoke("calibrate", str(tmp_path / "run"), "--strength", "0")
    assert wrong.exit_code == 1
    assert "strength must be positive, got 0.0" in wrong.output
    nowhere = invoke("calibrate", str(tmp_path / "nowhere"))
    assert "nowhere is not a folder" in " ".join(nowhere.output.split())


def test_help_of_the_new_settings() -> None:
    assert "--test-split" in invoke("train", "--help").output
    assert "--strength" in invoke("calibrate", "--help").output
    assert "calibrate" in invoke("--help").output


# ----------------------------------------------------------------------------------------------- losses of baselines


def test_seesaw_by_hand() -> None:
    logits, target, n = torch.randn(1, 3, 1, 5), torch.tensor([[[0, 1, 2, 2, 255]]]), torch.tensor([80, 15, 5])
    losses = []
    for k in range(4):
        z, y = logits[0, :, 0, k], int(target[0, 0, k])
        p = z.softmax(0)
        rest = sum(min(1, n[j] / n[y]) ** 0.8 * max(1, p[j] / p[y]) ** 2 * z[j].exp() for j in range(3) if j != y)
        losses.append(-(z[y].exp() / (z[y].exp() + rest)).log())
    torch.testing.assert_close(SeesawLoss(n, 255)(logits, target), sum(losses) / 4)
    plain = torch.nn.functional.cross_entropy(logits, target, ignore_index=255)
    torch.testing.assert_close(SeesawLoss(n, 255, p=0.0, q=0.0)(logits, target), plain)


def test_train_shows_offsets_and_the_test(tmp_path: Path) -> None:
    command = ["train", "--epochs", "1", "--train-images", "8", "--val-images", "4", "--batch-size", "4"]
    command += ["--resize", "48x96", "--threads", "1", "--workers", "0", "--test-split", "test"]
    result = invoke(*command, "--run-dir", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for words in ("4 validation, 4 test images", "Offset", "test mIoU", "Done: test mIoU"):
        assert words in text
    assert load_run(tmp_path / "run").config["weighting"] == "balanced"  # the default

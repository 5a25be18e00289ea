"""The main job: settings, run folders, resuming to the same bits, and what a run writes."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from cawa_fast.cli import main
from cawa_fast.recipes.config import WEIGHTINGS, TrainConfig
from cawa_fast.recipes.datasets import build_dataset
from cawa_fast.recipes.display import Display
from cawa_fast.recipes.run_folder import RunFolder, atomic
from cawa_fast.recipes.stopwatch import Stopwatch
from cawa_fast.recipes.train import Trainer, normalize_images, segmentation_metrics

TINY = TrainConfig(
    epochs=2, train_images=8, val_images=4, batch_size=4, resize=(48, 96), threads=1, workers=0, lr=0.05, device="cpu"
)


class Silent:
    """A watcher that only counts."""

    def __init__(self) -> None:
        self.images = {"train": 0, "validate": 0}

    def prepare(self, what: str, done: int, total: int) -> None: ...

    def begin(self, config: TrainConfig, trainer: Trainer) -> None: ...

    def advance(self, phase: str, epoch: int, images: int) -> None:
        self.images[phase] += images

    def epoch_done(self, record: dict[str, Any]) -> None: ...


def run(path: Path, config: TrainConfig = TINY) -> list[dict[str, Any]]:
    return Trainer(config, RunFolder(path), Silent()).fit()


def arguments(config: TrainConfig, path: Path) -> list[str]:
    result = ["train", "--run-dir", str(path), "--no-tables"]
    for name, value in config.as_dict().items():
        if value is None or name == "amp":
            continue
        text = ("," if name == "scale" else "x").join(map(str, value)) if isinstance(value, tuple) else str(value)
        result += [f"--{name.replace('_', '-')}", text]
    return result


def without_times(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "awa_overhead")} for record in records]


def assert_same_run(a: Path, b: Path) -> None:
    assert without_times(a) == without_times(b)
    first, second = (torch.load(path / "latest.pt", weights_only=True) for path in (a, b))
    assert first["epoch"] == second["epoch"]
    for part in ("model", "weights"):
        assert first[part].keys() == second[part].keys()
        for name, tensor in first[part].items():
            assert torch.equal(tensor.nan_to_num(-1), second[part][name].nan_to_num(-1)), (part, name)


# ------------------------------------------------------------------------------------------------- what a run writes


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_trains_and_writes_the_documented_records(tmp_path: Path, weighting: str) -> None:
    watcher = Silent()
    config = replace(TINY, weighting=weighting)
    records = Trainer(config, RunFolder(tmp_path), watcher).fit()
    assert watcher.images == {"train": 16, "validate": 8}
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
    adaptive = weighting == "cawa"
    assert ("observe" in records[0]["seconds"]) == adaptive
    assert (records[0]["awa_overhead"] > 0) == adaptive
    assert any(value is not None for value in records[0]["csps"]) == adaptive
    assert (len(set(records[-1]["weight"])) == 1) == (weighting in ("uniform", "focal"))
    assert {path.name for path in tmp_path.iterdir() if "tfevents" not in path.name} == {
        "config.json",
        "dataset.json",
        "metrics.jsonl",
        "latest.pt",
        "best.pt",
    }
    assert RunFolder(tmp_path).read_config() == config


def test_tensorboard_events_hold_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = run(tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("miou")] == [1, 2]
    for event, record in zip(events.Scalars("weight/pole"), records, strict=True):
        assert event.value == pytest.approx(record["weight"][6])


def test_metrics_equal_torchmetrics(peers: None) -> None:
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 5, (4000,), generator=generator)
    prediction = torch.where(torch.rand(4000, generator=generator) < 0.6, target, target.roll(1))
    matrix = torch.zeros(5, 5, dtype=torch.int64)
    matrix.index_put_((target, prediction), torch.tensor(1), accumulate=True)
    metrics = segmentation_metrics(matrix)
    iou = multiclass_jaccard_index(prediction, target, 5, average="none")
    assert metrics["iou"] == pytest.approx(iou.tolist(), abs=1e-6)
    assert metrics["miou"] == pytest.approx(iou.mean().item(), abs=1e-6)
    accuracy = multiclass_accuracy(prediction, target, 5, average="none")
    assert metrics["accuracy"] == pytest.approx(accuracy.tolist(), abs=1e-6)
    assert metrics["pixel_accuracy"] == pytest.approx((prediction == target).double().mean().item())


def test_metrics_of_an_absent_class_are_none_and_left_out_of_the_mean() -> None:
    metrics = segmentation_metrics(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    assert metrics["iou"] == [0.75, 0.8, None]
    assert metrics["miou"] == pytest.approx(0.775)


def test_images_are_normalised_as_imagenet() -> None:
    image = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = torch.tensor([(1 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))])
    torch.testing.assert_close(normalize_images(image)[0, :, 0, 0], expected)


def test_argmax_scoring_uses_the_confusion_matrix(tmp_path: Path) -> None:
    records = run(tmp_path, replace(TINY, source="argmax", delta=1.0, epochs=1))
    assert records[0]["csps"] == pytest.approx(records[0]["iou"], abs=1e-6)


@pytest.mark.slow
def test_the_dead_class_trap_of_the_printed_ratio_and_its_absence_when_smoothed(tmp_path: Path) -> None:
    """Eq. 6 to the letter: what is not learned by the second pass falls to the least weight, and stays unlearned."""
    config = replace(TINY, epochs=4, train_images=48, val_images=16, resize=None, source="argmax", scale=(0.75, 1.5))
    weight, iou = {}, {}
    for ratio in ("paper", "smoothed"):
        records = run(tmp_path / ratio, replace(config, ratio=ratio))
        weight[ratio] = torch.tensor([record["weight"] for record in records])
        iou[ratio] = torch.tensor([record["iou"] for record in records])
    rare = slice(6, 10)  # pole, traffic_sign, person, rider
    assert torch.equal(weight["paper"][0], weight["smoothed"][0])  # there is no ratio yet: unlearned classes weigh most
    assert weight["paper"][0, rare].min() == weight["paper"][0].max()
    assert (weight["paper"][1:, rare] < 0.1).all()
    assert weight["paper"][1:, :6].mean(1).min() > 1
    assert (iou["paper"][1:, rare] == 0).all()
    assert (weight["smoothed"][:, rare] > 1).all()


# ------------------------------------------------------------------------------------------------ stopping and going on


def test_a_run_repeats_to_the_bit(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    run(tmp_path / "c", replace(TINY, seed=1))
    assert without_times(tmp_path / "c") != without_times(tmp_path / "a")


def test_the_number_of_workers_changes_no_bit(tmp_path: Path) -> None:
    run(tmp_path / "a", replace(TINY, epochs=1))
    run(tmp_path / "b", replace(TINY, epochs=1, workers=2))
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = replace(TINY, epochs=6)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    run(whole, config)
    command = [sys.executable, "-m", "cawa_fast.cli", *arguments(config, torn), "--resume"]
    kills, delays = 0, iter((0.0, 0.05, 0.3, 0.12, 0.21))
    # Each life is killed a little after it has finished one more epoch: between, and in the middle of, writes.
    for delay in delays:
        before = _epochs(torn)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while _epochs(torn) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        assert process.stderr is not None
        error = process.stderr.read().decode()
        process.stderr.close()
        kills += process.wait() == -signal.SIGKILL
        assert "Error" not in error, error
    assert kills >= 3
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Done" in done.stdout
    assert_same_run(whole, torn)
    best = [torch.load(path / "best.pt", weights_only=True)["epoch"] for path in (whole, torn)]
    assert best[0] == best[1]


def _epochs(path: Path) -> int:
    try:
        return len((path / "metrics.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_says_how_to_resume(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cawa_fast.cli", *arguments(replace(TINY, epochs=500), tmp_path / "r")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while _epochs(tmp_path / "r") == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"cawa-fast train --resume --run-dir {tmp_path / 'r'}" in out.replace("\n", " ")
    assert "Traceback" not in error


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def die_while_writing() -> None:
        with atomic(path) as file:
            file.write(b"half of the n")
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        die_while_writing()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_metrics_that_ran_ahead_of_the_checkpoint_are_cut_back(tmp_path: Path) -> None:
    run(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    truth = metrics.read_text()
    metrics.write_text(truth + '{"epoch": 3}\n')
    Trainer(TINY, RunFolder(tmp_path), Silent())
    assert metrics.read_text() == truth


def test_events_of_earlier_lives_are_written_anew(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path)
    for events in tmp_path.glob("*tfevents*"):  # never flushed: the process was killed
        events.unlink()
    run(tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("miou")] == [1, 2]


def test_stopped_while_reading_images_it_resumes_with_its_own_settings(tmp_path: Path) -> None:
    class Impatient(Silent):
        def prepare(self, what: str, done: int, total: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(replace(TINY, weighting="enet"), RunFolder(tmp_path), Impatient())
    assert invoke("train", "--resume", "--run-dir", str(tmp_path), "--no-tables").exit_code == 0
    assert RunFolder(tmp_path).read_config().weighting == "enet"
    assert len(without_times(tmp_path)) == 2


def test_interrupted_before_anything_was_begun_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cawa_fast.cli.TrainConfig", interrupt)
    result = invoke("train", "--run-dir", str(tmp_path / "r"))
    assert result.exit_code == 130
    assert "nothing was begun yet" in result.output


def test_a_checkpoint_without_settings_is_not_adopted(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "config.json").unlink()
    result = invoke(*arguments(replace(TINY, seed=7), tmp_path))
    assert result.exit_code == 1
    assert "latest.pt has no config.json beside it" in result.output.replace("\n", " ")


@pytest.mark.parametrize(("name", "content"), [("latest.pt", b"PK\x03\x04 cut"), ("config.json", b'{"epochs": "2"')])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    run(tmp_path)
    (tmp_path / name).write_bytes(content)
    result = invoke("train", "--resume", "--run-dir", str(tmp_path))
    assert result.exit_code == 1
    assert f"{name} is damaged" in result.output


def camvid_with_void(root: Path, labelled: dict[str, int]) -> None:
    """A CamVid tree of 8 images a split, of which only the first few have labels."""
    from PIL import Image

    for split, count in labelled.items():
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (64, 48), (30 * index, 90, 20)).save(root / split / f"{index}.png")
            Image.new("L", (64, 48), index if index < count else 11).save(root / f"{split}annot" / f"{index}.png")


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


# -------------------------------------------------------------------------------------------------- the command line


def test_report_takes_a_glob_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(tmp_path / name)
    (tmp_path / "notes").mkdir()
    out = tmp_path / "report.html"
    for _ in range(2):
        result = invoke("report", *map(str, sorted(tmp_path.iterdir())), "--out", str(out), "--images", "0")
        assert result.exit_code == 0, result.output
    assert "Not run folders, left out" in result.output
    assert out.exists()


def invoke(*args: str) -> Any:
    return CliRunner().invoke(main, list(args))


def test_train_shows_a_table_and_refuses_to_overwrite(tmp_path: Path) -> None:
    command = [arg for arg in arguments(TINY, tmp_path / "r") if arg != "--no-tables"]
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    for word in ("IoU", "Acc", "CSPS", "Weight", "Change", "traffic_sign", "epoch 2/2", "Done"):
        assert word in result.output
    again = invoke(*command)
    assert again.exit_code == 1
    assert "already holds a run" in again.output
    assert "--resume" in again.output


def test_resume_needs_no_settings_and_refuses_others(tmp_path: Path) -> None:
    path = tmp_path / "r"
    run(path)
    assert invoke("train", "--resume", "--run-dir", str(path)).exit_code == 0
    result = invoke("train", "--resume", "--run-dir", str(path), "--lr", "0.5")
    assert result.exit_code == 1
    assert "--lr is 0.5" in result.output
    assert "0.05" in result.output
    assert invoke("train", "--resume", "--run-dir", str(path), "--workers", "1").exit_code == 0


def test_a_broken_loss_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    result = invoke(*arguments(replace(TINY, lr=1e12), tmp_path / "r"))
    assert result.exit_code == 1
    assert "smaller --lr" in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"lr": float("nan")}, "lr must be finite and at least 0, got nan"),
        ({"crop": (0, 8)}, r"crop must be HEIGHTxWIDTH in pixels, each at least 1, got \(0, 8\)"),
        ({"seed": 2**63}, "seed must be below 2"),
        ({"scale": (1.0, float("inf"))}, r"scale must be LOW,HIGH with 0 < LOW <= HIGH, finite, got \(1.0, inf\)"),
        ({"workers": -2}, "workers must be at least 0, got -2"),
        ({"weighting": "best"}, "weighting must be one of cawa, .*; got 'best'"),
        ({"dataset": "imagenet"}, "dataset must be one of .*street.*; got 'imagenet'"),
        ({"tau": 2.0}, r"tau must lie in \[0, 1\], got 2.0"),
        ({"w_min": 30.0}, "w_max must be at least w_min=30.0, got 20.0"),
    ],
)
def test_settings_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_settings_that_do_not_fit_the_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size=9 is more than the 8 training images"):
        run(tmp_path, replace(TINY, batch_size=9))
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, got 'tpu9'"):
        run(tmp_path, replace(TINY, device="tpu9"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="device='cuda', but this torch sees no CUDA device"):
        replace(TINY, device="cuda").resolved_device()


@pytest.mark.parametrize(("option", "value"), [("--crop", "12"), ("--scale", "1-2"), ("--model", "nothing")])
def test_the_command_line_names_what_it_cannot_read(option: str, value: str) -> None:
    result = invoke("train", option, value)
    assert result.exit_code == 2
    assert option in result.output
    assert value in result.output


def test_help_describes_every_setting() -> None:
    text = re.sub(r"\s+", " ", invoke("train", "--help").output)
    for name in TINY.as_dict():
        assert f"--{name.replace('_', '-')}" in text
    assert "report" in invoke("--help").output


def test_doctor_lists_versions_and_gives_a_reason_for_what_is_missing() -> None:
    result = invoke("doctor")
    assert result.exit_code == 0
    assert torch.__version__ in result.output
    assert "native CPU extension" in result.output


def test_doctor_says_why_the_extension_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cawa_fast._native.build_info", lambda: None)
    monkeypatch.setattr("cawa_fast._native.why_not", lambda: "planted reason; planted way out")
    output = " ".join(invoke("doctor").output.split())
    assert "! native CPU extension: not there → planted reason; planted way out" in output


def test_display_prints_rate_and_remaining_time(tmp_path: Path) -> None:
    console = Console(force_terminal=True, width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        with Display(console) as display:
            Trainer(TINY, RunFolder(tmp_path), display).fit()
        shown = console.export_text()  # with the last state of the bar
    assert "img/s" in shown
    assert "cawa validate 2/2" in shown


def test_remaining_time_without_a_terminal_is_the_mean_epoch_times_the_epochs_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), width=140)
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr("cawa_fast.recipes.display.time.monotonic", lambda: next(clock))
    with Display(console, tables=False) as display:
        Trainer(replace(TINY, epochs=3), RunFolder(tmp_path), display).fit()
    assert re.findall(r"(\d+) s left", console.file.getvalue()) == ["14", "7", "0"]


def test_stopwatch_adds_up_parts() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch.part("sleep"):
            time.sleep(0.01)
    seconds = watch.seconds()
    assert 0.02 <= seconds["sleep"] <= seconds["total"]

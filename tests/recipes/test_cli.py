"""The command line: settings, messages, tables, progress."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cawa_fast.recipes.runs.folder import RunFolder
from cawa_fast.recipes.training.progress import TrainingDisplay
from cawa_fast.recipes.training.stopwatch import Stopwatch
from cawa_fast.recipes.training.trainer import Trainer
from tests.support.tiny_runs import TINY, arguments, invoke, run


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="device='cuda', but PyTorch finds no CUDA device"):
        replace(TINY, device="cuda").resolved_device()


@pytest.mark.parametrize(("option", "value"), [("--crop", "12x"), ("--scale", "1-2"), ("--model", "nothing")])
def test_the_command_line_names_what_it_cannot_read(option: str, value: str) -> None:
    result = invoke("train", option, value)
    assert result.exit_code == 2
    assert option in result.output
    assert value in result.output


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "r")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "cawa_fast.recipes.report.figures", raising=False)
    monkeypatch.delitem(sys.modules, "cawa_fast.recipes.report.page", raising=False)
    result = invoke("report", str(tmp_path / "r"), "--out", str(tmp_path / "report.html"))
    assert result.exit_code == 1
    assert "pip install 'cawa_fast[train]'" in result.output


def test_one_number_is_a_square_crop(tmp_path: Path) -> None:
    config = replace(TINY, epochs=1, crop=(32, 32))
    command = [word.replace("32x32", "32") for word in arguments(config, tmp_path / "r")]
    assert invoke(*command).exit_code == 0
    assert RunFolder(tmp_path / "r").read_config().crop == (32, 32)


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
    monkeypatch.setattr("cawa_fast._ops.native.build_info", lambda: None)
    monkeypatch.setattr("cawa_fast._ops.native.why_not", lambda: "planted reason; planted way out")
    output = " ".join(invoke("doctor").output.split())
    assert "! native CPU extension: not installed → planted reason; planted way out" in output


@pytest.mark.parametrize("built", [True, False])
def test_doctor_names_the_kernels_for_gpus(monkeypatch: pytest.MonkeyPatch, built: bool) -> None:
    assert "not needed: this PyTorch has no CUDA" in invoke("doctor").output or torch.version.cuda
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("cawa_fast._ops.native.cuda_available", lambda: built)
    monkeypatch.setattr("cawa_fast._ops.native.why_no_cuda", lambda: None if built else "planted reason")
    output = " ".join(invoke("doctor").output.split())
    assert "GPU kernels (Triton): every operator" in output
    assert ("built for" if built else "planted reason") in output


def test_display_prints_rate_and_remaining_time(tmp_path: Path) -> None:
    console = Console(force_terminal=True, width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        with TrainingDisplay(console) as display:
            Trainer(TINY, RunFolder(tmp_path), display).fit()
        shown = console.export_text()  # includes the last state of the bar
    assert "img/s" in shown
    assert "cawa validate 2/2" in shown


def test_remaining_time_without_a_terminal_is_the_mean_epoch_times_the_epochs_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=io.StringIO(), width=140)
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr("cawa_fast.recipes.training.progress.time.monotonic", lambda: next(clock))
    with TrainingDisplay(console, tables=False) as display:
        Trainer(replace(TINY, epochs=3), RunFolder(tmp_path), display).fit()
    assert re.findall(r"(\d+) s left", console.file.getvalue()) == ["14", "7", "0"]


def test_stopwatch_adds_up_parts() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        with watch.part("sleep"):
            time.sleep(0.01)
    seconds = watch.seconds()
    assert 0.02 <= seconds["sleep"] <= seconds["total"]

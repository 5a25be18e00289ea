"""Damaged, edited and hostile files of a run: the message names the file, its line or its value, and the way out."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cawa_fast.recipes.ablation.ablation import Ablation, choose_rows
from cawa_fast.recipes.config import TrainConfig
from cawa_fast.recipes.runs.data import removed_files
from tests.support.fake_runs import ablation, fake_run
from tests.support.tiny_runs import TINY, invoke, run
from tests.torture import run_folders


@pytest.mark.slow
def test_no_damage_makes_a_traceback() -> None:
    assert run_folders.run(1, 300).lost == []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made")
    fake_run(path / "run", "cawa", checkpoint=False)
    ablation(path / "out")
    run(path / "trained", replace(TINY, epochs=1))
    return path


def refused(*words: str) -> str:
    """The message of a command that ends with one, on one line."""
    result = invoke(*words)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return re.sub(r"\s+", " ", result.output)


def resumed_with(change: Callable[[Any], object], made: Path, tmp_path: Path) -> str:
    """What a resumed run says of a checkpoint that ``change`` has changed; it has no checksum that could be wrong."""
    shutil.copytree(made / "trained", tmp_path / "run")
    content = torch.load(tmp_path / "run" / "latest.pt", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "run" / "latest.pt")
    return refused("train", "--resume", "--run-dir", str(tmp_path / "run"))


def edit(file: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def put(*keys: Any) -> Callable[[Any], None]:
    """Set the value at the end of ``keys``: ``put("rows", 0, "name", 3)``."""

    def change(content: Any) -> None:
        *path, last, value = keys
        for key in path:
            content = content[key]
        content[last] = value

    return change


REPORTED: list[tuple[str, Callable[[Any], object], str]] = [
    ("config.json", put("seed", "x"), "config.json is damaged (seed is 'x', not a whole number); restore it, or train"),
    ("config.json", put("epochs", "many"), "config.json is damaged (epochs must be a whole number, got 'many')"),
    ("config.json", lambda config: config.pop("model"), "config.json is damaged (it lacks 'model')"),
    ("dataset.json", put("palette", 3, 1, 256), "dataset.json is damaged (palette[3][1] is 256, not at most 255)"),
    ("dataset.json", put("class_names", 2, None), "dataset.json is damaged (class_names[2] is None, not a text)"),
    ("dataset.json", put("train_pixels", [1, 2]), "train_pixels has 2 values, but there are 10 class_names"),
    ("confusion.json", put("matrix", 4, 4, -1), "confusion.json is damaged (matrix[4][4] is -1, not at least 0)"),
    ("confusion.json", put("matrix", 4, [1]), "confusion.json is damaged (matrix[4] has 1 values, not 10)"),
]


@pytest.mark.parametrize(("name", "change", "message"), REPORTED, ids=lambda value: value if value is str else None)
def test_a_report_names_the_value(
    made: Path, tmp_path: Path, name: str, change: Callable[[Any], object], message: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made / "run", folder)
    edit(folder / name, change)
    page = tmp_path / "page.html"
    assert message in refused("report", str(folder), "--images", "0", "--out", str(page))
    assert not page.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"iou": [0.5] * 9 + [2]}, "line 3 is not an epoch's record (iou[9] is 2, not from -1e-06 to 1)"),
        ({"weight": [-1.0] * 10}, "line 3 is not an epoch's record (weight[0] is -1.0, not at least 0)"),
        ({"seconds": {"data": 1}}, "line 3 is not an epoch's record (seconds lacks 'total')"),
        ({"csps": 3}, "line 3 is not an epoch's record (csps is 3, not a list)"),
        ({"train_loss": float("nan")}, "line 3 is not an epoch's record (it has the value NaN)"),
        ({"epoch": True}, "line 3 is not an epoch's record (epoch is True, not a whole number)"),
    ],
)
def test_a_report_names_the_line_of_the_metrics(
    made: Path, tmp_path: Path, value: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made / "run", folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | value)
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    output = refused("report", str(folder), "--images", "0", "--out", str(tmp_path / "page.html"))
    assert f"{folder}/metrics.jsonl, {message}" in output
    assert "`cawa-fast train --resume` writes the file again" in output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, " is not JSON (it is nested too deeply)"),
        (b'{"seed": ' + b"9" * 5000 + b"}", " is not JSON (Exceeds the limit (4300 digits)"),
        (b'{"dataset":\n "\xff"}', ", line 2 is damaged (it is not UTF-8: invalid start byte)"),
        (None, " has 1099511627776 bytes, more than any file of a run"),
        ("pipe", " is no regular file"),
    ],
)
def test_files_that_no_run_has_written(made: Path, tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "run" / "config.json"
    shutil.copytree(made / "run", tmp_path / "run")
    if content is None:
        os.truncate(file, 1 << 40)
    elif content == "pipe":
        file.unlink()
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    words = ("report", str(tmp_path / "run"), "--images", "0", "--out", str(tmp_path / "page.html"))
    assert f"{file}{message}" in refused(*words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("rows", 0, "runs", 1, "miou", "x"), "(rows[0].runs[1].miou is 'x', not a number)"),
        (put("rows", 4, "settings", "delta", None), "(rows[4].settings.delta is None, not a number)"),
        (put("rare", "part", 0), "(rare.part is 0, not from 1e-09 to 1)"),
        (lambda result: result.pop("seeds"), "(it lacks 'seeds')"),
    ],
)
def test_a_report_names_the_value_of_an_ablation(
    made: Path, tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    shutil.copytree(made / "out", tmp_path / "out")
    edit(tmp_path / "out" / "ablation.json", change)
    output = refused("report", str(tmp_path / "out"), "--images", "0", "--out", str(tmp_path / "page.html"))
    assert f"{tmp_path}/out/ablation.json is damaged {message}; `cawa-fast ablate` writes it again" in output


def test_statistics_of_an_ablation_are_those_of_its_runs(made: Path, tmp_path: Path) -> None:
    """Edited ones are not believed."""
    shutil.copytree(made / "out", tmp_path / "out")
    edit(tmp_path / "out" / "ablation.json", put("rows", 0, "summary", "miou", "mean", 0.99))
    result = invoke("report", str(tmp_path / "out"), "--images", "0", "--out", str(tmp_path / "page.html"))
    assert result.exit_code == 0, result.output
    assert "99.0" not in result.output
    assert "40.6 ± 0.8" in result.output  # of 40.1 and 41.2 %


@pytest.mark.parametrize("content", ['{"rows": 3}', "[" * 100_000, '{"rows": [], "settings": 3}', "\udcff"])
def test_a_damaged_ablation_is_named_by_the_next_call(tmp_path: Path, content: str) -> None:
    (tmp_path / "ablation.json").write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"ablation\.json.* is damaged .*; delete it\. The runs are not lost"):
        Ablation(tmp_path, TINY, choose_rows(["cawa"]), [0])


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("metrics", 0, "weight", None), "(metrics[0].weight is None, not a list)"),
        (put("epoch", 1.0), "(epoch is 1.0, not a whole number)"),
        (put("data", "class_names", {}), "(data.class_names is {}, not a list)"),
        (put("settings", "lr", torch.ones(1)), "(settings.lr is tensor([1.]), not a number)"),
        (put("confusion", torch.ones(2)), "(confusion is no matrix of counts)"),
        (put("versions", 3), "(versions is 3, not an object)"),
    ],
)
def test_a_checkpoint_of_other_values_is_named(
    made: Path, tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    output = resumed_with(change, made, tmp_path)
    assert f"{tmp_path}/run/latest.pt is damaged {message}; restore it" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("optimizer", "param_groups", []), "is of another run than config.json beside it"),
        (put("optimizer", "param_groups", 0, "lr", "0.1"), "(optimizer.param_groups[0].lr is '0.1', not a number)"),
        (put("optimizer", "state", 0, "momentum_buffer", torch.ones(3)), "the momentum has the shape [3], not ["),
        (put("scheduler", []), "(scheduler is [], not an object)"),
        (put("loop", 7), "is of another run than config.json beside it"),
        (put("weights", {}), "is of another run than config.json beside it"),
    ],
)
def test_a_checkpoint_with_another_state_is_refused(
    made: Path, tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    output = resumed_with(change, made, tmp_path)
    assert "latest.pt is " in output
    assert message in output


@pytest.mark.parametrize(
    "packed",
    [
        "no base64",
        base64.b64encode(zlib.compress(bytes(300_000_000), 9)).decode(),
        base64.b64encode(zlib.compress(b"[[1, 2, 3, 4]]")).decode(),
        base64.b64encode(zlib.compress(b"[" * 100_000)).decode(),
    ],
    ids=["text", "bomb", "numbers", "deep"],
)
def test_a_damaged_list_of_files_is_said(tmp_path: Path, packed: str) -> None:
    with pytest.raises(ValueError, match="the list of files that the run keeps is damaged"):
        removed_files({"files": {"train": packed}}, tmp_path)


# ---------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"lr": "0.1"}, "lr must be a number, got '0.1'"),
        ({"crop": (64,)}, r"crop must be two whole numbers or None, got \(64,\)"),
        ({"scale": 1.0}, "scale must be two numbers, got 1.0"),
        ({"amp": 1}, "amp must be true or false, got 1"),
        ({"model": None}, "model must be a text, got None"),
        ({"threads": 10**6}, "threads must be at most 4096, got 1000000"),
        ({"workers": 10**6}, "workers must be at most 4096, got 1000000"),
    ],
)
def test_settings_of_another_type_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**setting)

"""``cawa-fast ablate``: the command line, the plan and the progress bar."""

from __future__ import annotations

import io
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from rich.console import Console

from cawa_fast.recipes.ablation.ablation import Ablation
from cawa_fast.recipes.ablation.progress import AblationDisplay, plan_text
from cawa_fast.recipes.ablation.rows import GROUPS, choose_rows
from cawa_fast.recipes.config import TrainConfig
from tests.support.tiny_runs import TINY, invoke

# ------------------------------------------------------------------------------------------------------ command line


def test_help_describes_groups_and_every_setting_but_a_rows_own() -> None:
    output = invoke("ablate", "--help").output
    for group in GROUPS:
        assert re.search(rf"\b{group}\b", output), group
    options = set(re.findall(r"--[a-z-]+", output))
    shared = {f"--{setting.name.replace('_', '-')}" for setting in fields(TrainConfig)} - {"--weighting", "--seed"}
    assert shared <= options
    assert {"--rows", "--seeds", "--out", "--jobs", "--against", "--rare", "--dry-run"} <= options
    assert not re.search(r"^ +--seed ", output, re.MULTILINE)
    assert "ablate" in invoke("--help").output


def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--rows", "uniform,ladder-csps,tau=0.3", "--seeds", "4,5", "--epochs", "7", "--device", "cpu")
    shown = invoke("ablate", *words, "--out", str(out), "--dry-run", "--jobs", "2")
    assert shown.exit_code == 0, shown.output
    output = " ".join(re.sub(r"[│┃]", " ", shown.output).split())
    assert "6 of 6 runs to do, 42 epochs, 2 at a time" in output
    assert "not known before the first epoch" in output
    assert "ladder-csps" in output
    assert "shared with cawa, 0 of 2" in output
    assert "tau=0.3" in output
    assert not out.exists()


def test_the_estimate_is_the_epochs_left_over_the_jobs(tmp_path: Path) -> None:
    ablation = Ablation(tmp_path, replace(TINY, epochs=10), choose_rows(["enet", "cawa"]), [0], jobs=2)
    assert ablation.seconds_left() is None
    uniform, enet, cawa = ablation.states.values()
    uniform.epoch, uniform.seconds, uniform.status = 10, 4.0, "done"
    enet.epoch, enet.seconds = 5, 8.0
    # 5 epochs of 8 s and 10 of the mean time, 6 s, in two jobs
    assert ablation.seconds_left() == 50
    assert "2 of 3 runs to do, 15 epochs, 2 at a time" in plan_text(ablation)
    assert "about 50 s" in plan_text(ablation)
    assert cawa.seconds is None


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--seeds", "0;1"), 2, "'0;1' is not a list of whole numbers"),
        (("--rows", "best"), 1, "'best' is not a row"),
        (("--lr", "-1"), 1, "lr must be finite and at least 0, got -1.0"),
        (("--jobs", "0"), 2, "--jobs"),
    ],
)
def test_the_command_line_names_what_is_wrong(tmp_path: Path, words: tuple[str, ...], code: int, message: str) -> None:
    shown = invoke("ablate", *words, "--out", str(tmp_path / "out"))
    assert shown.exit_code == code
    assert message in shown.output
    assert not (tmp_path / "out").exists()


def test_damaged_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "ablation.json").write_text('{"rows": 3}')
    with pytest.raises(ValueError, match=r"ablation\.json is damaged"):
        Ablation(tmp_path, TINY, choose_rows(["cawa"]), [0])


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    settings = json.loads(json.dumps({k: v for k, v in TINY.as_dict().items() if k not in ("seed", "weighting")}))
    (tmp_path / "ablation.json").write_text(json.dumps({"rows": [], "settings": settings}))
    Ablation(tmp_path, TINY, choose_rows(["cawa"]), [0])
    Ablation(tmp_path, replace(TINY, weighting="focal", seed=3, device="auto"), choose_rows(["cawa"]), [0])
    with pytest.raises(ValueError, match=r"holds an ablation with lr=0.05, not 0.1; choose another --out"):
        Ablation(tmp_path, replace(TINY, lr=0.1), choose_rows(["cawa"]), [0])


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cawa-s0").mkdir()
    (tmp_path / "cawa-s0" / "config.json").write_text(json.dumps(replace(TINY, delta=0.5, threads=3).as_dict()))
    with pytest.raises(ValueError, match=r"cawa-s0 was begun with delta=0.5, not 0.9; choose another --out"):
        Ablation(tmp_path, TINY, choose_rows(["cawa"]), [0])
    # without --threads, a run keeps the number of threads that it was begun with
    ablation = Ablation(tmp_path, replace(TINY, delta=0.5, threads=None), choose_rows(["cawa"]), [0])
    assert ablation.states["cawa-s0"].config.threads == 3


# ----------------------------------------------------------------------------------------------------------- display


def test_the_bar_counts_epochs_of_all_runs(tmp_path: Path) -> None:
    ablation = Ablation(tmp_path, replace(TINY, epochs=4), choose_rows(["cawa"]), [0, 1])
    console = Console(force_terminal=True, width=140, file=io.StringIO(), record=True)
    ablation.states["uniform-s0"].epoch, ablation.states["uniform-s0"].status = 4, "done"
    with AblationDisplay(console, ablation) as display:
        state = ablation.states["cawa-s0"]
        state.status = "running"
        display.update(state)
        state.epoch, state.miou = 2.5, 0.123
        display.update(state)
        display._progress.refresh()
        shown = console.export_text(clear=False)
    assert "6.5/16" in shown
    assert "epochs/min" in shown
    assert re.search(r"cawa-s0 .* 2.5/4 +mIoU 12.3", shown)


def test_without_a_terminal_there_is_a_line_for_each_run_with_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 100.0, 100.0, 100.0])
    monkeypatch.setattr("cawa_fast.recipes.ablation.progress.time.monotonic", lambda: next(clock))
    ablation = Ablation(tmp_path, replace(TINY, epochs=4), choose_rows(["cawa"]), [0, 1])
    console = Console(file=io.StringIO(), width=140)
    with AblationDisplay(console, ablation) as display:
        state = ablation.states["uniform-s0"]
        for status, epoch in (("running", 0), ("running", 4), ("done", 4)):
            state.status, state.epoch, state.miou = status, epoch, 0.5
            display.update(state)
        state = ablation.states["cawa-s0"]
        state.status, state.error = "failed", "planted"
        display.update(state)
    # 4 of 16 epochs in 100 s: 12 more take 300 s; without the failed run's 4 they take 200 s
    assert console.file.getvalue().splitlines() == [
        "1/4 uniform-s0: mIoU 50.00  5 min left",
        "2/4 cawa-s0: FAILED  3 min left: planted",
    ]

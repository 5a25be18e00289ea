"""Ablations that train: their results, killed and failed runs, continuing, stopping."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cawa_fast.recipes.ablation.ablation import Ablation, State, choose_rows
from tests.support.tiny_runs import TINY, arguments, assert_same_run, invoke, run, without_times

pytestmark = pytest.mark.slow  # each run is a process that imports torch


class Watching:
    """Records the updates, and may act on one."""

    def __init__(self, action: Any = None) -> None:
        self.seen: list[tuple[str, str, float]] = []
        self.action = action

    def update(self, state: State) -> None:
        self.seen.append((state.name, state.status, state.epoch))
        if self.action is not None:
            self.action(state)


def command(out: Path, *words: str) -> list[str]:
    """The command line with the settings of TINY."""
    settings = arguments(TINY, out)[4:]
    for name in ("--weighting", "--seed"):
        index = settings.index(name)
        del settings[index : index + 2]
    return ["ablate", "--out", str(out), *settings, *words]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_over_seeds_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = invoke(*command(out, "--rows", "cawa,ladder-baseline", "--seeds", "0,1", "--jobs", "2"))
    assert shown.exit_code == 0, shown.output
    folders = [f"{row}-s{seed}" for row in ("cawa", "uniform") for seed in (0, 1)]
    assert sorted(path.name for path in out.iterdir()) == [".lock", "ablation.json", "ablation.md", *folders]

    # each run has the same bits as one of `cawa-fast train` with the same settings
    run(tmp_path / "alone", replace(TINY, weighting="cawa", seed=1))
    assert_same_run(tmp_path / "alone", out / "cawa-s1")
    assert not (out / "cawa-s1" / "worker.log").exists()

    result = json.loads((out / "ablation.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["uniform", "cawa", "ladder-baseline"]
    assert list(result["groups"]) == ["rivals", "ladder"]
    uniform, cawa, baseline = result["rows"]
    assert baseline["runs"] == uniform["runs"]
    assert cawa["settings"] == {"weighting": "cawa"}
    final = {name: records(out / name)[-1] for name in folders}
    for row in (uniform, cawa):
        assert [entry["run"] for entry in row["runs"]] == [f"{row['name']}-s0", f"{row['name']}-s1"]
        for entry in row["runs"]:
            record = final[entry["run"]]
            assert entry["status"] == "done"
            assert entry["miou"] == record["miou"]
            assert entry["rare_iou"] == pytest.approx(statistics.mean(record["iou"][6:]))  # pole, sign, person, rider
            assert entry["pixel_accuracy"] == record["pixel_accuracy"]
            assert entry["seconds_per_epoch"] == pytest.approx(
                record["seconds"]["total"]
            )  # the mean without the first of two epochs
            assert entry["awa_share"] == (record["awa_overhead"] if row is cawa else None)
            assert entry["dead"] == [index for index, iou in enumerate(record["iou"]) if iou == 0]
    assert cawa["summary"]["miou"]["mean"] == pytest.approx(sum(final[f"cawa-s{s}"]["miou"] for s in (0, 1)) / 2)
    differences = cawa["paired"]["miou"]["differences"]
    assert differences == {str(s): final[f"cawa-s{s}"]["miou"] - final[f"uniform-s{s}"]["miou"] for s in (0, 1)}
    assert result["rare"]["classes"] == [6, 7, 8, 9]
    assert "--rows uniform,cawa,ladder-baseline --seeds 0,1" in result["command"]
    assert f"`{result['command']}`" in (out / "ablation.md").read_text()

    # a report can read the folders of the runs and the folder of the ablation
    page = tmp_path / "report.html"
    report = invoke("report", *map(str, sorted(out.glob("*"))), "--out", str(page), "--images", "0")
    assert report.exit_code == 0, report.output
    assert page.exists()

    # a second call trains only what is not done, and adds its rows and seeds to the results
    before = {name: (out / name / "latest.pt").stat().st_mtime_ns for name in folders}
    again = invoke(*command(out, "--rows", "log_frequency,cawa", "--seeds", "1"))
    assert again.exit_code == 0, again.output
    assert "1 of 3 runs to do" in again.output
    assert {name: (out / name / "latest.pt").stat().st_mtime_ns for name in folders} == before
    rows = json.loads((out / "ablation.json").read_text())["rows"]
    assert [(row["name"], [entry["seed"] for entry in row["runs"]]) for row in rows] == [
        ("uniform", [0, 1]),
        ("log_frequency", [1]),
        ("cawa", [0, 1]),
        ("ladder-baseline", [0, 1]),
    ]
    assert rows[1]["paired"]["miou"]["n"] == 1


def test_a_killed_run_leaves_the_others_alone_and_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    base, rows = replace(TINY, epochs=6), choose_rows(["cawa"])
    killed: list[float] = []

    def kill(state: State) -> None:
        if state.name == "cawa-s0" and state.epoch >= 2 and not killed:
            assert state.pid is not None
            killed.append(state.epoch)
            os.kill(state.pid, signal.SIGKILL)

    ablation = Ablation(tmp_path / "torn", base, rows, [0], jobs=2)
    ablation.run(Watching(kill))
    assert killed
    assert [state.name for state in ablation.failed] == ["cawa-s0"]
    assert "killed by SIGKILL" in str(ablation.failed[0].error)
    assert ablation.states["uniform-s0"].status == "done"
    entry = json.loads((tmp_path / "torn" / "ablation.json").read_text())["rows"][1]["runs"][0]
    assert entry["status"] == "failed"
    assert "killed by SIGKILL" in entry["error"]
    assert 2 <= len(records(tmp_path / "torn" / "cawa-s0")) < 6

    # the next call continues the run with the same number of threads
    ablation = Ablation(tmp_path / "torn", replace(base, threads=None), rows, [0], jobs=1)
    watching = Watching()
    assert [state.name for state in ablation.waiting] == ["cawa-s0"]
    assert ablation.seconds_left() is not None
    ablation.run(watching)
    assert not ablation.failed
    assert {name for name, _, _ in watching.seen} == {"cawa-s0"}
    assert min(epoch for _, _, epoch in watching.seen) >= 2
    run(tmp_path / "whole", replace(base, weighting="cawa"))
    assert_same_run(tmp_path / "whole", tmp_path / "torn" / "cawa-s0")


def test_a_failing_row_is_reported_at_the_end_and_stops_no_other(tmp_path: Path) -> None:
    words = ("--rows", "lr=1e12,enet", "--seeds", "0", "--jobs", "1")
    shown = invoke(*command(tmp_path, *words))
    assert shown.exit_code == 1
    assert "lr=1e+12-s0 failed: FloatingPointError: the training loss of epoch 2 is" in shown.output
    assert "worker.log" in shown.output
    assert "Run the same command to try them again" in shown.output
    assert "Traceback" in (tmp_path / "lr=1e+12-s0" / "worker.log").read_text()
    rows = {row["name"]: row["runs"][0] for row in json.loads((tmp_path / "ablation.json").read_text())["rows"]}
    assert {name: entry["status"] for name, entry in rows.items()} == {
        "uniform": "done",
        "enet": "done",
        "lr=1e+12": "failed",
    }
    assert "`lr=1e+12-s0`: FloatingPointError" in (tmp_path / "ablation.md").read_text()


def test_a_process_that_cannot_even_begin_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cawa_fast.recipes.ablation.pool.sys.executable", "/no/such/python")
    ablation = Ablation(tmp_path, TINY, choose_rows(["cawa"]), [0])
    ablation.run(Watching())
    assert [state.name for state in ablation.failed] == ["uniform-s0", "cawa-s0"]
    assert all("FileNotFoundError" in str(state.error) for state in ablation.failed)


def test_two_processes_in_one_folder_are_refused(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another cawa-fast ablate is running in"):
            Ablation(tmp_path, TINY, choose_rows(["cawa"]), [0]).run(Watching())


def started(out: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """An ablation of long runs in a separate process, and the processes of its runs, once they train."""
    words = command(out, "--rows", "cawa", "--seeds", "0", "--jobs", "2", "--epochs", "5000")
    process = subprocess.Popen(
        [sys.executable, "-m", "cawa_fast.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    metrics = [out / name / "metrics.jsonl" for name in ("uniform-s0", "cawa-s0")]
    while not all(file.exists() for file in metrics) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    children = [pid for thread in threads for pid in (thread / "children").read_text().split()]
    return process, [int(pid) for pid in children]


def alive(pids: list[int]) -> list[int]:
    """The processes that still run; zombies do not count."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


def wait_for_the_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = alive(pids)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_processes_and_the_same_command_continues(tmp_path: Path, kind: signal.Signals) -> None:
    process, children = started(tmp_path)
    assert len(children) == 2
    process.send_signal(kind)
    try:
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    wait_for_the_end(children)
    assert process.returncode == 130
    assert "Stopped; all finished epochs are saved. Run the same command to continue." in out
    assert "Traceback" not in error + out
    assert "FAILED" not in out
    assert not list(tmp_path.glob("*/worker.log"))  # there were no errors
    assert len(without_times(tmp_path / "cawa-s0")) >= 1
    result = json.loads((tmp_path / "ablation.json").read_text())
    assert {entry["status"] for row in result["rows"] for entry in row["runs"]} == {"unfinished"}
    shown = invoke(*command(tmp_path, "--rows", "cawa", "--seeds", "0", "--epochs", "5000", "--dry-run"))
    assert "2 of 2 runs to do" in shown.output
    assert "at the speed so far" in shown.output


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    process, children = started(tmp_path)
    assert len(alive(children)) == 2
    process.kill()
    process.communicate()
    wait_for_the_end(children)


def test_a_run_ends_when_its_input_ends_though_nobody_refuses_its_output(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    task = {"config": replace(TINY, epochs=5000).as_dict(), "folder": str(tmp_path / "run")}
    with lines.open("w") as out, (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cawa_fast.recipes.ablation.worker"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=log,
            text=True,
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps(task) + "\n")
    process.stdin.flush()
    deadline = time.monotonic() + 120
    while "epoch" not in lines.read_text() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None
    process.stdin.close()
    try:
        assert process.wait(timeout=30) == 1
    finally:
        process.kill()
        process.wait()

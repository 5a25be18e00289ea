"""``python -m bench gpu``: a complete rehearsal, and what it reports of steps that fail, hang or crash."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("triton")

import click
from click.testing import CliRunner

from bench import baselines
from bench.epoch.rows import GPU_ROWS
from bench.gpu import command, epochs, measure, profiled, report, sanitized, smi, steps, timing
from bench.gpu.command import Step, execute
from bench.gpu.rows import REHEARSED, ROWS, Unit, inputs_of, rehearsed, scored_maps, units_of
from bench.gpu.runner import Done, Run
from bench.gpu.state import State
from tests.support.gpu_results import fake_row
from tests.support.triton_versions import OLDEST, WHY_NOT

ROOT = Path(__file__).parents[2]
BY_KEY = {row.key: row for row in ROWS}


def new_run(folder: Path, minutes: float = 1.0) -> Run:
    return Run(folder, minutes, True, command._new_result(minutes, rehearse=True))


# ------------------------------------------------------------------------------------------------ a complete rehearsal


def rehearse(folder: Path, *options: str, **environment: str) -> tuple[dict[str, Any], str]:
    """The steps in gpu.json after a rehearsal that must succeed, and what it printed."""
    arguments = [sys.executable, "-m", "bench", "gpu", "--rehearse", "--out", str(folder), *options]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(arguments, cwd=ROOT, env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:] + (folder / "gpu.log").read_text()[-4000:]
    return json.loads((folder / "gpu.json").read_text())["steps"], done.stdout


def check_benchmarks(benchmarks: dict[str, Any]) -> None:
    assert benchmarks["status"] == "ok"
    assert benchmarks["rows"].keys() == set(REHEARSED)
    assert benchmarks["failed"] == {}
    assert len(benchmarks["done"]) == benchmarks["planned"]
    for row in benchmarks["rows"].values():
        assert {"ours", "ours again", "eager"} <= row["contenders"].keys()
        assert row["graph"]["ours"] > 0
        for name, why in row["failed"].items():
            assert "No module named" in why, f"{name}: {why}"
    assert "compile, max-autotune" in benchmarks["rows"]["ce-19"]["contenders"]
    assert benchmarks["awa"]["bfloat16"]["step"] > 0


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    found, printed = rehearse(tmp_path)
    assert [*found] == [step.name for step in command.STEPS]
    no_tables = str(found["sweep"].get("note", "")).startswith("skipped: no tables")
    assert {step["status"] for name, step in found.items() if name != "sweep"} == {"ok"}
    assert found["sweep"]["status"] == ("skipped" if no_tables else "ok")
    assert found["tests"]["counts"]["passed"] > 3
    assert found["limits"]["bytes"] > 0
    assert "launch_in_graph" in found["limits"]
    benchmarks = found["benchmarks"]
    check_benchmarks(benchmarks)
    for row in found["profile"]["rows"].values():
        for name in ("ours", "eager"):
            assert 0 < row[name]["host"] <= row[name]["wall"]
            assert row[name]["kernels"][0][2] > 0
    (row,) = found["epoch"]["rows"].values()
    assert row["rounds"] == 1
    assert row["seconds"].keys() == {*"ade"}
    assert found["epoch"]["done"] == ["compact-camvid"]

    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith("# GPU benchmark: a rehearsal on a CPU\n")
    assert "Nothing here is a measurement" in text
    for row in (*benchmarks["rows"].values(), *found["profile"]["rows"].values()):
        assert row["title"] in text
    assert "ours + CAWA" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.log", "gpu.md"]
    assert len(printed) < 12_000
    assert "confusion-19" in printed


@pytest.mark.slow
@pytest.mark.skipif(OLDEST is None, reason=WHY_NOT)
def test_rehearsal_on_the_oldest_triton(tmp_path: Path) -> None:
    """The steps that run every kernel of the command; the others do nothing else with Triton."""
    found, _ = rehearse(tmp_path, "--only", "limits,benchmarks", PYTHONPATH=str(OLDEST))
    assert [*found] == ["limits", "benchmarks"]
    assert found["limits"]["status"] == "ok"
    assert found["limits"]["triton"].startswith("3.6.")
    check_benchmarks(found["benchmarks"])


# ------------------------------------------------------------------------------------------------- steps and their time


def test_a_failing_step_stops_no_other(tmp_path: Path) -> None:
    def fails(run: Run, seconds: float, found: dict[str, Any]) -> None:
        found["counts"] = {"passed": 1}
        raise OSError("planted")

    def works(run: Run, seconds: float, found: dict[str, Any]) -> None:
        written = json.loads((run.out / "gpu.json").read_text())
        assert written["steps"]["limits"]["note"] == "planted", "results must be written before the next step"
        found["counts"] = {"passed": 2}

    run = new_run(tmp_path)
    assert not execute(run, (Step("limits", 1, 0, fails), Step("tests", 1, 0, works)))
    assert {name: step["status"] for name, step in run.result["steps"].items()} == {"limits": "failed", "tests": "ok"}
    assert "2 passed" in report.gpu_summary(run.result)
    assert not run.report_failed


def test_an_interrupt_is_recorded_and_raised_again(tmp_path: Path) -> None:
    def interrupted(run: Run, seconds: float, found: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    run = new_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        execute(run, (Step("tests", 1, 0, interrupted),))
    assert json.loads((tmp_path / "gpu.json").read_text())["steps"]["tests"]["note"] == "interrupted"


def test_results_survive_a_report_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(result: dict[str, Any]) -> str:
        raise KeyError("planted")

    monkeypatch.setattr(report, "gpu_page", broken)
    run = new_run(tmp_path)
    run.publish()
    assert run.report_failed
    assert "planted" in (tmp_path / "gpu.md").read_text()
    assert json.loads((tmp_path / "gpu.json").read_text())["benchmark"] == "gpu"


def test_steps_share_the_time() -> None:
    first, second = Step("build", 1, 0, steps.build_step), Step("tests", 3, 0, steps.tests_step)
    assert command.share_of_time((first, second), 400) == 100
    assert command.share_of_time((second,), 390) == 390  # the first step left time over
    assert command.share_of_time((second,), -1) == 0


def test_without_time_a_step_is_skipped_and_says_so(tmp_path: Path) -> None:
    run = new_run(tmp_path, minutes=0.1)
    run.rehearse = False
    assert execute(run, (Step("tests", 1, 60, steps.tests_step),))
    assert run.result["steps"]["tests"]["status"] == "skipped"
    assert "no time left" in report.gpu_summary(run.result)


def test_without_a_gpu_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(command.gpu, ["--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "--rehearse" in done.output
    assert list(tmp_path.iterdir()) == []


def test_unknown_steps_are_refused() -> None:
    assert [step.name for step in command.select_steps("tests, limits")] == ["limits", "tests"]
    assert command.select_steps("") == command.STEPS
    with pytest.raises(click.BadParameter, match="no step 'nothing'"):
        command.select_steps("nothing")


# ------------------------------------------------------------------------------------------------------- the processes


def test_a_process_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu.runner._GRACE", 0.5)
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "print('here', flush=True); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    begin = time.monotonic()
    done = new_run(tmp_path).spawn([sys.executable, "-c", code], 2.0)
    assert time.monotonic() - begin < 20
    assert done.code is None
    assert "here" in done.output
    assert "stopped after" in done.how
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(50):  # until its new parent process has reaped it
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child process still runs")


def test_long_output_is_cut_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu.runner.LOG_BYTES", 1000)
    run = new_run(tmp_path)
    done = run.spawn([sys.executable, "-c", "print('begin' + 'x' * 5000 + 'end')"], 30)
    log = run.log.read_text()
    assert len(done.output) > 5000
    assert len(log) < 1200
    assert log.startswith("begin")
    assert log.endswith("end\n")


def test_a_background_process_ends_with_its_step(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with run.beside([sys.executable, "-c", "print('quick')"]) as finish:
        done = finish(30)
    assert (done.code, done.output) == (0, "quick\n")
    begin = time.monotonic()
    with run.beside([sys.executable, "-c", "import time; print('slow', flush=True); time.sleep(60)"]):
        time.sleep(2)
    assert time.monotonic() - begin < 20
    log = run.log.read_text()
    assert "quick" in log
    assert "slow" in log
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.log"]


def test_processes_get_the_device_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    run = new_run(tmp_path)
    assert run.environment()["TRITON_INTERPRET"] == "1"
    run.rehearse = False
    assert run.environment()["CAWA_FAST_TEST_DEVICE"] == "cuda"
    assert "TRITON_INTERPRET" not in run.environment()


def test_benchmarks_continue_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    ends = iter([(1, ["a"]), (1, ["a", "b"]), (0, ["a", "b", "c"])])

    def child(step: str, seconds: float, into: dict[str, Any]) -> Done:
        code, done = next(ends)
        into.update(rows={"ce-19": fake_row()}, done=done)
        return Done(code, "Fatal: planted", 1.0)

    monkeypatch.setattr(run, "child", child)
    found: dict[str, Any] = {"status": "ok"}
    steps.benchmarks_step(run, 60, found)
    assert found["status"] == "ok"
    assert found["done"] == ["a", "b", "c"]

    ends = iter([(1, []), (1, []), (1, [])])
    monkeypatch.setattr(run, "child", lambda *_: Done(next(ends)[0], "Fatal: planted", 1.0))
    with pytest.raises(RuntimeError, match=r"nothing was measured.*planted"):
        steps.benchmarks_step(run, 60, {"status": "ok"})


def test_an_epoch_that_hangs_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = epochs.MAIN[:3]

    def measured(row: Any, key: str, state: State, machine: Any, until: float) -> None:
        if key == third:
            raise RuntimeError("out of memory\nand more")
        state.data["rows"][key] = {"rounds": 2}

    monkeypatch.setattr(epochs, "MAIN", (first, second, third))
    monkeypatch.setattr(epochs, "measure_network", measured)
    state = State(tmp_path / "state.json", seconds=60, rehearse=False)
    state.data = {"begun": first}  # the process was killed during this epoch
    epochs.run_epochs(state, timing.Host())
    assert state.data["done"] == [first, second, third]
    assert state.data["rows"].keys() == {second}
    assert state.data["failed"][first].startswith("the process ended")
    assert state.data["failed"][third] == "RuntimeError: out of memory"
    late = State(tmp_path / "late.json", seconds=1, rehearse=False)
    epochs.run_epochs(late, timing.Host())
    assert late.data["note"] == f"out of time before {first}"


def test_rows_of_epochs_and_profiles_exist() -> None:
    assert {*epochs.MAIN} <= {row.key for row in GPU_ROWS}
    assert {*profiled.MAIN} <= BY_KEY.keys()


def test_a_unit_that_ended_its_process_is_not_tried_again(tmp_path: Path) -> None:
    first, *others = measure.plan(rehearse=True)
    state = State(tmp_path / "state.json", seconds=5, rehearse=True)
    state.data = {"begun": first.name, "done": [unit.name for unit in others] + ["awa"]}
    measure.run_benchmarks(state, timing.Host())
    assert list(state.data["failed"]) == [first.name]
    assert state.data["rows"] == {}


# ------------------------------------------------------------------------------------------------------ parsing output


def test_cuda_options(monkeypatch: pytest.MonkeyPatch) -> None:
    described = 'option(CAWA_FAST_CUDA "..." AUTO)\nset(CAWA_FAST_CUDA_ARCHITECTURES "80;90" CACHE STRING "for")'
    assert steps.cuda_options("project(x)\nset(CAWA_FAST_CUDA ON)", rehearse=False)[0] == []
    assert steps.cuda_options(described, rehearse=True)[0] == ["-DCAWA_FAST_CUDA=OFF"]
    monkeypatch.setattr(steps.shutil, "which", lambda *_, **__: "/bin/nvcc")
    monkeypatch.setattr(steps, "query", lambda _: {"compute_cap": 9.0})
    assert steps.cuda_options(described, rehearse=False)[0] == [
        "-DCAWA_FAST_CUDA=ON",
        "-DCAWA_FAST_CUDA_ARCHITECTURES=90",
    ]
    monkeypatch.setattr(steps.shutil, "which", lambda *_, **__: None)
    assert steps.cuda_options(described, rehearse=False)[0] == ["-DCAWA_FAST_CUDA=OFF"]


def test_a_build_without_cuda_operators_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    run.rehearse = False
    answers = {"-c": "{'cuda_architectures': []}\ncawa_fast was built without CUDA"}
    monkeypatch.setattr(run, "spawn", lambda command, *_, **__: Done(0, answers.get(command[1], ""), 1.0))
    monkeypatch.setattr(steps.shutil, "which", lambda *_, **__: "/bin/cmake")
    with pytest.raises(RuntimeError, match=r"no CUDA operators.*built without CUDA"):
        steps.build_step(run, 10, {})
    answers["-c"] = "{'cuda_architectures': ['90']}\nNone"
    steps.build_step(run, 10, {})


def test_nvidia_smi_output_is_parsed() -> None:
    fields = ("name", "clocks.sm", "power.draw")
    assert smi.parse_query(fields, "NVIDIA H200, 1980, [N/A]\n") == {
        "name": "NVIDIA H200",
        "clocks.sm": 1980.0,
        "power.draw": "[N/A]",
    }
    assert smi.parse_query(fields, "") == {}


def test_sanitizer_output_is_parsed() -> None:
    clean = steps.parse_sanitizer(Done(0, "44 calls\n========= ERROR SUMMARY: 0 errors\n", 9.0))
    assert (clean["errors"], clean["summary"]) == (0, "ERROR SUMMARY: 0 errors")
    output = (
        "========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4\n========= ERROR SUMMARY: 2 errors\n"
    )
    bad = steps.parse_sanitizer(Done(1, output, 9.0))
    assert bad["errors"] == 2
    assert bad["first"][0] == "========= Invalid __global__ read of size 4"
    race = "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
    assert steps.parse_sanitizer(Done(0, race, 9.0))["errors"] == 1
    assert steps.parse_sanitizer(Done(None, "========= Device not supported\n", 9.0))["errors"] is None


def test_every_tool_of_the_sanitizer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    run.rehearse = False
    asked: list[list[str]] = []
    answers = {
        "memcheck": "44 calls\n========= ERROR SUMMARY: 0 errors\n",
        "racecheck": "========= Device not supported\n",
    }

    @contextlib.contextmanager
    def beside(command: list[str], **options: Any) -> Iterator[Callable[[float], Done]]:
        asked.append(command)
        yield lambda seconds: Done(0, answers[command[2]], 1.0)

    monkeypatch.setattr(run, "beside", beside)
    monkeypatch.setattr(steps.shutil, "which", lambda *_, **__: "compute-sanitizer")
    found: dict[str, Any] = {"status": "ok"}
    steps.sanitizer_step(run, 90, found)
    assert [command[:3] for command in asked] == [["compute-sanitizer", "--tool", kind] for kind in answers]
    assert all("bench.gpu.sanitized" in command and "cuda" in command for command in asked)
    assert [(tool["errors"], tool["calls"]) for tool in found["tools"].values()] == [(0, "44 calls"), (None, None)]
    assert found["status"] == "ok"
    answers["memcheck"] = "========= ERROR SUMMARY: 3 errors\n"
    steps.sanitizer_step(run, 90, found)
    assert found["status"] == "failed"


def test_every_operator_is_among_the_first_calls_of_the_sanitizer() -> None:
    names = list(itertools.islice(sanitized.calls(torch.device("cpu")), 8))
    assert [name.partition(",")[0] for name in names] == 2 * [
        "cross_entropy",
        "focal_loss",
        "confusion_matrix",
        "cam_counts",
    ]
    for name in names:
        assert "torch.float32" in name
        assert "(16, 32) to (16, 32)" in name or "(8, 16) to (32, 64)" in name


def test_failed_tests_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "test_it.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): raise ValueError('first line\\nsecond line')\n"
        "def test_left_out(): pytest.skip('no')\n"
    )
    options = ["-q", "-rfE", "-p", "no:cacheprovider", "--junitxml=report.xml", "--rootdir=."]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # no plugin is needed, and some import torch
    command = [sys.executable, "-m", "pytest", *options]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    done = Done(run.returncode, run.stdout, 1.0)
    from_report = steps.parse_tests(done, folder / "report.xml")
    assert from_report["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert from_report["failures"] == [{"name": "test_it::test_bad", "message": "ValueError: first line"}]
    from_output = steps.parse_tests(done, folder / "missing.xml")
    assert from_output["counts"] == from_report["counts"]
    assert from_output["failures"] == [{"name": "test_it.py::test_bad", "message": "ValueError: first line"}]
    (folder / "report.xml").write_text("<testsuites><testcase")  # pytest was killed while it wrote the report
    assert steps.parse_tests(done, folder / "report.xml") == from_output


def test_a_test_that_hangs_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path)
    run.rehearse = False
    monkeypatch.setattr(steps.importlib.util, "find_spec", lambda name: name)
    command = steps.pytest_command(run, tmp_path / "report.xml")
    assert {"--timeout-method=thread", "-n"} <= {*command}
    assert any(word.endswith("test_gpu.py") for word in command)
    assert all((ROOT / name).is_file() for name in command if name.startswith("tests/"))
    ends = iter([(None, "40 passed"), (None, "2 failed, 40 passed"), (3, "INTERNALERROR"), (None, "")])
    monkeypatch.setattr(run, "spawn", lambda *_, **__: Done(*next(ends), 1.0))
    found: list[dict[str, Any]] = [{"status": "ok"} for _ in range(4)]
    for step in found:
        steps.tests_step(run, 40, step)
    assert [step["status"] for step in found] == ["ok", "failed", "failed", "failed"]
    assert "before the last" in found[0]["note"]


def test_kernels_of_the_source_tree_are_importable() -> None:
    link = ROOT / "cawa_fast" / "kernels"
    before = link.exists()
    with steps.importable_kernels() as note:
        assert link.exists() == (before or note is not None)
        with steps.importable_kernels() as again:
            assert again is None
    assert link.exists() == before


# ------------------------------------------------------------------------------------------------------------- the rows


def test_rows_have_unique_keys_and_known_baselines_and_goals() -> None:
    assert len(BY_KEY) == len(ROWS)
    assert set(REHEARSED) <= BY_KEY.keys()
    known = {*baselines.MEANING, "ours, realistic"}
    for row in ROWS:
        assert {*row.baselines, *row.compiled} <= known
        measured = {*row.baselines, *row.compiled, "bytes", "exponentials"}
        assert {target.baseline for target in row.targets} <= measured
    assert BY_KEY["resize-ce-150-x4-bf16"].title == (
        "resize + cross_entropy 8×150×128×128 to 512×512, bfloat16"
    )  # the title in the table of goals


def test_rows_with_goals_come_first() -> None:
    planned = units_of(ROWS)
    assert len({unit.name for unit in planned}) == len(planned)
    kinds = [(unit.kind, bool(unit.row.targets)) for unit in planned]
    assert kinds == sorted(kinds, key=[*dict.fromkeys(kinds)].index), "units of one kind must be adjacent"
    assert kinds[0] == ("baselines", True)
    assert kinds[-1] == ("max-autotune", True)
    assert Unit(BY_KEY["ce-19"], ("Liger",)).name == "ce-19: baselines"


@pytest.mark.parametrize("key", REHEARSED)
def test_inputs_of_a_row(key: str) -> None:
    row = rehearsed(BY_KEY[key])
    made = inputs_of(row, timing.Host())
    logits, labels = made[0].logits, made[0].labels
    assert logits.shape == (2, row.classes, *row.low)
    assert labels.shape == (2, *row.high)
    assert str(logits.dtype) == f"torch.{row.dtype}"
    assert logits.is_contiguous(memory_format=torch.channels_last) or row.layout == "contiguous"
    size = logits.numel() * logits.element_size() + labels.numel()
    assert len(made) * size >= 2 * timing.Host().cache_bytes or len(made) == 16
    assert len({problem.logits.data_ptr() for problem in made}) == len(made)


def test_scored_maps_are_those_of_classes_present() -> None:
    row = rehearsed(BY_KEY["cam-19"])
    (given, *_) = inputs_of(row, timing.Host())
    present = [{*image.flatten().tolist()} - {255} for image in given.labels]
    assert scored_maps(given, row.classes) == sum(len(classes) for classes in present)

"""Parts of ``python -m bench gpu`` that a rehearsal on a CPU does not reach, or whose results it does not check."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("triton")

from bench.baselines import Implementation
from bench.gpu import command, digest, profiled, report, sweep, timing
from bench.gpu.goals import goals, limit_share
from bench.gpu.rows import ROWS, rehearsed
from bench.gpu.state import State
from tests.support.gpu_results import fake_row

ROOT = Path(__file__).parents[2]
BY_KEY = {row.key: row for row in ROWS}
LIMITS = {"bytes": 4.3e12, "exponentials": 4e12, "fmas": 3e13}


# --------------------------------------------------------------------------------------------------------------- goals


def test_goals_against_numbers_worked_by_hand() -> None:
    # 8*19*512*1024 logits: 642 MB take 0.149 ms at 4.3 TB/s, three quarters of 0.2 ms
    row = fake_row(faster={"best eager": 4.0, "compile": 1.2}, failed={"Liger": "ImportError: none"})
    share, bound = limit_share(row, LIMITS) or (0, "")
    assert (round(share, 2), bound) == (0.75, "bytes")
    found = {goal.text: goal.met for goal in goals("ce-19", row, LIMITS)}
    assert found == {
        "≥85 % of bytes: 75 %": False,
        "≥3x eager: 4x": True,
        "≥1.3x compile: 1.2x": False,
        "≥5x Liger (ImportError: none)": None,
        "memory ≤304 MiB: 304": True,
    }


def test_the_time_in_a_graph_decides_the_share_of_the_limit() -> None:
    row = fake_row(graph={"ours": 0.16e-3})
    assert round((limit_share(row, LIMITS) or (0, ""))[0], 2) == 0.93
    assert limit_share(row, {}) is None
    assert goals("ce-19", row, {})[0].met is None


def test_goals_against_reading_labels_and_a_slow_baseline() -> None:
    contenders = {"ours": {"median": 1e-3, "peak_bytes": 0}, "torchmetrics, deterministic": {"median": 2.0}}
    row = fake_row(contenders=contenders, faster={"best eager": 20.0, "labels": 0.5}, graph={})
    assert [goal.met for goal in goals("confusion-19", row, LIMITS)] == [True, True, True]
    # the launch overhead of calls hides the time of short kernels; a graph shows it
    row["graph"] = {"ours": 40e-6, "labels": 10e-6}
    assert [goal.met for goal in goals("confusion-19", row, LIMITS)] == [True, True, False]


def test_memory_beyond_the_goal() -> None:
    row = fake_row()
    row["contenders"]["ours"]["peak_bytes"] *= 2
    assert goals("ce-19", row, LIMITS)[-1].met is False


def test_a_report_of_steps_that_failed_early() -> None:
    machine = {"gpu": {"name": "A GPU", "compute_cap": 9.0}, "cuda": "13.0", "torch": "2", "python": "3"}
    result: dict[str, Any] = {"benchmark": "gpu", "rehearsal": False, "minutes": 8, "steps": {}}
    result["machine"] = machine | {"commit": None, "date": "2026-01-01"}
    failed = {"status": "failed", "note": "planted", "seconds": 1.0}
    for name in ("build", "limits", "tests", "profile", "benchmarks", "epoch", "sanitizer", "sweep"):
        result["steps"][name] = dict(failed)
    text = report.gpu_page(result)
    assert text.startswith("# GPU benchmark: A GPU\n")
    assert text.count("planted") >= 6
    assert "planted" in report.gpu_summary(result)
    rows = {"ce-19": fake_row(failed={"graph of ours": "waits"}), "ce-150": fake_row(implementations={})}
    result["steps"]["benchmarks"] |= {"rows": rows, "failed": {"cam-19: baselines": "OutOfMemoryError: a lot"}}
    result["steps"]["tests"] |= {"counts": {"failed": 1}, "failures": [{"name": "a::b", "message": "c"}]}
    result["steps"]["sanitizer"]["tools"] = {
        "memcheck": {
            "calls": None,
            "errors": 1,
            "summary": "ERROR SUMMARY: 1 errors",
            "first": ["bad"],
            "end": "exit status 1",
        }
    }
    text = report.gpu_page(result)
    for words in ("OutOfMemoryError", "graph of ours: waits", "1 × `c`:\n\n- a::b\n", "ERROR SUMMARY: 1"):
        assert words in text
    assert "a::b" in report.gpu_summary(result)


def test_a_report_says_what_was_left_out() -> None:
    machine = {"gpu": {"name": "A GPU"}, "cuda": "13.0", "torch": "2", "python": "3", "commit": "c", "date": "d"}
    result: dict[str, Any] = {"rehearsal": False, "machine": machine, "steps": {}, "note": "Built elsewhere."}
    kernels = [["a", 2.0, 3e-6], ["b", 1.0, 1e-6]]
    row = {"title": "a row", "ours": {"host": 1e-6, "wall": 5e-6, "kernels": kernels}}
    result["steps"]["profile"] = {"status": "ok", "seconds": 1.0, "rows": {"ce-19": row}}
    text = report.gpu_page(result)
    assert "**Built elsewhere.**" in text
    assert tuple(step.name for step in command.STEPS) == report.STEPS
    assert [line.split(" |")[0][2:].strip() for line in text.splitlines() if "| not run " in line] == [
        name for name in report.STEPS if name != "profile"
    ]
    assert "- 3.0 in 2 launches: `a`\n- 1.0: `b`\n" in text


def test_the_digest_for_the_readme() -> None:
    machine = {"gpu": {"name": "A GPU"}, "cuda": "13.0", "torch": "2.11", "date": "2026-01-01"}
    eager = {"median": 1.2e-3, "peak_bytes": 912 << 20}
    row = fake_row(graph={"ours": 0.16e-3}, faster={"best eager": 6.0})
    row["contenders"]["eager"] = eager
    alone = fake_row(ours=0.1e-3)
    benchmarks = {"rows": {"cam-19": alone, "ce-19": row, "ce-19-channels_last": fake_row()}}
    times = {name: {"total": seconds} for name, seconds in (("a", 100.0), ("d", 80.0), ("e", 81.0))}
    network = {"network": "N", "data": "D", "classes": 19, "seconds": times, "rounds": 2}
    network |= {"net": {"median": -0.19}, "marginal": {"median": 0.0012}}
    steps = {"limits": LIMITS, "benchmarks": benchmarks, "epoch": {"rows": {"n": network}}}
    steps["profile"] = {"rows": {"ce-19": {"ours": {"host": 0.25e-3}}}}
    result = {"machine": machine, "steps": steps}
    assert digest.about(result) == "A GPU, CUDA 13.0, torch 2.11, 2026-01-01"
    lines = digest.digest(result).splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    shown = ["0.20", "0.16", "0.25", "1.20", "6.00x", "93 % of bytes", "304 / 912"]
    assert cells[2] == ["cross_entropy 8×19×512×1024, float32", *shown]
    assert cells[3][1:] == ["0.10", "–", "–", "–", "–", "149 % of bytes", "304 / –"], "ce-19's floor and no baselines"
    assert cells[4] == [""], "only the main rows are listed"
    assert cells[7] == ["N, D, 19 classes", "100 s", "81 s", "-19.0 %", "+0.12 %", "2"]
    assert lines[9:] == [
        "- Equal sizes, of a copy's bandwidth: 93 % in float32.",
        "- The host needs 0.25 ms for cross-entropy, forward and backward.",
        "- 0 of 1 rows take over 25 % longer as calls than in a graph: the host leaves gaps between the kernels.",
    ]
    assert digest.digest({"machine": machine, "steps": {}}) == ""


RESULTS = sorted((ROOT / "bench" / "results").glob("gpu-*.json"))


@pytest.mark.parametrize("file", RESULTS, ids=[file.stem for file in RESULTS])
def test_kept_reports_say_what_was_measured(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    result = json.loads(text)
    assert not result["rehearsal"]
    assert file.with_suffix(".md").read_text(encoding="utf-8") == report.gpu_page(result)
    assert not re.search(r"/(home|root|tmp|opt|work)/", text), "the file contains a path of a machine"


def test_names_of_kernels() -> None:
    name = "void at::native::(anonymous namespace)::nll_loss2d_backward_kernel<float>(float*, float const*)"
    assert profiled.short(name) == "nll_loss2d_backward_kernel<float>"
    name = "void cawa_fast::cuda::planar<c10::BFloat16, true, false>(cawa_fast::cuda::Problem)"
    assert profiled.short(name) == "planar<BFloat16, true, false>"
    assert profiled.short("_label_histogram") == "_label_histogram"


# --------------------------------------------------------------------------------------------------------------- sweep

SOURCE = '''"""A file."""
TABLES: dict[str, list[dict[str, int]]] = {
    "cam_counts": [
        {"ROWS": 16, "num_warps": 1},  # of sixteen
        {"ROWS": 8, "num_warps": 1},
        {"ROWS": 32, "num_warps": 2},
    ],
    "confusion_matrix": [{"ROWS": 16}, {"ROWS": 8}],
}
'''


def test_best_configurations() -> None:
    tables: dict[str, list[dict[str, int]]] = {"a": [{}, {}, {}], "b": [{}, {}], "c": [{}, {}], "d": [{}, {}]}
    times = {
        "a": {"x": [4.0, 2.0, 1.0], "y": [1.0, 1.1, 8.0]},  # products 4 * 1, 2 * 1.1, 1 * 8
        "b": {"x": [1.01, 1.0]},  # a difference that is noise
        "c": {"x": [None, 3.0]},  # the current configuration fails
        "d": {"x": [None, None]},
    }
    assert sweep.best(times, tables) == {"a": [1, 0, 2], "b": [0, 1], "c": [1, 0], "d": [0, 1]}


def test_the_patch_moves_the_best_to_the_front(tmp_path: Path) -> None:
    text = sweep.patch(SOURCE, {"cam_counts": [2, 0, 1], "confusion_matrix": [0, 1]})
    assert sweep.patch(SOURCE, {"cam_counts": [0, 1, 2]}) == ""
    file = tmp_path / "kernels" / "_tiling.py"
    file.parent.mkdir()
    file.write_text(SOURCE)
    subprocess.run(["git", "apply", "-"], input=text, text=True, cwd=tmp_path, check=True)
    found: dict[str, Any] = {}
    exec(file.read_text(), found)
    assert [table["ROWS"] for table in found["TABLES"]["cam_counts"]] == [32, 16, 8]
    assert found["TABLES"]["confusion_matrix"] == [{"ROWS": 16}, {"ROWS": 8}]
    computed = "TABLES = make()\n"
    assert sweep.patch(computed, {"cam_counts": [2, 0, 1]}) == "cam_counts: configuration 2 first"


def test_sweep_times_every_configuration_of_the_rows_kernels(tmp_path: Path) -> None:
    forced_now: list[Any] = []

    @contextlib.contextmanager
    def forced(kernel: str, configuration: dict[str, int]) -> Iterator[None]:
        if configuration["ROWS"] == 32:
            raise RuntimeError("out of registers")
        forced_now.append((kernel, configuration["ROWS"]))
        yield

    tables = {"cam_counts": [{"ROWS": 8}, {"ROWS": 32}], "confusion_matrix": [{"ROWS": 8}, {"ROWS": 4}], "one": [{}]}
    state = State(tmp_path / "state.json", seconds=60, rehearse=True)
    rows = [rehearsed(BY_KEY["confusion-19"]), rehearsed(BY_KEY["cam-19"])]
    sweep.time_configurations(tables, forced, rows, state, timing.Host())
    assert forced_now == [("confusion_matrix", 8), ("confusion_matrix", 4), ("cam_counts", 8)]
    times = state.data["times"]
    assert times["cam_counts"]["cam-19"][0] > 0
    assert times["cam_counts"]["cam-19"][1] is None
    assert "out of registers" in next(iter(state.data["failed"].values()))
    # when time runs out, a note says so and no result is lost
    late = State(tmp_path / "late.json", seconds=0, rehearse=True)
    sweep.time_configurations(tables, forced, rows, late, timing.Host())
    assert "out of time" in late.data["note"]


def test_sweep_knows_which_rows_use_a_kernel() -> None:
    same, resized, cam = BY_KEY["ce-19"], BY_KEY["resize-ce-19-x4"], BY_KEY["cam-19"]
    assert sweep.uses("cross_entropy_same", same)
    assert not sweep.uses("cross_entropy_same", resized)
    assert sweep.uses("cross_entropy_backward", resized)
    assert not sweep.uses("cross_entropy_backward", cam)
    assert sweep.uses("cam_extremes", cam)
    assert sweep.uses("label_histogram", cam)


# --------------------------------------------------------------------------------------------- measurements on the GPU


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> timing.Gpu:
    """The measurements of time, memory and graphs, with stand-ins for the parts of ``torch.cuda`` that need a GPU.

    A stand-in replaces an existing attribute, so that a name that torch does not have is an error.
    """

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None: ...
        def synchronize(self) -> None: ...
        def elapsed_time(self, end: Any) -> float:
            return 6.0

    class Graph:
        replays = 0

        def replay(self) -> None:
            Graph.replays += 1

    stream = SimpleNamespace(wait_stream=lambda other: None)
    properties = SimpleNamespace(L2_cache_size=60 << 20, multi_processor_count=132)
    stand_ins: dict[str, Any] = {
        "current_device": lambda: 0,
        "get_device_properties": lambda device: properties,
        "Event": Event,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 100,
        "max_memory_allocated": lambda: 350,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: None,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": lambda graph: contextlib.nullcontext(),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return timing.Gpu()


def test_gpu_times_by_events_and_counts_memory(gpu: timing.Gpu) -> None:
    calls: list[str] = []
    implementation = Implementation("a", lambda: calls.append("run") or (), lambda: calls.append("reset"))
    assert gpu.clock(implementation, 3) == pytest.approx(0.002)
    assert calls == ["reset", "run"] * 3
    assert gpu.peak(implementation) == 250
    assert timing.copies_of(gpu, 30 << 20) == 4
    assert timing.copies_of(gpu, 300 << 20) == 1


def test_gpu_replays_all_copies(gpu: timing.Gpu) -> None:
    calls: list[str] = []
    implementation = Implementation("a", lambda: calls.append("run") or (), copies=3)
    graph = gpu.replay(implementation)
    assert len(calls) == 1 + 3 + 3  # the check for synchronisation, the warm-up, the capture
    graph.run()
    assert len(calls) == 7
    assert timing.replayed(gpu, implementation, 2) == pytest.approx(0.006 / 2 / 3, rel=1e-3)


def test_gpu_does_not_capture_calls_that_synchronise(gpu: timing.Gpu) -> None:
    def run() -> tuple[torch.Tensor, ...]:
        raise RuntimeError("called a synchronizing CUDA operation\nand more")

    with pytest.raises(timing.UncapturableError, match=r"^RuntimeError: called a synchronizing CUDA operation$"):
        gpu.replay(Implementation("a", run))


@pytest.mark.slow
def test_kernels_of_the_limits_compile_for_a_gpu() -> None:
    """That they run in the interpreter does not show that they compile."""
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bench.gpu import kernels
arithmetic = {"out": "*fp32", "LOOPS": "constexpr", "WIDTH": "constexpr", "UNROLLED": "constexpr"}
labels = {"labels": "*u8", "sums": "*i32", "pixels": "i32", "WIDTH": "constexpr"}
for kernel, signature, constants in (
    (kernels.exponentials, arithmetic, {"LOOPS": 256, "WIDTH": 1024, "UNROLLED": 16}),
    (kernels.multiply_adds, arithmetic, {"LOOPS": 256, "WIDTH": 1024, "UNROLLED": 16}),
    (kernels.add_up, labels, {"WIDTH": 4096}),
    (kernels.nothing, {"out": "*fp32"}, {}),
):
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print(compiled.asm["ptx"].count("ex2.approx.ftz"), compiled.asm["ptx"].count("fma.rn.f32"))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # 1024 values on 128 threads, 16 times
    exponentials, multiply_adds, *_ = done.stdout.splitlines()
    assert exponentials == "128 0"
    assert multiply_adds == "0 128"

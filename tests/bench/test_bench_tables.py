"""The benchmark's tables, files and commands report what was measured."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from bench import baselines, measure, memory, readme
from bench.__main__ import main
from bench.cpu.memory import row_peaks
from bench.cpu.report import COLUMNS, cpu_page
from bench.cpu.rows import ROWS
from bench.files import write_result
from bench.table import markdown_table

ROOT = Path(__file__).parents[2]
BY_KEY = {row.key: row for row in ROWS}


def fake_result() -> dict[str, Any]:
    def row(key: str, baselines: dict[str, float], targets: list[dict[str, Any]], title: str) -> dict[str, Any]:
        medians = {"ours": 0.002, **baselines}
        contenders = {
            name: {"median": value, "seconds": [value], "peak_bytes": 3 * 2**20} for name, value in medians.items()
        }
        return {
            "key": key,
            "title": title,
            "ours": "ours",
            "contenders": contenders,
            "faster": {name: value / 0.002 for name, value in baselines.items()},
            "machine_scaling": {},
            "targets": targets,
            "floor": {"seconds": 0.001, "share": 0.5},
        }

    eager = {"rival": "eager", "within": False, "value": 10.0, "least": 8, "least_met": True, "aim": 20}
    copy = {"rival": "copy", "within": True, "value": 2.5, "least": 2.0, "least_met": False, "aim": None}
    rows = [
        row("a", {"eager": 0.02, "copy": 0.0008}, [eager | {"aim_met": False}, copy | {"aim_met": None}], "a 2×3"),
        row("b", {"one thread": 0.0038, "copy": 0.001}, [], "b, one thread"),
    ]
    machine = measure.machine(2) | {"commit": "abc", "date": "2026-01-01", "cpu": "A CPU", "instruction_set": "avx2"}
    return {
        "benchmark": "cpu",
        "machine": machine,
        "settings": {"rounds": 1, "quick": False},
        "exponentials_per_second": 2e9,
        "meaning": {name: baselines.MEANING[name] for name in ("ours", "eager", "copy", "one thread")},
        "rows": rows,
    }


def test_markdown_table() -> None:
    lines = markdown_table(COLUMNS, fake_result()["rows"]).splitlines()
    assert len({len(line) for line in lines}) == 1, "columns do not line up"
    header, first, second = ([cell.strip() for cell in lines[i].strip("|").split("|")] for i in (0, 2, 3))
    cells = dict(zip(header, first, strict=True))
    assert cells == {
        "operator, shape": "a 2×3",
        "ours, ms": "2.00",
        "eager, ms": "20.0",
        "compile, ms": "–",
        "× eager": "10.0x",
        "× compile": "–",
        "other baselines, ms: ratio": "copy 0.80: 2.50 of it",
        "at least": "≥8x eager ✓, ≤2x copy ✗",
        "aim": "≥20x eager ✗",
        "memory ours / eager, MiB": "3 / 3",
        "floor, ms": "1.00",
        "of the floor": "50 %",
    }
    assert dict(zip(header, second, strict=True))["other baselines, ms: ratio"] == "one thread 3.80: 1.90x"


def test_results_are_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = fake_result()
    write_result(tmp_path / "deep" / "cpu", result, cpu_page(result))
    folder = tmp_path / "deep"
    assert json.loads((folder / "cpu.json").read_text()) == result
    assert "A CPU, 2 of" in (folder / "cpu.md").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["cpu.json", "cpu.md"]

    def no_space(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="no space"):
        write_result(folder / "cpu", {**result, "rows": []}, "")
    assert json.loads((folder / "cpu.json").read_text()) == result
    assert sorted(path.name for path in folder.iterdir()) == ["cpu.json", "cpu.md"]


def test_readme_block_follows_the_result_file(tmp_path: Path) -> None:
    text = "before\n<!-- table: r/cpu.json -->\nold\n<!-- end of table -->\nafter\n"
    unmeasured = readme.updated(text, tmp_path)
    assert readme.UNMEASURED in unmeasured
    write_result(tmp_path / "r" / "cpu", fake_result(), "")
    measured = readme.updated(unmeasured, tmp_path)
    assert measured.startswith("before\n<!-- table: r/cpu.json -->\nA CPU, 2 of")
    assert "| a 2×3 " in measured
    assert "(r/cpu.md)" in measured
    assert measured.endswith("<!-- end of table -->\nafter\n")
    assert readme.updated(measured, tmp_path) == measured


def test_readme_has_the_rows_against_baselines(tmp_path: Path) -> None:
    result = fake_result()
    result["rows"].append({**result["rows"][0], "key": "bfloat16-a", "title": "a, bfloat16 against float32"})
    write_result(tmp_path / "cpu", result, cpu_page(result))
    assert "bfloat16" in (tmp_path / "cpu.md").read_text()
    text = readme.updated("<!-- table: cpu.json -->\n<!-- end of table -->\n", tmp_path)
    assert "| a 2×3 " in text
    assert "bfloat16" not in text


def test_every_kept_result_names_its_command_and_commit() -> None:
    for page in sorted((ROOT / "bench" / "results").glob("*.md")):
        text = page.read_text(encoding="utf-8").split("\n|")[0]
        assert re.search(r"`(python -m bench|cawa-fast ablate) ?", text), page.name
        assert re.search(r"commit [0-9a-f]{7}", text), page.name
    for page in ("cpu", "epoch-cpu"):
        assert (ROOT / "bench" / "results" / f"{page}.json").is_file()


def test_readme_is_in_sync_with_the_results() -> None:
    for page, names in (("README.md", ("cpu", "gpu-h100")), ("docs/frameworks.md", ("stacks",))):
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in names:
            assert f"<!-- table: bench/results/{name}.json -->" in text
        assert readme.updated(text, page=page) == text, "run `python -m bench readme`"
    result = ROOT / "bench" / "results" / "cpu.json"
    assert not result.exists() or not json.loads(result.read_text())["settings"]["quick"]


# ------------------------------------------------------------------------------------------------------- the commands


def test_cpu_command(tmp_path: Path) -> None:
    arguments = ["cpu", "--quick", "--no-compile", "--no-memory", "--rounds", "2", "--threads", "1"]
    done = CliRunner().invoke(main, [*arguments, "--rows", "cam-19,resize-ce-19-x8", "--out", str(tmp_path / "trial")])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "trial.json").read_text())
    assert [row["key"] for row in result["rows"]] == ["resize-ce-19-x8", "cam-19"]
    for row in result["rows"]:
        assert all(len(entry["seconds"]) == 2 for entry in row["contenders"].values())
        assert "compile" not in row["contenders"]
    assert "no measurement" in CliRunner().invoke(main, ["cpu", "--help"]).output
    assert "Not a measurement" in (tmp_path / "trial.md").read_text()


@pytest.mark.skipif(not memory.available(), reason="the system has no resettable peak of memory")
def test_memory_of_a_row() -> None:
    peaks = row_peaks("ce-150", ["ours", "eager"], quick=True, threads=1)
    gradient = 2 * 150 * 64 * 64 * 4
    assert peaks["ours"] > 0.8 * gradient
    assert peaks["eager"] > 0.8 * gradient


def test_pytest_runs_the_benchmarks() -> None:
    """``pytest bench/`` measures. With benchmarks skipped or disabled it would print no table."""
    command = [sys.executable, "-m", "pytest", "bench", "--quick", "--rounds=1", "--bench-threads=1"]
    command += ["-q", "-p", "no:cacheprovider", "-k", "cam-19-eager or cam-19-ours"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"benchmark 'cam_counts {BY_KEY['cam-19'].shrunk().title.split(' ', 1)[1]}'" in done.stdout

"""``python -m bench stacks``: a row is measured, left out where its framework is missing, and shown in the docs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("transformers")

from bench import readme
from bench.stacks import command, rows


def absent(*arguments: Any) -> Any:
    raise ModuleNotFoundError("No module named 'monai'")


@pytest.mark.slow  # imports transformers, and trains a SegFormer-B0
def test_rows_are_measured_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_key = {row.key: row for row in rows.ROWS}
    assert by_key["plain"].lines() == 5  # as with_lightning.py marks them
    known = (by_key["plain"], dataclasses.replace(by_key["monai"], build=absent))
    monkeypatch.setattr(command, "ROWS", known)
    options = ["--quick", "--rounds", "1", "--threads", "1", "--no-memory", "--out", str(tmp_path / "r" / "stacks")]
    done = CliRunner().invoke(command.stacks, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "monai: left out: No module named 'monai'" in done.output
    result = json.loads((tmp_path / "r" / "stacks.json").read_text())
    (row,) = result["rows"]
    assert row["difference"] < 1e-6
    assert row["faster"] == pytest.approx(row["contenders"]["own"]["median"] / row["contenders"]["ours"]["median"])
    page = (tmp_path / "r" / "stacks.md").read_text()
    assert "A trial with `--quick`" in page
    assert "- monai: not measured" in page
    text = readme.updated("<!-- table: r/stacks.json -->\n<!-- end of table -->\n", tmp_path, "docs/frameworks.md")
    assert "([settings](../r/stacks.md))" in text
    assert "| Lightning, accelerate | SegFormer-B0, 2×64×64, C=150 | `F.interpolate" not in text
    assert "| Lightning, accelerate | SegFormer-B0, 2×64×64, C=150 | F.interpolate, F.cross_entropy |" in text


def test_every_row_names_an_example_that_is_there() -> None:
    assert all(row.lines() >= 2 for row in rows.ROWS)
    assert len({row.key for row in rows.ROWS}) == len(rows.ROWS)

"""``python -m bench decisions`` on a tiny run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench.__main__ import main
from bench.decisions import Decisions
from tests.support.tiny_runs import TINY, run


def test_decisions_of_a_run(tmp_path: Path) -> None:
    config = replace(TINY, weighting="power", test_split="test", lr=0.2)
    final = run(tmp_path / "street" / "power", config)[-1]
    out = tmp_path / "page"
    result = CliRunner().invoke(main, ["decisions", str(tmp_path / "street" / "power"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    table = json.loads(out.with_suffix(".json").read_text())
    found = table["as trained: v = w"]["street"]
    assert found["test"][0] == pytest.approx(final["test"]["miou"], abs=2e-3)
    assert found["val"][0] == pytest.approx(final["miou"], abs=2e-3)
    assert f"| as trained: v = w | {100 * found['test'][0]:.1f} /" in out.with_suffix(".md").read_text()
    made = Decisions(tmp_path / "street" / "power")
    rows = made.rows()
    assert next(rows)[1].tolist() == [0] * 10
    name, offset = next(rows)
    assert name == "v = 1"
    torch.testing.assert_close(offset, -torch.tensor(final["weight"]).double().log())
    seen = made.confusion("val", torch.zeros(10)).sum(1) > 0
    pull = torch.arange(10.0).double() * seen
    settled = made.settled(offset, lambda truth, predicted, iou: torch.arange(10.0).double())
    torch.testing.assert_close(settled, offset + (1 - 0.8**25) * (pull - pull.mean()))


def test_runs_that_it_cannot_compare(tmp_path: Path) -> None:
    run(tmp_path / "plain", replace(TINY, weighting="power", epochs=1))
    result = CliRunner().invoke(main, ["decisions", str(tmp_path / "plain"), "--out", str(tmp_path / "page")])
    assert result.exit_code == 2
    assert "give runs with static weights, trained with --test-split" in " ".join(result.output.split())

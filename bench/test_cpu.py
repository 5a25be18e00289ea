"""The rows of ``python -m bench cpu`` for pytest-benchmark: ``pytest bench/``, ``pytest bench/ -k cam --quick``.

One benchmark per row and contender, in one table per row. Contenders run one after the other here; the numbers that are
published come from ``python -m bench cpu``, where they take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from .baselines import MEANING
from .cpu.rows import ROWS, Row, contender

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch.compile's own, which no user of this library causes

_CASES = [(row, name) for row in ROWS for name in row.names if name != "copy" or "copy" in row.rivals]
_IDS = [f"{row.key}-{name.replace(', ', '-').replace(' ', '-')}" for row, name in _CASES]


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--bench-threads"))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("row", "name"), _CASES, ids=_IDS)
def test_cpu(row: Row, name: str, benchmark: Any, request: pytest.FixtureRequest) -> None:
    if name == "compile" and request.config.getoption("--no-compile"):
        pytest.skip("--no-compile")
    sized = row.shrunk() if request.config.getoption("--quick") else row
    try:
        competitor = contender(sized, name)
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed")
    if competitor.threads:
        torch.set_num_threads(competitor.threads)
    benchmark.group = sized.title
    benchmark.extra_info["contender"] = MEANING[name]
    rounds = request.config.getoption("--rounds")
    benchmark.pedantic(competitor.run, setup=competitor.reset, rounds=rounds, warmup_rounds=1)

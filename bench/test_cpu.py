"""The rows of ``python -m bench cpu`` for pytest-benchmark: ``pytest bench/ -k cam --quick``.

Each implementation is a benchmark, grouped by row. Unlike in ``python -m bench cpu``, which makes the published
numbers, implementations run one after the other.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .baselines import MEANING
from .cpu.rows import ROWS, implementation_of
from .rows import Row

pytest.importorskip("pytest_benchmark")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch.compile's own warnings

_CASES = [
    pytest.param(row, name, id=f"{row.key}-{name.replace(', ', '-').replace(' ', '-')}")
    for row in ROWS
    for name in row.names
    if name != "copy" or "copy" in row.baselines
]


@pytest.mark.parametrize(("row", "name"), _CASES)
def test_cpu(row: Row, name: str, benchmark: Any, pytestconfig: pytest.Config) -> None:
    if name == "compile" and pytestconfig.getoption("--no-compile"):
        pytest.skip("--no-compile")
    sized = row.shrunk() if pytestconfig.getoption("--quick") else row
    try:
        implementation = implementation_of(sized, name)
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed")
    benchmark.group, benchmark.extra_info["contender"] = sized.title, MEANING[name]
    before = torch.get_num_threads()
    torch.set_num_threads(implementation.threads or pytestconfig.getoption("--bench-threads"))
    rounds = pytestconfig.getoption("--rounds")
    benchmark.pedantic(implementation.run, setup=implementation.reset, rounds=rounds, warmup_rounds=1)
    torch.set_num_threads(before)

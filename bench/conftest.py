"""Options of ``pytest bench/``."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--quick", action="store_true", help="tiny inputs: a trial, no measurement")
    group.addoption("--rounds", type=int, default=5, help="calls of each implementation (default: 5)")
    group.addoption("--bench-threads", type=int, default=2, help="CPU threads (default: 2)")
    group.addoption("--no-compile", action="store_true", help="leave torch.compile out")

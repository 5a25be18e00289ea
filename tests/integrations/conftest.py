"""The frameworks take ten seconds to import: the fast tests do without."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("tier") == "fast" else None

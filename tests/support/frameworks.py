"""Tests of integrations are skipped where their framework is not installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def folder(name: str) -> Path:
    """Where ``make setup`` installs frameworks that must not lie in everybody's way."""
    return Path(sys.prefix) / name


def needs(extra: str, *packages: str) -> None:
    """Skip the test module unless the packages are there."""
    if folder(extra).is_dir() and str(folder(extra)) not in sys.path:
        sys.path.append(str(folder(extra)))
    if any(importlib.util.find_spec(package) is None for package in packages):
        pytest.skip(f'needs {", ".join(packages)}: pip install "cawa_fast[{extra}]"', allow_module_level=True)

"""Tests of integrations are skipped where their framework is not installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from bench.libraries import look_in_folder


def folder(name: str) -> Path:
    """Where ``make setup`` installs frameworks that must not lie in everybody's way."""
    return Path(sys.prefix) / name


def is_there(extra: str, *packages: str) -> bool:
    """Whether the packages can be imported, also from the folder of the extra."""
    look_in_folder(extra)
    return all(importlib.util.find_spec(package) is not None for package in packages)


def needs(extra: str, *packages: str) -> None:
    """Skip the test module unless the packages are there."""
    if not is_there(extra, *packages):
        pytest.skip(f'needs {", ".join(packages)}: pip install "cawa_fast[{extra}]"', allow_module_level=True)

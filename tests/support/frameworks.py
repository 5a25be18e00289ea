"""Tests of integrations are skipped where their framework is not installed."""

from __future__ import annotations

import importlib.util

import pytest


def needs(extra: str, *packages: str) -> None:
    """Skip the test module unless the packages are there."""
    if any(importlib.util.find_spec(package) is None for package in packages):
        pytest.skip(f'needs {", ".join(packages)}: pip install "cawa_fast[{extra}]"', allow_module_level=True)

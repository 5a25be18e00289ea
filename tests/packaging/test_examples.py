"""Every example runs without changes and is short."""

from __future__ import annotations

import importlib.util
import runpy
import warnings
from pathlib import Path

import pytest

from bench.libraries import import_torchvision

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
PACKAGES = {"with_trainer": "accelerate", "with_lightning": "lightning", "with_accelerate": "accelerate"}
EXTRAS = {"with_trainer": "transformers", "with_lightning": "lightning", "with_accelerate": "accelerate"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_runs_and_is_short(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(path.read_text().splitlines()) < 60
    package = PACKAGES.get(path.stem)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f'needs {package}: pip install "cawa_fast[{EXTRAS[path.stem]}]"')
    with warnings.catch_warnings():
        if package is not None:
            import_torchvision()  # which does not fit every torch
            warnings.simplefilter("ignore")  # of the framework
        runpy.run_path(str(path), run_name="__main__")
    assert "loss" in capsys.readouterr().out

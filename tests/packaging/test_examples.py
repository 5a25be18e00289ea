"""Every example runs without changes and is short."""

from __future__ import annotations

import contextlib
import os
import runpy
import warnings
from pathlib import Path

import pytest

from bench.libraries import import_mmseg, import_torchvision
from tests.support.frameworks import is_there

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
NEEDS = {
    "with_trainer": ("transformers", "accelerate"),
    "with_lightning": ("lightning", "lightning"),
    "with_accelerate": ("accelerate", "accelerate"),
    "with_mmseg": ("mmseg", "mmseg"),
    "with_ultralytics": ("ultralytics", "ultralytics"),
    "with_smp": ("models", "segmentation_models_pytorch"),
    "with_timm": ("models", "timm"),
    "with_torchvision": ("models", "torchvision"),
    "with_monai": ("monai", "monai"),
    "with_peft": ("peft", "peft"),
}
"""The extra and the package of each example that needs one."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_runs_and_is_short(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(path.read_text().splitlines()) < 60
    extra, package = NEEDS.get(path.stem, (None, None))
    if extra is not None and not is_there(extra, package):
        pytest.skip(f'needs {package}: pip install "cawa_fast[{extra}]"')
    monkeypatch.chdir(tmp_path)
    if "YOLO_CONFIG_DIR" not in os.environ:
        monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    with warnings.catch_warnings():
        if extra is not None:
            with contextlib.suppress(ImportError):
                import_torchvision()  # which does not fit every torch
            warnings.simplefilter("ignore")  # of the framework
        if extra == "mmseg":
            import_mmseg()
        runpy.run_path(str(path), run_name="__main__")
    assert "loss" in capsys.readouterr().out

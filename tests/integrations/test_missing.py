"""A framework that is not installed is named with the command that installs it."""

from __future__ import annotations

import importlib
import sys

import pytest

pytestmark = pytest.mark.slow  # with the tests beside it


@pytest.mark.parametrize(
    ("extra", "missing"),
    [
        ("transformers", ["transformers"]),
        ("transformers", ["accelerate"]),
        ("lightning", ["lightning", "lightning.pytorch", "pytorch_lightning"]),
        ("accelerate", ["accelerate"]),
        ("mmseg", ["mmengine", "mmengine.dist", "mmseg"]),
        ("ultralytics", ["ultralytics", "ultralytics.models.yolo.semantic"]),
    ],
)
def test_the_command_is_named(extra: str, missing: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(f"cawa_fast.integrations.{extra}")]:
        monkeypatch.delitem(sys.modules, name)
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf'; install it: pip install "cawa_fast\[{extra}\]"$') as error:
        importlib.import_module(f"cawa_fast.integrations.{extra}")
    assert str(error.value).startswith(f"cawa_fast.integrations.{extra}: ")

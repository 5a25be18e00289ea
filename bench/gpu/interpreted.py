"""For rehearsals: operators on CPU tensors run the GPU kernels in Triton's interpreter, as in the tests."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator

from ..files import ROOT


@contextlib.contextmanager
def kernels_on_the_cpu() -> Iterator[None]:
    """Within it they do; ``TRITON_INTERPRET=1`` must have been in the environment before Triton was imported."""
    import pytest

    sys.path.append(str(ROOT / "tests"))
    interpreter = importlib.import_module("interpreter")
    with pytest.MonkeyPatch.context() as monkeypatch, interpreter.kernels_on_the_cpu(monkeypatch):
        yield

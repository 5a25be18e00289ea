"""For rehearsals: operators on CPU tensors run the GPU kernels in Triton's interpreter, as in the tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def kernels_on_the_cpu() -> Iterator[None]:
    """Within it they do; ``TRITON_INTERPRET=1`` must have been in the environment before Triton was imported."""
    import pytest

    from tests.support import interpreter

    with pytest.MonkeyPatch.context() as monkeypatch, interpreter.kernels_on_the_cpu(monkeypatch):
        yield

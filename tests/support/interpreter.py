"""Triton's kernels on a CPU: the interpreter, changed to round as a GPU does, with tiles smaller than the inputs."""

from __future__ import annotations

import contextlib
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import triton.language as tl
import triton.runtime.interpreter as interpreter

from cawa_fast._ops import backends, native
from cawa_fast.kernels import _tiling

SMALL = {
    "label_histogram": {"BLOCK": 1024, "DISTINCT": 3, "num_warps": 1},
    "confusion_matrix": {"ROWS": 16, "COLUMNS": 64, "DISTINCT": 2, "num_warps": 1},
    "cam_counts": {"ROWS": 16, "COLUMNS": 64, "num_warps": 1},
    "cam_extremes": {"ROWS": 16, "COLUMNS": 64, "TILES": 4, "num_warps": 1},
    "cross_entropy": {"ITEMS": 256, "CLASSES": 8, "PHASES": 4, "num_warps": 4},
    "cross_entropy_backward": {"CLASSES": 8, "PHASES": 4, "ROWS": 8, "num_warps": 1},
    "cross_entropy_same": {"ITEMS": 256, "CLASSES": 4, "num_warps": 4},
}


def _fused_multiply_add(self: Any, x: Any, y: Any, z: Any) -> Any:
    """Round once, as a GPU does; the interpreter's own version rounds twice."""
    with np.errstate(all="ignore"):
        value = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
        return interpreter.TensorHandle(value.astype(x.data.dtype), x.dtype.scalar)


_cast = interpreter.InterpreterBuilder.cast_impl


def _cast_to_nearest(self: Any, source: Any, to: Any) -> Any:
    """Round float32 to bfloat16 to nearest even, as a GPU does; the interpreter truncates."""
    types_ = source.dtype.scalar, to.scalar
    if types_ == (tl.float32, tl.bfloat16):
        bits = source.data.view(np.uint32)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        nearest = np.where(np.isnan(source.data), np.uint16(0x7FC0), nearest)
        return interpreter.TensorHandle(nearest, tl.bfloat16)
    if types_ == (tl.bfloat16, tl.float32):
        return interpreter.TensorHandle((source.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
    return _cast(self, source, to)


class _NothingToRestore:
    def restore(self) -> None:
        pass


@contextlib.contextmanager
def _patched_language(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Patch Triton's language once.

    By itself the interpreter does so at each call of a @triton.jit function, which takes nine tenths of its time.
    """
    scope = interpreter._patch_lang(types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    monkeypatch.setattr(interpreter, "_patch_lang", lambda function: _NothingToRestore())
    yield
    if scope is not None:
        scope.restore()


@contextlib.contextmanager
def kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside this context, operators on CPU tensors run the Triton kernels."""
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", _fused_multiply_add)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", _cast_to_nearest)
    monkeypatch.setattr(backends, "runs_triton", lambda device: True)
    # where the CUDA C++ kernels are built and torch has CUDA, they would be preferred, and they need CUDA tensors
    monkeypatch.setattr(native, "cuda_available", lambda: False)
    with contextlib.ExitStack() as stack, np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)  # the maximum of such a slice is NaN
        stack.enter_context(_patched_language(monkeypatch))
        # Triton 3.6 converts an array of one element to an integer, which NumPy 2.4 rejects
        monkeypatch.setattr(tl.core.tensor, "__index__", lambda self: int(self.handle.data.reshape(())), raising=False)
        for kernel, configuration in SMALL.items():
            stack.enter_context(_tiling.forced(kernel, configuration))
        yield

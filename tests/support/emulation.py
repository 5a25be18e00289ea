"""The source of the CUDA kernels compiled for the CPU (tests/native/cuda_emulation.h).

``load`` builds this emulation, for which CMake and a compiler are needed. ``use`` makes the public functions run it for
inputs that the CUDA kernels support; other inputs still go to the CPU operators.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cawa_fast import _label_check, reference
from cawa_fast._ops import backends, native

NAME = "cuda emulation"
TESTS = {"test_cross_entropy.py", "test_offset.py", "test_focal.py", "test_confusion_matrix.py", "test_cam_counts.py"}
"""The test files that run on it."""
ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "cuda_emulation"
_PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])


def why_not() -> str | None:
    """Why the emulation is not available, or None if it is."""
    missing = [name for name in ("cmake", "ninja") if shutil.which(name, path=_PATH) is None]
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "c++", "g++", "clang++")):
        missing.append("a C++ compiler")
    if not native.available():
        missing.append("the compiled extension")
    return f"the emulation of the CUDA kernels needs {' and '.join(missing)}" if missing else None


@functools.cache
def load() -> ctypes.CDLL:
    """Build the emulation if a source has changed, and register ``torch.ops.cawa_fast_cuda_emulation``."""
    options = [f"-DPython_EXECUTABLE={sys.executable}", "-DCAWA_FAST_CUDA=OFF", "-DCAWA_FAST_CUDA_EMULATION=ON"]
    commands = [
        ["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", "-DCAWA_FAST_WERROR=ON", *options],
        ["cmake", "--build", BUILD, "--target", "cuda_emulation"],
    ]
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:  # tests may run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in commands:
            run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": _PATH})
            assert run.returncode == 0, run.stdout + run.stderr
    library = BUILD / "cuda_emulation.so"
    torch.ops.load_library(str(library))
    handle = ctypes.CDLL(str(library))
    handle.cawa_fast_emulated_launches.restype = ctypes.c_char_p
    handle.cawa_fast_emulated_seed.argtypes = [ctypes.c_uint64]
    return handle


def launches() -> list[str]:
    """The names of the kernels that were launched since the last call."""
    return load().cawa_fast_emulated_launches().decode().split(";")[:-1]


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, replace the CPU operators by the emulation for inputs that the CUDA kernels support."""
    load()
    _use_for_cross_entropy(monkeypatch)
    _use_for_counts(monkeypatch)


def _use_for_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.ops.cawa_fast_cpu, torch.ops.cawa_fast_cuda_emulation
    forward, backward = cpu.cross_entropy, cpu.cross_entropy_backward

    def same_size(input: Tensor, target: Tensor) -> bool:
        return input.shape[2:] == target.shape[1:]

    def cross_entropy(input: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        *options, align_corners, with_grad = others
        if same_size(input, target):
            return cuda.cross_entropy(input, target, *options, with_grad)
        if not backends.resized_side(input, target, align_corners):
            return forward(input, target, *others)
        loss, _ = cuda.resized_cross_entropy(input, target, *options, align_corners, False)
        if not with_grad:
            return loss, input.new_empty(0)
        weight, offset, scale, ignore_index, _, label_smoothing, gamma = options
        arguments = (input, target, weight, offset, scale, ignore_index, label_smoothing, gamma, align_corners)
        return loss, cross_entropy_backward(torch.ones(()), *arguments)

    def cross_entropy_backward(grad: Tensor, input: Tensor, target: Tensor, *others: Any) -> Tensor:
        weight, offset, scale, ignore_index, label_smoothing, gamma, align_corners = others
        if same_size(input, target):
            return cuda.cross_entropy_backward(grad, input, target, *others[:-1])
        if not backends.resized_side(input, target, align_corners):
            return backward(grad, input, target, *others)
        _, statistics = cuda.resized_cross_entropy(
            input, target, weight, offset, scale, ignore_index, False, label_smoothing, gamma, align_corners, True
        )
        return cuda.resized_cross_entropy_backward(grad, input, target, *others[:3], statistics, *others[3:])

    monkeypatch.setattr(cpu, "cross_entropy", cross_entropy)
    monkeypatch.setattr(cpu, "cross_entropy_backward", cross_entropy_backward)


def _use_for_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.ops.cawa_fast_cpu, torch.ops.cawa_fast_cuda_emulation
    confusion_matrix_on_cpu, cam_counts_on_cpu = cpu.confusion_matrix, cpu.cam_counts

    def confusion_matrix(input: Tensor, target: Tensor, ignore_index: int, align_corners: bool) -> Tensor:
        if not backends.counts_by_cells(input, target, align_corners):
            return confusion_matrix_on_cpu(input, target, ignore_index, align_corners)
        report = _label_check.open_report("target", target.device, input.shape[1], ignore_index)
        counts = cuda.confusion_matrix(input, target, ignore_index, align_corners, report)
        _label_check.close_report("target", report, input.shape[1], ignore_index)
        return counts

    def cam_counts(
        cam: Tensor,
        target: Tensor,
        truth: Tensor,
        tau: float,
        normalize: int,
        every: bool,
        ignore_index: int,
        align_corners: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        how = reference.NORMALIZATIONS[normalize]
        if not (how in backends.CUDA_NORMALIZATIONS and backends.counts_by_cells(cam, target, align_corners)):
            return cam_counts_on_cpu(cam, target, truth, tau, normalize, every, ignore_index, align_corners)
        return cuda.cam_counts(cam, target, truth, tau, how == "max", every, ignore_index, align_corners)

    monkeypatch.setattr(cpu, "confusion_matrix", confusion_matrix)
    monkeypatch.setattr(cpu, "cam_counts", cam_counts)

"""Fixtures of the whole suite.

CAWA_FAST_TEST_DEVICE=cuda in the environment runs the tests of the operators on a GPU: its kernels, and plain PyTorch
there. Otherwise the Triton kernels run in Triton's interpreter.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import zlib
from collections.abc import Iterator

DEVICE = os.environ.get("CAWA_FAST_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before any import

import pytest
import torch

import cawa_fast as cf
import emulation
import interpreter
from bench.peers import import_torchvision
from cawa_fast import _native, _ops


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """The same random numbers in every test whatever runs before it, and no label report left over."""
    torch.manual_seed(0)
    previous = cf.set_label_check("auto")
    yield
    cf.set_label_check(previous)
    with contextlib.suppress(ValueError):  # a test's own, which it did not read
        cf.check_labels()


INTERPRETED = int(os.environ.get("CAWA_FAST_TEST_INTERPRETED", "20"))  # one test in so many
EMULATION = [] if emulation.why_not() else [emulation.NAME]
BACKENDS = ["reference", "triton", *([*_native.instruction_sets(), *EMULATION] if DEVICE == "cpu" else ["cuda"])]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs a test with plain PyTorch, with the compiled operators of each instruction set, and with Triton kernels."""
    with contextlib.ExitStack() as stack:
        if DEVICE != "cpu":
            stack.enter_context(torch.device(DEVICE))
            for name, value in vars(request.module).items():
                if isinstance(value, torch.Tensor):  # made before this
                    monkeypatch.setattr(request.module, name, value.to(DEVICE))
            if request.param != "cuda":  # CUDA C++, and Triton for what that does not have
                monkeypatch.setattr(_native, "cuda_available", lambda: False)
        if request.param == "reference":
            monkeypatch.setattr(_native, "available", lambda: False)
            monkeypatch.setattr(_ops, "_runs_triton", lambda device: False)
        elif request.param == "triton":
            if DEVICE == "cpu":
                if zlib.crc32(request.node.nodeid.encode()) % INTERPRETED != 0:
                    pytest.skip("the interpreter is slow: it runs one of several combinations")
                stack.enter_context(interpreter.kernels_on_the_cpu(monkeypatch))
        elif request.param == emulation.NAME:
            if request.path.name != "test_cross_entropy.py":
                pytest.skip("only this loss is CUDA C++")
            emulation.use(monkeypatch)
        elif request.param != "cuda":
            _native.use_instruction_set(request.param)
            stack.callback(_native.use_instruction_set, _native.instruction_sets()[-1])
        yield request.param


@pytest.fixture(scope="session")
def peers() -> None:
    """Makes the libraries importable that results are compared with: pytorch-grad-cam, torch-cam, torchmetrics.

    All of them import torchvision.
    """
    import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's deprecations, while they are imported
        import pytorch_grad_cam  # noqa: F401
        import torchcam.methods  # noqa: F401
        import torchmetrics  # noqa: F401

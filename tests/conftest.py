"""Fixtures of the whole suite."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import pytest
import torch

import cawa_fast as cf
from bench.peers import import_torchvision
from cawa_fast import _native


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """The same random numbers in every test whatever runs before it, and no label report left over."""
    torch.manual_seed(0)
    previous = cf.set_label_check("auto")
    yield
    cf.set_label_check(previous)
    with contextlib.suppress(ValueError):  # a test's own, which it did not read
        cf.check_labels()


@pytest.fixture(params=["reference", *_native.instruction_sets()])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs a test with plain PyTorch, and with the compiled operators of each instruction set that is here."""
    if request.param == "reference":
        monkeypatch.setattr(_native, "available", lambda: False)
        yield request.param
        return
    best = _native.instruction_sets()[-1]
    _native.use_instruction_set(request.param)
    yield request.param
    _native.use_instruction_set(best)


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

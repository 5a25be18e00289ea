"""No operator synchronises with the device: tests on the pretend device, where reading a value raises.

test_pretend.py runs this file in a process of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast import reference
from cawa_fast._classifier import Candidate, outputs_of
from cawa_fast._closed_form import closed_form
from cawa_fast._output_check import Comparison, LayerRun
from tests.conftest import DEVICE
from tests.support.cases import noise

if DEVICE != "pretend":
    pytest.skip("only with CAWA_FAST_TEST_DEVICE=pretend", allow_module_level=True)

from tests.support import interpreter, pretend

C = 5
SIZES = {"same": ((4, 6), (4, 6)), "resized": ((3, 4), (9, 11)), "nothing": ((3, 4), (0, 0))}


@pytest.fixture(params=["triton", "reference"])
def _device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(pretend.device())
        if request.param == "triton":
            stack.enter_context(interpreter.kernels_on_the_cpu(monkeypatch))
            pretend.use_kernels(monkeypatch)
        yield
        with contextlib.suppress(ValueError):
            cf.check_labels()


pytestmark = pytest.mark.usefixtures("_device")


def twice(call):
    """Call twice: the first call creates the label report, and the second must not synchronise."""
    call()
    with pretend.no_waiting():
        return call()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reduction", reference.REDUCTIONS)
def test_cross_entropy(reduction, size):
    case = noise(C, 2, *SIZES[size])
    x, weight, target = case.logits.requires_grad_(), torch.rand(C), case.target.to(torch.uint8)

    def call():
        loss = CF.cross_entropy(x, target, weight, ignore_index=255, reduction=reduction, label_smoothing=0.1)
        return loss, *torch.autograd.grad(loss, x, torch.ones_like(loss))

    loss, gradient = twice(call)
    assert loss.device == gradient.device == pretend.DEVICE


@pytest.mark.parametrize("size", SIZES)
def test_focal_loss_with_offsets(size):
    case, offset = noise(C, 2, *SIZES[size]), torch.randn(C)
    x = case.logits.requires_grad_()

    def call():
        loss = CF.focal_loss(x, case.target, offset=offset, ignore_index=255)
        return loss, *torch.autograd.grad(loss, x)

    loss, gradient = twice(call)
    assert loss.device == gradient.device == pretend.DEVICE


@pytest.mark.parametrize("size", SIZES)
def test_confusion_matrix(size):
    case = noise(C, 2, *SIZES[size])
    counts = twice(lambda: CF.confusion_matrix(case.logits, case.target, ignore_index=255))
    labels = case.target.where(case.target != 255, 0)
    same = twice(lambda: CF.confusion_matrix(labels, case.target, num_classes=C, ignore_index=255))
    assert counts.sum().item() == same.sum().item() == (case.target != 255).sum().item()


def test_metrics():
    case = noise(C, 2, *SIZES["resized"])
    metrics = cf.SegmentationMetrics(C, ignore_index=255)  # the counts move to the device
    twice(lambda: metrics.update(case.logits, case.target))
    assert metrics.local.device == pretend.DEVICE
    assert metrics.compute().confusion.sum().item() == 2 * (case.target != 255).sum().item()


def test_maps_of_a_3x3_head():
    head = torch.nn.Conv2d(3, C, 3, padding=1)
    features = torch.rand(2, 3, 4, 6)
    maps = twice(lambda: closed_form(head, features, head(features), resized_to=(9, 11), align_corners=True))
    assert maps.device == pretend.DEVICE


@pytest.mark.parametrize("size", ["same", "resized"])
@pytest.mark.parametrize("normalize", reference.NORMALIZATIONS)
def test_cam_counts(normalize, size):
    case = noise(C, 2, *SIZES[size])
    twice(lambda: CF.cam_counts(case.logits, case.target, ignore_index=255, normalize=normalize))


@pytest.mark.parametrize("source", ["cam", "argmax"])
def test_observe(source):
    case = noise(C, 2, *SIZES["resized"])
    weights = cf.AdaptiveClassWeights(C, source=source, ignore_index=255)
    twice(lambda: weights.observe(case.logits, case.target))


def test_comparing_a_layer_with_the_output():
    case = noise(C, 2, *SIZES["resized"])
    output = torch.rand(2, C, *SIZES["resized"][1])
    candidate = Candidate("head", torch.nn.Identity(), torch.nn.Conv2d(1, C, 1))
    call = LayerRun(0, case.logits, case.logits, True, True, None)
    options = {"explicit": False, "align_corners": None}
    comparison = twice(lambda: Comparison("CAWA", [candidate], [(call,)], outputs_of({"out": output}), C, **options))
    with pytest.raises(ValueError, match=r"head: .*% off"):
        comparison.decide()


def test_labels_that_are_bad():
    case = noise(C, 2, *SIZES["resized"])
    case.target[0, 0, 0] = 9
    twice(lambda: CF.cross_entropy(case.logits, case.target, ignore_index=255))
    with pytest.raises(ValueError, match="2 pixels have the value 9"):
        cf.check_labels()


def test_synchronisation_is_detected():
    x = torch.rand(3)
    for waits in (x.sum().item, x.cpu, x.tolist, lambda: x[x > 0], lambda: bool(x[0] > 0), lambda: torch.tensor([1.0])):
        with pytest.raises(pretend.Waited), pretend.no_waiting():
            waits()
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.rand(3, device="cpu")

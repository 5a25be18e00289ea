"""Tests that need a GPU: CUDA graphs, streams, synchronisation, memory, more than 2^31 elements, bad labels."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast import _label_check, reference
from cawa_fast._ops import native
from tests.support.cases import Case, smooth

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = {"same": ((48, 80), (48, 80)), "resized": ((12, 20), (48, 80))}


def problem(size: str, classes: int = 19) -> Case:
    case = smooth(classes, 2, *SIZES[size])
    return Case(case.logits.cuda(), case.target.to(torch.uint8).cuda())


def loss_and_gradient(case: Case) -> tuple[Tensor, Tensor]:
    leaf = case.logits.detach().requires_grad_()
    loss = CF.cross_entropy(leaf, case.target, ignore_index=255)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def focal_loss_and_gradient(case: Case, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    offset = torch.linspace(-3, 2, 19, device="cuda") if offset is None else offset
    leaf = case.logits.detach().requires_grad_()
    loss = CF.focal_loss(leaf, case.target, offset=offset, ignore_index=255)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def counts(case: Case) -> tuple[Tensor, ...]:
    matrix = CF.confusion_matrix(case.logits, case.target, ignore_index=255)
    return matrix, *CF.cam_counts(case.logits, case.target, ignore_index=255)


@pytest.fixture(params=["CUDA C++", "Triton"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Triton":
        monkeypatch.setattr(native, "cuda_available", lambda: False)
    elif not native.cuda_available():
        pytest.skip(str(native.why_no_cuda()))


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raise where the host synchronises with the device."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning per process: not all synchronisation is detected
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("call", [loss_and_gradient, focal_loss_and_gradient, counts])
@pytest.mark.parametrize("size", SIZES)
def test_operators_do_not_synchronise(size: str, call: Callable[[Case], tuple[Tensor, ...]]) -> None:
    case = problem(size)
    call(case)  # compiles
    with no_waiting():
        call(case)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("call", [loss_and_gradient, focal_loss_and_gradient, counts])
@pytest.mark.parametrize("size", SIZES)
def test_a_graph_computes_what_the_call_does(size: str, call: Callable[[Case], tuple[Tensor, ...]]) -> None:
    case = problem(size)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call(case)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(case)
    other = problem(size)
    case.logits.copy_(-other.logits)  # new values in the same memory
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    for actual, expected in zip(captured, call(case), strict=True):
        assert actual.equal(expected)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", SIZES)
def test_a_graph_reads_the_offsets_at_every_replay(size: str) -> None:
    case, offset = problem(size), torch.zeros(19, device="cuda")
    focal_loss_and_gradient(case, offset)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = focal_loss_and_gradient(case, offset)
    offset.copy_(torch.linspace(-3, 2, 19))
    graph.replay()
    torch.cuda.synchronize()
    for actual, expected in zip(captured, focal_loss_and_gradient(case), strict=True):
        assert actual.equal(expected)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("gamma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("size", SIZES)
def test_focal_gradient_of_pixels_that_are_almost_certain(size: str, gamma: float) -> None:
    """There the device's fast exponential may round p to 1, at which (1 - p)^(gamma - 1) is infinite."""
    low, high = SIZES[size]
    logits = torch.zeros(1, 2, *low, device="cuda")
    logits[0, 0] = torch.linspace(2, 25, low[0] * low[1], device="cuda").view(low)
    target = torch.zeros(1, *high, dtype=torch.uint8, device="cuda")
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        (gradient,) = torch.autograd.grad(CF.focal_loss(leaf, target, gamma=gamma, reduction="sum"), leaf)
        gradients.append(gradient.double())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", SIZES)
def test_streams_side_by_side(size: str) -> None:
    cases = [problem(size) for _ in range(4)]
    expected = [(*loss_and_gradient(case), *counts(case)) for case in cases]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in cases]
    results = []
    for case, stream in zip(cases, streams, strict=True):
        with torch.cuda.stream(stream):
            results.append((*loss_and_gradient(case), *counts(case)))
    torch.cuda.synchronize()
    for actual, wanted in zip(results, expected, strict=True):
        assert all(a.equal(b) for a, b in zip(actual, wanted, strict=True))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", SIZES)
def test_deterministic_mode_gives_the_same_bits(size: str) -> None:
    case = problem(size)
    expected = (*loss_and_gradient(case), *counts(case))
    torch.use_deterministic_algorithms(True)
    try:
        actual = (*loss_and_gradient(case), *counts(case))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(a.equal(b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", SIZES)
def test_a_bad_label_is_reported_later_and_the_context_survives(size: str) -> None:
    case = problem(size)
    case.target[0, 3, 5] = 77
    case.target[1, 3, 5] = 30
    loss, gradient = loss_and_gradient(case)
    with pytest.raises(ValueError, match="2 pixels have values from 30 to 77"):
        cf.check_labels()
    cf.check_labels()  # the report is cleared
    ignored = Case(case.logits, case.target.masked_fill(case.target == 77, 255).masked_fill(case.target == 30, 255))
    expected, expected_gradient = loss_and_gradient(ignored)
    assert loss.equal(expected)
    assert gradient.equal(expected_gradient)


def bad_labels(size: str, call: Callable[[Case], object]) -> Case:
    """A case with two bad labels, after a call that compiles the kernels."""
    case = problem(size)
    call(case)
    cf.check_labels()
    case.target[:, 3, 5] = 77
    return case


@pytest.mark.usefixtures("kernels")
def test_reports_of_other_streams_are_seen() -> None:
    case = bad_labels("same", loss_and_gradient)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # about a tenth of a second
        loss_and_gradient(case)
    with pytest.raises(ValueError, match="2 pixels have the value 77"):
        cf.check_labels()
    cf.check_labels()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("known", [True, False], ids=["another report is there", "no report is there"])
@pytest.mark.parametrize("call", [loss_and_gradient, counts])
@pytest.mark.parametrize("size", SIZES)
def test_every_replay_of_a_graph_reports(
    size: str, call: Callable[[Case], object], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the captured call is the first that needs a report: clearing the report is not part of the graph."""
    case = bad_labels(size, call)
    monkeypatch.setattr(_label_check, "_deferred", {})
    if not known:
        monkeypatch.setattr(_label_check, "_free", {})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(case)
    operators = 1 if call is loss_and_gradient else 2
    cf.check_labels()  # capturing computes nothing
    for replays in (1, 3):
        for _ in range(replays):
            graph.replay()
        with pytest.raises(ValueError, match=f"{2 * operators * replays} pixels have the value 77"):
            cf.check_labels()
        cf.check_labels()
    del captured


@pytest.mark.filterwarnings("ignore")  # inductor's own
@pytest.mark.parametrize("size", SIZES)
def test_a_compiled_step_in_graphs_reports(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile's graphs reuse memory that was allocated during warm-up. No report may be in it."""
    torch._dynamo.reset()
    case = bad_labels(size, loss_and_gradient)
    monkeypatch.setattr(_label_check, "_deferred", {})
    monkeypatch.setattr(_label_check, "_free", {})

    def step(logits: Tensor, target: Tensor) -> Tensor:
        return CF.cross_entropy(2 * logits, target, ignore_index=255) + logits.square().mean()

    compiled = torch.compile(step, mode="reduce-overhead", fullgraph=True)
    wanted = case.logits.detach().requires_grad_()
    step(wanted, case.target).backward()
    with pytest.raises(ValueError, match="2 pixels have the value 77"):
        cf.check_labels()
    for _ in range(5):  # warms up, captures, replays
        leaf = case.logits.detach().requires_grad_()
        torch.compiler.cudagraph_mark_step_begin()
        compiled(leaf, case.target).backward()
        torch.testing.assert_close(leaf.grad, wanted.grad, rtol=1e-5, atol=1e-8)
    with pytest.raises(ValueError, match="10 pixels have the value 77"):
        cf.check_labels()
    cf.check_labels()


@pytest.mark.usefixtures("kernels")
def test_memory_of_equal_sizes() -> None:
    logits = torch.randn(2, 19, 512, 1024, device="cuda", requires_grad=True)
    target = torch.randint(0, 19, (2, 512, 1024), device="cuda", dtype=torch.uint8)
    assert peak(logits, target) <= 4 * logits.numel() + 8 * target.numel() + 2**22


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_of_resized_logits(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 150, 128, 128, device="cuda", dtype=dtype, requires_grad=True)
    target = torch.randint(0, 150, (2, 512, 512), device="cuda", dtype=torch.uint8)
    assert peak(logits, target) <= logits.element_size() * logits.numel() + 8.2 * target.numel() + 2**22


def peak(logits: Tensor, target: Tensor) -> int:
    """Peak memory of loss and gradient in bytes."""
    CF.cross_entropy(logits, target).backward()
    logits.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    CF.cross_entropy(logits, target).backward()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.usefixtures("kernels")
def test_more_than_two_to_the_31_elements() -> None:
    """In a batch of 2.2 billion logits, the last image has the same gradient as alone."""
    logits = torch.empty(14, 150, 1024, 1024, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.randint(0, 150, (14, 1024, 1024), device="cuda", dtype=torch.uint8)
    leaf = logits.requires_grad_()
    loss = CF.cross_entropy(leaf, target, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    alone = logits[-1:].detach().requires_grad_()
    (expected,) = torch.autograd.grad(CF.cross_entropy(alone, target[-1:], reduction="sum"), alone)
    assert gradient[-1:].equal(expected)
    matrix = CF.confusion_matrix(logits.detach()[-1:], target[-1:])
    assert matrix.equal(reference.confusion_matrix(logits.detach()[-1:], target[-1:], 150, -100, False))


def test_observe_does_not_synchronise() -> None:
    case = problem("resized")
    weights = cf.AdaptiveClassWeights(19, ignore_index=255).cuda()
    maps = case.logits.relu()
    weights.observe(maps, case.target)
    with no_waiting():
        weights.observe(maps, case.target)
    weights.step()
    assert weights.weight.isfinite().all()


def test_nothing_waits_until_the_layer_of_the_logits_is_found() -> None:
    """The first losses are those of the network's output; after the comparison those of the classifier."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 19, 1), torch.nn.UpsamplingBilinear2d(scale_factor=4)).cuda()
    images, target = torch.randn(2, 3, 12, 20, device="cuda"), problem("resized").target
    for warm_up in (True, False):
        cawa = cf.CAWA(model, 19, ignore_index=255)
        with contextlib.nullcontext() if warm_up else no_waiting():
            for _ in range(3):
                output = model(images)
                loss = cawa.loss(target)
                loss.backward()
        expected = torch.nn.functional.cross_entropy(output, target.long(), ignore_index=255)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.cuda.synchronize()
    model(images)
    torch.testing.assert_close(cawa.loss(target), expected, rtol=1e-5, atol=1e-5)
    assert "align_corners=True" in cawa.explain()
    with torch.no_grad():
        model.eval()(images)
        cawa.observe(target)
    assert cawa.step().isfinite().all()


def test_a_graph_that_is_captured_before_the_layer_is_found() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 19, 1), torch.nn.UpsamplingBilinear2d(scale_factor=4)).cuda()
    images, target = torch.randn(2, 3, 12, 20, device="cuda"), problem("resized").target
    cawa, warm = cf.CAWA(model, 19, ignore_index=255), cf.CrossEntropyLoss(ignore_index=255)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        warm(model(images), target).backward()
    torch.cuda.synchronize()
    cawa.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(images)
        loss = cawa.loss(target)
    graph.replay()
    expected = torch.nn.functional.cross_entropy(output, target.long(), ignore_index=255)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", SIZES)
def test_a_device_that_is_not_the_current_one(size: str) -> None:
    case = problem(size)
    expected = (*loss_and_gradient(case), *counts(case))
    moved = Case(case.logits.to("cuda:1"), case.target.to("cuda:1"))
    actual = (*loss_and_gradient(moved), *counts(moved))
    assert all(a.cpu().equal(b.cpu()) for a, b in zip(actual, expected, strict=True))

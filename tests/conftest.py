"""Fixtures of the whole suite.

CAWA_FAST_TEST_DEVICE=cuda in the environment runs the tests of the operators on a GPU: its kernels, and plain PyTorch
there. Otherwise the Triton kernels run in Triton's interpreter; with CAWA_FAST_TEST_DEVICE=pretend on tensors that say
that they are not on the CPU (pretend.py), to find out without a GPU whether the tests themselves suit one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any

DEVICE = os.environ.get("CAWA_FAST_TEST_DEVICE", "cpu")
if DEVICE in ("cpu", "pretend"):
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before any import
else:
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # networks' convolutions in full float32, as on a CPU

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a suite in the background; what it starts would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

import cawa_fast as cf
from bench.libraries import import_torchvision
from cawa_fast._ops import backends, native
from tests.support import emulation, interpreter

collect_ignore = (
    [] if DEVICE == "pretend" else ["support/pretend.py"]
)  # collecting doctests imports it, and it makes a device


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """The same random numbers in every test whatever runs before it, and no label report left over."""
    torch.manual_seed(0)
    previous = cf.set_label_check("auto")
    yield
    cf.set_label_check(previous)
    if DEVICE == "cuda":
        _leave_a_broken_device()
    _read_labels()


def _read_labels() -> None:
    with contextlib.suppress(ValueError):  # a test's own, which it did not read
        cf.check_labels()


def _leave_a_broken_device() -> None:
    """After an illegal access every call of this process fails: of several processes this one ends, and xdist starts
    another, which goes on behind the test that did it. (Waiting here also shows which test that was.)"""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        raise


def _moved(value: Any) -> Any:
    """``value`` with its CPU tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE) if value.device.type == "cpu" else value
    if isinstance(value, dict):
        return {key: _moved(item) for key, item in value.items()}
    return type(value)(map(_moved, value)) if type(value) in (tuple, list) else value


on_a_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the host would have to wait for the values")


# Of tests that are marked so, one combination in so many runs in Triton's interpreter, and at least LEAST of each test.
SAMPLED, LEAST = int(os.environ.get("CAWA_FAST_TEST_SAMPLED", "20")), 2
EMULATION = [] if emulation.why_not() else [emulation.NAME]
BACKENDS = ["reference", "triton"]
BACKENDS += {"cpu": [*native.instruction_sets(), *EMULATION], "pretend": []}.get(DEVICE, ["cuda"])


TIERS = ("all", "fast", "rest")
SLOW_SECONDS = 10
"""A test that takes longer needs the mark ``slow``."""


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "fast: what `make test` runs; rest: the other tests"
    parser.addoption("--tier", choices=TIERS, default="all", help=help_text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """In the fast tier a test that is slow and not marked so fails."""
    report = yield
    fast = item.config.getoption("tier") == "fast" and report.when == "call" and report.passed
    if fast and call.duration > SLOW_SECONDS:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} took {call.duration:.0f} s: mark it with @pytest.mark.slow"
    return report


def _is_fast(item: pytest.Item) -> bool:
    """Whether the fast tier has this test: no slow one, no benchmark harness, no builds, no doctests; of the CPU's
    instruction sets only the best one."""
    if item.get_closest_marker("slow") or isinstance(item, pytest.DoctestItem):
        return False
    if item.path.parent.name in ("bench", "packaging") and item.path.name != "test_layers.py":
        return False
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return not {parameters.get("backend"), parameters.get("each_set")} & set(native.instruction_sets()[:-1])


def _select(config: pytest.Config, items: list[pytest.Item], wanted: Callable[[pytest.Item], bool]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Chooses and orders the tests.

    On a device, whose time is short, only the tests that need it run. On a CPU a part of the tests marked ``sampled``
    runs in the interpreter. Coverage is traced with the reference and with one instruction set only: it would double
    the time of the interpreter, and the lines are the same.
    """
    tier = config.getoption("tier")
    if tier != "all":
        _select(config, items, lambda item: _is_fast(item) == (tier == "fast"))
    if DEVICE != "cpu":
        _select(config, items, _needs_a_device)
        items[:] = _most_important_first(items)
    tests: dict[str, list[pytest.Item]] = {}
    tracing = getattr(config.pluginmanager.getplugin("_cov"), "cov_controller", None)
    traced = {"reference", *native.instruction_sets()[-1:]}
    for item in items:
        callspec = getattr(item, "callspec", None)
        backend = callspec.params.get("backend", "reference") if callspec else "reference"
        if tracing and backend not in traced:
            item.add_marker(pytest.mark.no_cover)
        if backend == "triton" and item.get_closest_marker("sampled"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    skip = pytest.mark.skip(reason="the interpreter is slow: it runs some of the combinations")
    for combinations in tests.values() if DEVICE != "cuda" else ():
        combinations.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        for item in combinations[max(LEAST, -(-len(combinations) // SAMPLED)) :]:
            item.add_marker(skip)


def _needs_a_device(item: pytest.Item) -> bool:
    if item.get_closest_marker("gpu") or "backend" in item.fixturenames:
        return True
    return item.path.name in ("test_triton_kernels.py", "test_no_waiting.py")


def _most_important_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """What only a GPU can show, then the kernels, then plain PyTorch. Within these a combination of every test, then
    another of every test, and so on: whenever time is up, every test has run with some."""
    order = ["cuda", "triton", "reference"]
    seen: Counter[str] = Counter()

    def place(item: pytest.Item) -> tuple[int, int]:
        backend = item.callspec.params.get("backend") if hasattr(item, "callspec") else None
        importance = 0 if item.get_closest_marker("gpu") else 1 + order.index(backend or "triton")
        name = item.nodeid.partition("[")[0] + str(backend)
        seen[name] += 1
        return importance, seen[name]

    mixed = sorted(items, key=lambda item: zlib.crc32(item.nodeid.encode()))
    places = {item: place(item) for item in mixed}
    return sorted(mixed, key=places.__getitem__)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs a test with plain PyTorch, with the compiled operators of each instruction set, and with Triton kernels."""
    with contextlib.ExitStack() as stack:
        if DEVICE != "cpu":
            if DEVICE == "pretend":
                from tests.support import pretend

                stack.enter_context(pretend.device())
                stack.callback(_read_labels)
            else:
                stack.enter_context(torch.device(DEVICE))
            cf.set_label_check("sync")  # errors at once, as on a CPU; tests of other modes set theirs
            for name, value in vars(request.module).items():
                if isinstance(value, torch.Tensor):  # made before this
                    monkeypatch.setattr(request.module, name, _moved(value))
            callspec = getattr(request.node, "callspec", None)
            for name in callspec.params if callspec else ():
                if name != "backend":
                    request.node.funcargs[name] = _moved(callspec.params[name])
            if request.param != "cuda":  # CUDA C++, and Triton for what that does not have
                monkeypatch.setattr(native, "cuda_available", lambda: False)
        if request.param == "reference":
            monkeypatch.setattr(native, "available", lambda: False)
            monkeypatch.setattr(backends, "runs_triton", lambda device: False)
        elif request.param == "triton":
            if DEVICE != "cuda":
                stack.enter_context(interpreter.kernels_on_the_cpu(monkeypatch))
                if DEVICE == "pretend":
                    pretend.use_kernels(monkeypatch)
        elif request.param == emulation.NAME:
            if request.path.name not in emulation.TESTS:
                pytest.skip("nothing here is CUDA C++")
            emulation.use(monkeypatch)
        elif request.param != "cuda":
            native.use_instruction_set(request.param)
            stack.callback(native.use_instruction_set, native.instruction_sets()[-1])
        yield request.param


def _import_peers(*names: str) -> None:
    """All of them import torchvision. A GPU's image may lack some: there their tests are skipped, here they fail."""
    try:
        import_torchvision()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's deprecations, while they are imported
            for name in names:
                importlib.import_module(name)
    except ImportError as error:
        if DEVICE == "cpu":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def peers() -> None:
    """Makes the libraries importable that results are compared with: pytorch-grad-cam, torch-cam, torchmetrics."""
    _import_peers("pytorch_grad_cam", "torchcam.methods", "torchmetrics")


@pytest.fixture(scope="session")
def torchmetrics() -> None:
    """Makes torchmetrics alone importable."""
    _import_peers("torchmetrics")

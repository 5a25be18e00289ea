"""Fixtures of the whole suite.

With CAWA_FAST_TEST_DEVICE=cuda in the environment, the tests of the operators run on a GPU: on its kernels and on plain
PyTorch. Otherwise the Triton kernels run in Triton's interpreter. CAWA_FAST_TEST_DEVICE=pretend runs them on tensors
that report another device than the CPU (support/pretend.py), to check without a GPU that the tests would work on one.
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
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # convolutions in full float32, as on a CPU

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job; child processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

import cawa_fast as cf
from bench.libraries import import_torchvision
from cawa_fast._ops import backends, native
from tests.support import emulation, interpreter

if expected := os.environ.get("CAWA_FAST_TEST_EXTENSION"):  # set by tests/native/sanitize.sh
    assert native._extension is not None, native.why_not()
    assert str(native._extension.__file__).startswith(expected), native._extension.__file__

# Collecting doctests imports every file, and importing the first one registers a device. The others import frameworks,
# which may not be installed.
collect_ignore = [] if DEVICE == "pretend" else ["support/pretend.py"]
collect_ignore += [f"support/{name}.py" for name in ("accelerate_loop", "hf_networks", "lightning_module")]
collect_ignore += [f"support/{name}.py" for name in ("train_transformers", "mmseg_runner", "yolo")]


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """Every test starts with the same random seed and without label reports of other tests."""
    torch.manual_seed(0)
    previous = cf.set_label_check("auto")
    yield
    cf.set_label_check(previous)
    if DEVICE == "cuda":
        _end_if_the_device_is_broken()
    _read_labels()


def _read_labels() -> None:
    with contextlib.suppress(ValueError):  # of labels that the test made bad on purpose
        cf.check_labels()


def _end_if_the_device_is_broken() -> None:
    """End this process if its CUDA context is broken, so that xdist starts another one for the remaining tests.

    After an illegal memory access every CUDA call of the process fails. Synchronising after each test also shows which
    test caused it.
    """
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


on_a_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the check of the values would synchronise")


# Of each test marked `sampled`, one parameter combination in SAMPLED, and at least LEAST, runs in Triton's interpreter.
SAMPLED, LEAST = int(os.environ.get("CAWA_FAST_TEST_SAMPLED", "20")), 2
EMULATION = [] if emulation.why_not() else [emulation.NAME]
BACKENDS = ["reference", "triton"]
BACKENDS += {"cpu": [*native.instruction_sets(), *EMULATION], "pretend": []}.get(DEVICE, ["cuda"])


TIERS = ("all", "fast", "rest")
SLOW_SECONDS = 10
"""A test that takes longer needs the marker ``slow``."""


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "fast: what `make test` runs; rest: the other tests"
    parser.addoption("--tier", choices=TIERS, default="all", help=help_text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """In the fast tier, fail a test that takes longer than ``SLOW_SECONDS`` without a marker that says so."""
    report = yield
    fast = item.config.getoption("tier") == "fast" and report.when == "call" and report.passed
    if fast and call.duration > SLOW_SECONDS:
        report.outcome = "failed"
        mark = "slow_in_interpreter" if "[triton" in item.nodeid else "slow"
        report.longrepr = f"{item.nodeid} took {call.duration:.0f} s: mark it with @pytest.mark.{mark}"
    return report


FAST_SAMPLED = 6
"""In the fast tier one combination in so many of each test, and at least one, runs in Triton's interpreter."""


def _fast_tests(items: list[pytest.Item]) -> set[pytest.Item]:
    """The fast tier: no slow tests, no benchmark harness, no builds, no doctests; the CPU's best instruction set only;
    a sample of what runs in Triton's interpreter."""
    chosen = []
    interpreted: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow") or isinstance(item, pytest.DoctestItem):
            continue
        if item.path.parent.name in ("bench", "packaging") and item.path.name != "test_layers.py":
            continue
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if {parameters.get("backend"), parameters.get("each_set")} & set(native.instruction_sets()[:-1]):
            continue
        if parameters.get("backend") != "triton":
            chosen.append(item)
        elif not item.get_closest_marker("slow_in_interpreter"):
            interpreted.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for combinations in interpreted.values():
        combinations.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        chosen += combinations[: -(-len(combinations) // FAST_SAMPLED)]
    return set(chosen)


def _select(config: pytest.Config, items: list[pytest.Item], wanted: Callable[[pytest.Item], bool]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select and order the tests.

    On a GPU, where time is limited, and on the pretend device, only the tests that need a device run. Elsewhere than on
    a GPU, only some combinations of the tests marked ``sampled`` run in the interpreter. Coverage is traced only with
    the reference and one instruction set: tracing would double the time of the interpreter and cover no more lines.
    """
    tier = config.getoption("tier")
    if tier != "all":
        fast = _fast_tests(items)
        _select(config, items, lambda item: (item in fast) == (tier == "fast"))
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
    skip = pytest.mark.skip(reason="the interpreter is slow and runs only a sample of the combinations")
    for combinations in tests.values() if DEVICE != "cuda" else ():
        combinations.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        for item in combinations[max(LEAST, -(-len(combinations) // SAMPLED)) :]:
            item.add_marker(skip)


def _needs_a_device(item: pytest.Item) -> bool:
    if item.get_closest_marker("gpu") or "backend" in item.fixturenames:
        return True
    return item.path.name in ("test_triton_kernels.py", "test_no_waiting.py")


def _most_important_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """The order for limited time: tests that only a GPU can run, then the kernels, then plain PyTorch.

    Within each group, one combination of every test comes first, then a second one of every test, and so on.
    """
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
    """Run a test on every backend of ``BACKENDS``: plain PyTorch, each instruction set of the CPU, CUDA and Triton."""
    with contextlib.ExitStack() as stack:
        if DEVICE != "cpu":
            if DEVICE == "pretend":
                from tests.support import pretend

                stack.enter_context(pretend.device())
                stack.callback(_read_labels)
            else:
                stack.enter_context(torch.device(DEVICE))
            cf.set_label_check("sync")  # raise at once, as on a CPU; tests of other modes set their own
            for name, value in vars(request.module).items():
                if isinstance(value, torch.Tensor):  # created at import time, on the CPU
                    monkeypatch.setattr(request.module, name, _moved(value))
            callspec = getattr(request.node, "callspec", None)
            for name in callspec.params if callspec else ():
                if name != "backend":
                    request.node.funcargs[name] = _moved(callspec.params[name])
            if request.param != "cuda":  # "cuda" runs CUDA C++, and Triton where there is no CUDA C++ kernel
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
                pytest.skip("the CUDA emulation runs only the files in emulation.TESTS")
            emulation.use(monkeypatch)
        elif request.param != "cuda":
            native.use_instruction_set(request.param)
            stack.callback(native.use_instruction_set, native.instruction_sets()[-1])
        yield request.param


def _import_libraries(*names: str) -> None:
    """Import libraries that themselves import torchvision.

    If one is missing, tests fail on a CPU and are skipped on a GPU, whose environment may lack some of them.
    """
    try:
        import_torchvision()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation warnings while they are imported
            for name in names:
                importlib.import_module(name)
    except ImportError as error:
        if DEVICE == "cpu":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def reference_libraries() -> None:
    """Import the libraries whose results ours are compared with: pytorch-grad-cam, torch-cam, torchmetrics."""
    _import_libraries("pytorch_grad_cam", "torchcam.methods", "torchmetrics")


@pytest.fixture(scope="session")
def torchmetrics() -> None:
    """Import torchmetrics alone."""
    _import_libraries("torchmetrics")

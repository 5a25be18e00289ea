"""The suite as it would run on a GPU, on tensors that report another device than the CPU (support/pretend.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> str:
    """Output of pytest on the pretend device."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=kept | {"CAWA_FAST_TEST_DEVICE": "pretend"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_operators_do_not_synchronise() -> None:
    assert "passed" in run("tests/ops/test_no_waiting.py")


@pytest.mark.slow
def test_the_tests_suit_another_device_than_the_cpu() -> None:
    files = [f"tests/ops/test_{name}.py" for name in ("labels", "cross_entropy", "confusion_matrix", "cam_counts")]
    named = "test_labels or by_hand or errors or changed or strided or module or infinit or nan or no_images"
    out = run(*files, "-k", f"reference and ({named})")
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None
    assert int(passed[1]) > 120


@pytest.mark.slow
def test_selection_and_order_of_tests_on_a_device() -> None:
    """As time may run out on a device, only tests that need one run, and one combination of every test comes early."""
    from bench.gpu.steps import DEVICE_TESTS

    tests = [line for line in run("--collect-only").splitlines() if "::" in line]
    files = {test.partition("::")[0] for test in tests}
    assert files == {*DEVICE_TESTS, "tests/ops/test_no_waiting.py"}
    of_a_gpu = [place for place, test in enumerate(tests) if "test_gpu.py" in test]
    assert of_a_gpu == [*range(len(of_a_gpu))]
    tests = [test for test in tests if "no_waiting" not in test]  # those tests have no backends
    kernels = [place for place, test in enumerate(tests) if "[triton" in test]
    plain = [place for place, test in enumerate(tests) if "[reference" in test]
    assert kernels[-1] < plain[0]
    names = [test.partition("[")[0] for test in tests if "[triton" in test]
    assert set(names[: len(set(names))]) == set(names)

"""The suite as it runs on a GPU, without one: on tensors that say that they are not on the CPU (pretend.py)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    """Output of pytest there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=kept | {"CAWA_FAST_TEST_DEVICE": "pretend"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_operators_make_nobody_wait() -> None:
    assert "passed" in run("tests/test_no_waiting.py")


@pytest.mark.slow
def test_the_tests_suit_another_device_than_the_cpu() -> None:
    files = [f"tests/test_{name}.py" for name in ("labels", "cross_entropy", "confusion_matrix", "cam_counts")]
    named = "test_labels or by_hand or errors or changed or strided or module or infinit or nan or no_images"
    out = run(*files, "-k", f"reference and ({named})")
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None
    assert int(passed[1]) > 120


def test_what_needs_a_device_is_tested_first() -> None:
    """Its time may be up before the end."""
    tests = [line for line in run("--collect-only").splitlines() if "::" in line]
    assert all("test_gpu.py" in test for test in tests[:10])
    assert not any("test_gpu.py" in test for test in tests[100:])
    losses = [place for place, test in enumerate(tests) if "test_cross_entropy.py" in test]
    others = [place for place, test in enumerate(tests) if "test_augment.py" in test]
    assert losses[-1] < others[0]

"""The steps of ``python -m bench gpu``, which start processes and put what they find into the result.

A step that finds a failure sets ``"status"``; the command turns an exception into a failure too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import ROOT
from .runner import Done, Run
from .smi import query

Found = dict[str, Any]

_SCRIPTS = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])


@contextlib.contextmanager
def importable_kernels() -> Iterator[str | None]:
    """Within it ``cawa_fast.kernels`` is the folder ``kernels`` of this source tree; yields a note if it was changed.

    An editable installation maps the package to the folder. A bare source tree gets a link for the time of the block.
    """
    package, link = ROOT / "kernels", ROOT / "cawa_fast" / "kernels"
    found = importlib.util.find_spec("cawa_fast.kernels")
    ours = found is not None and found.origin is not None and Path(found.origin).resolve().parent == package
    if ours or link.exists():
        yield None
        return
    link.symlink_to(os.path.relpath(package, link.parent), target_is_directory=True)
    importlib.invalidate_caches()
    try:
        yield "cawa_fast/kernels links to kernels/ for the time"
    finally:
        link.unlink()


# ---------------------------------------------------------------------------------------------------------- build


def build_step(run: Run, seconds: float, result: Found) -> None:
    """Build the extension in place; without it the other steps run Triton's kernels and plain PyTorch."""
    cmake = shutil.which("cmake", path=_SCRIPTS)
    if cmake is None:
        raise RuntimeError("there is no cmake; the rest runs without the extension")
    options, why = cuda_options((ROOT / "CMakeLists.txt").read_text(encoding="utf-8"), run.rehearse)
    result["options"], result["note"] = options, why
    folder = (run.out / ".build") if run.rehearse else ROOT / "build" / "gpu"
    environment = run.environment(PATH=_SCRIPTS)
    end = time.monotonic() + seconds
    commands = [
        [cmake, "-S", ".", "-B", str(folder), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}", *options],
        [cmake, "--build", str(folder)],
        [cmake, "--install", str(folder), "--prefix", "cawa_fast"],
    ]
    if run.rehearse:
        commands = [commands[0], [*commands[1], "--", "-n"]]  # a dry run: the build takes minutes
    for command in commands:
        done = run.spawn(command, max(end - time.monotonic(), 1), environment=environment)
        if done.code != 0:
            raise RuntimeError(
                f"{' '.join(command[:2])}: {done.how}; the rest runs without a new extension. {_reason(done.output)}"
            )
    if run.rehearse:
        shutil.rmtree(folder, ignore_errors=True)
        result["note"] = "configured and planned, not built (rehearsal)"
        return
    code = "import cawa_fast._ops.native as n; print(n.why_not() or n.build_info()); print(n.why_no_cuda())"
    found = run.spawn([sys.executable, "-c", code], 60).output.strip().splitlines() or [""]
    result["loaded"] = "\n".join(found)[-2000:]
    if "cuda_architectures" not in result["loaded"]:
        raise RuntimeError(f"the extension does not load: {result['loaded'][-300:]}")
    if found[-1] != "None":
        raise RuntimeError(f"no CUDA operators, the rest runs on Triton: {found[-1]} ({why})")


def cuda_options(description: str, rehearse: bool) -> tuple[list[str], str]:
    """CMake's options for the present device only, and a note; without CUDA where nvcc or the option is missing."""
    wanted = [name for name in ("CAWA_FAST_CUDA", "CAWA_FAST_CUDA_ARCHITECTURES") if _is_option(name, description)]
    if "CAWA_FAST_CUDA" not in wanted:
        return [], "without CUDA: CMakeLists.txt has no option CAWA_FAST_CUDA"
    if rehearse:
        return ["-DCAWA_FAST_CUDA=OFF"], "without CUDA (rehearsal)"
    if not (shutil.which("nvcc", path=_SCRIPTS) or shutil.which("nvcc", path="/usr/local/cuda/bin")):
        return ["-DCAWA_FAST_CUDA=OFF"], "without CUDA: there is no nvcc"
    capability = str(query(("compute_cap",)).get("compute_cap", ""))
    options = ["-DCAWA_FAST_CUDA=ON"]
    if capability and "CAWA_FAST_CUDA_ARCHITECTURES" in wanted:
        options.append(f"-DCAWA_FAST_CUDA_ARCHITECTURES={capability.replace('.', '')}")
    return options, f"with CUDA for compute capability {capability or 'unknown'}"


def _is_option(name: str, description: str) -> bool:
    """Whether ``name`` is an option in CMakeLists.txt."""
    return re.search(rf"option\s*\(\s*{name}\b|set\s*\(\s*{name}\b[^)]*\bCACHE\b", description) is not None


def _reason(output: str) -> str:
    """The first line that looks like the cause."""
    lines = [line.strip() for line in output.splitlines() if re.search(r"error|Error", line)]
    return lines[0][:300] if lines else ""


# ---------------------------------------------------------------------------------------------------------- tests


DEVICE_TESTS = (
    "tests/ops/test_gpu.py",
    "tests/ops/test_triton_kernels.py",
    "tests/ops/test_cross_entropy.py",
    "tests/ops/test_confusion_matrix.py",
    "tests/ops/test_cam_counts.py",
    "tests/ops/test_labels.py",
    "tests/ops/test_offset.py",
    "tests/ops/test_focal.py",
    "tests/ops/test_offset.py",
    "tests/ops/test_region.py",
    "tests/ops/test_hard_pixels.py",
    "tests/ops/test_volumes.py",
    "tests/ops/test_compile.py",
    "tests/method/test_cawa.py",
)
"""Test files that need a device. Collecting the other files would take every process seconds."""

_TEST_SECONDS = 30  # of one test with the compilation of its kernels, so that one that hangs leaves time to the others


def pytest_command(run: Run, junit: Path) -> list[str]:
    """pytest on the tests that need a device, in the order of conftest.py, in as many processes as cores allow.

    Only named plugins are loaded, because other installed ones may fail.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-rfE"]
    command += ["--maxfail=200", f"--junitxml={junit}"]
    if run.rehearse:
        return [*command, "tests/bench/test_floors.py"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        # by a thread, which ends the process: signals are not handled while the host waits for the device
        command += ["-p", "pytest_timeout", f"--timeout={_TEST_SECONDS}", "--timeout-method=thread"]
    if importlib.util.find_spec("xdist") is not None:
        # Each process has a CUDA context; most of the time goes into compiling kernels on the CPU. Small chunks
        # distribute the first tests, which matter most, over the processes.
        processes = max(1, min(14, (os.cpu_count() or 1) - 2))
        command += ["-p", "xdist.plugin", "-n", str(processes), "--maxschedchunk=2"]
    return [*command, *DEVICE_TESTS]


def tests_step(run: Run, seconds: float, result: Found) -> None:
    """Run the tests that need a device."""
    junit = run.out / ".tests.xml"
    junit.unlink(missing_ok=True)
    # without the last setting inductor starts as many processes as cores for each test process
    settings = {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    environment = run.environment(**settings)
    with contextlib.ExitStack() as stack:
        if not run.rehearse:  # compile in the background what the sanitizer and the benchmarks need later
            stack.enter_context(run.beside(_every_operator(run, 30)))
            child = [sys.executable, "-m", "bench.gpu.child", "warm-up", str(run.out / ".warm-up.json")]
            child.append(f"{seconds:.0f}")
            stack.enter_context(run.beside(child, environment=run.environment(TORCHINDUCTOR_COMPILE_THREADS="4")))
        done = run.spawn(pytest_command(run, junit), seconds, environment=environment)
    result.update(parse_tests(done, junit))
    junit.unlink(missing_ok=True)
    if done.code is None:
        result["note"] = f"{done.how}, before the last of the tests"
    elif done.code != 0:
        result["note"] = done.how
    bad = result["counts"].keys() & {"failed", "error"}
    if bad or done.code not in (0, None) or not result["counts"].get("passed"):
        result["status"] = "failed"


def parse_tests(done: Done, junit: Path) -> Found:
    """Numbers of tests, and names and first lines of the failures, from the report or, without one, from the output."""
    if junit.exists():
        try:
            return _parse_junit(junit)
        except ElementTree.ParseError:  # pytest was killed while it wrote the report
            pass
    lines = re.findall(r"^(FAILED|ERROR) (\S+)(?: - (.*))?$", done.output, re.MULTILINE)
    failures = [{"name": name, "message": message[:300]} for _, name, message in lines]
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.output)}
    percent = re.findall(r"\[ *(\d+)%\]", done.output)
    return {"counts": counts, "failures": failures, "progress": f"{percent[-1]} %" if percent else None}


def _parse_junit(junit: Path) -> Found:
    counts: Counter[str] = Counter()
    failures = []
    for case in ElementTree.parse(junit).iter("testcase"):
        bad = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped") is not None
        counts[bad[0].tag if bad else "skipped" if skipped else "passed"] += 1
        if bad:
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            failures.append({"name": name, "message": _first(bad[0].get("message"))})
    kinds = {"passed": "passed", "failure": "failed", "error": "error", "skipped": "skipped"}
    return {"counts": {kinds[kind]: number for kind, number in counts.items()}, "failures": failures[:60]}


def _first(message: str | None) -> str:
    lines = (message or "").strip().splitlines() or [""]
    return lines[0][:300]


# ------------------------------------------------------------------------------------------------------ sanitizer


_EXIT_SECONDS = 11  # for the start and the summary of a sanitizer; killed earlier, it writes no summary


def _every_operator(run: Run, seconds: float) -> list[str]:
    """The command that calls every operator for some seconds."""
    return [sys.executable, "-m", "bench.gpu.sanitized", "cpu" if run.rehearse else "cuda", f"{seconds:.0f}"]


def sanitizer_step(run: Run, seconds: float, result: Found) -> None:
    """Run compute-sanitizer's memcheck and racecheck on every operator, at the same time."""
    tool = shutil.which("compute-sanitizer", path=f"{_SCRIPTS}{os.pathsep}/usr/local/cuda/bin")
    if run.rehearse or tool is None:
        done = run.spawn(_every_operator(run, 4), seconds)
        result["calls"] = _last(done.output)
        if done.code != 0:
            raise RuntimeError(f"bench.gpu.sanitized: {done.how}. {_last(done.output)}")
        result["note"] = "ran without a sanitizer: " + ("a rehearsal" if run.rehearse else "there is none here")
        return
    # the caching allocator would hide accesses outside of a tensor but within its block
    environment = run.environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    end = time.monotonic() + seconds
    program = _every_operator(run, max(seconds - _EXIT_SECONDS, 2))
    result["tools"] = {}
    with contextlib.ExitStack() as stack:
        running = {}
        for kind in ("memcheck", "racecheck"):
            # "application-only": not the compilers that the program starts
            options = ["--tool", kind, "--print-limit", "20", "--target-processes", "application-only"]
            running[kind] = stack.enter_context(run.beside([tool, *options, *program], environment=environment))
        for kind, finish in running.items():
            done = finish(max(end - time.monotonic(), 0.1))
            found = result["tools"][kind] = parse_sanitizer(done)
            if found["errors"]:
                result["status"] = "failed"
            run.publish()
    if all(found["errors"] is None for found in result["tools"].values()):
        result["status"] = "skipped"
        result["note"] = "compute-sanitizer gave no summary; see the log"


def parse_sanitizer(done: Done) -> Found:
    """The number of errors in the summary (None without one), the first errors, and how the process ended."""
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY:\s*(\d+) (?:error|hazard).*", done.output)
    lines = [line for line in done.output.splitlines() if line.startswith("=========") and line.strip("= ")]
    calls = re.search(r"^\d+ calls$", done.output, re.MULTILINE)
    return {
        "calls": calls[0] if calls else None,
        "errors": int(summary[1]) if summary else None,
        "summary": summary[0] if summary else None,
        "first": [line[:200] for line in lines if "COMPUTE-SANITIZER" not in line][:12],
        "end": done.how,
    }


# ------------------------------------------------------------------------------------------------ on the device


def limits_step(run: Run, seconds: float, result: Found) -> None:
    """Measure the limits of the device."""
    _succeeded(run.child("limits", seconds, result))


def profile_step(run: Run, seconds: float, result: Found) -> None:
    """The time of each kernel of the main rows."""
    done = run.child("profile", seconds, result)
    if not any("ours" in row for row in result.get("rows", {}).values()):
        raise RuntimeError(f"nothing was profiled: {done.how}. {_last(done.output)}")
    _note_failures(result, done, "rows")


def benchmarks_step(run: Run, seconds: float, result: Found) -> None:
    """Measure all rows."""
    _in_pieces(run, "benchmarks", seconds, result)


def epoch_step(run: Run, seconds: float, result: Found) -> None:
    """Measure epochs of networks."""
    _in_pieces(run, "epoch", seconds, result)


def _in_pieces(run: Run, step: str, seconds: float, result: Found) -> None:
    """Run processes until all pieces are done; one that dies loses one piece, and the next continues after it."""
    end = time.monotonic() + seconds
    attempts = 0
    while True:
        before = len(result.get("done", []))
        done = run.child(step, end - time.monotonic(), result)
        if done.code == 0 or done.code is None:
            break
        # two processes without progress: the fault is not in a piece
        attempts = 0 if len(result.get("done", [])) > before else attempts + 1
        if attempts > 1 or end - time.monotonic() < 10:
            break
        run.say(f"{step}: {done.how}; going on with the next piece")
    if not result.get("rows"):
        raise RuntimeError(f"nothing was measured: {done.how}. {_last(done.output)}")
    _note_failures(result, done, "pieces")


def _note_failures(result: Found, done: Done, what: str) -> None:
    if result.get("failed") or done.code != 0:
        result["status"] = "failed"
        reasons = [f"{name}: {why}" for name, why in result.get("failed", {}).items()]
        result["note"] = f"{len(reasons)} {what} failed, first {reasons[0]}" if reasons else done.how


def sweep_step(run: Run, seconds: float, result: Found) -> None:
    """Time the configurations of the tile tables."""
    _succeeded(run.child("sweep", seconds, result))
    if str(result.get("note", "")).startswith("skipped"):
        result["status"] = "skipped"


def _succeeded(done: Done) -> None:
    if done.code != 0:
        raise RuntimeError(f"{done.how}. {_last(done.output)}")


def _last(output: str) -> str:
    """The last line; in a traceback it is the error."""
    lines = output.strip().splitlines() or [""]
    return lines[-1][:300]

"""The CUDA operators without a GPU: registers and spills of the kernels, and when they are built and loaded."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from cawa_fast._ops import native

pytest.importorskip("click")
pytest.importorskip("rich")

from bench.gpu import resources
from bench.gpu.kernel_resources import ARCHITECTURES, Resources, faults

ROOT = Path(__file__).parents[2]
NVCC = resources.nvcc()
EVERY_ARCHITECTURE = os.environ.get("CAWA_FAST_TEST_ARCHITECTURES") == "all"

PTXAS = """\
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '_ZN9cawa_fast4cuda6planarIN3c104HalfELb1ELb0EEEvNS0_7ProblemE' for 'sm_80'
ptxas info    : Function properties for _ZN9cawa_fast4cuda6planarIN3c104HalfELb1ELb0EEEvNS0_7ProblemE
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 16 bytes cumulative stack size, 672 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN9cawa_fast4cuda18sum_partial_lossesEPKdiPKfPf' for 'sm_90'
ptxas info    : Function properties for _ZN9cawa_fast4cuda18sum_partial_lossesEPKdiPKfPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 26 registers, used 1 barriers, 300000 bytes smem
"""


def test_ptxas_output_is_parsed():
    table = resources.parse_ptxas(PTXAS)
    assert table == [
        Resources("planar", "float16, 16 bytes", 80, 64, 20, 16, 0),
        Resources("sum_partial_losses", "", 90, 26, 0, 0, 300000),
    ]
    spills, stack, shared = faults(table)
    assert "planar (float16, 16 bytes) on sm_80 spills 20 bytes" in spills
    assert "16 bytes of local memory" in stack
    assert "300000 bytes of shared memory" in shared
    text = resources.resources_page({"nvcc": "13.0"}, table, "abc")
    assert re.search(r"\| planar +\| float16, 16 bytes \| +64 \| +– \|", text)
    assert all(line in text for line in (spills, stack, shared))


def test_the_committed_table_is_complete_and_without_faults():
    compilers, table = resources.read()
    page = resources.OUT.with_suffix(".md").read_text(encoding="utf-8")
    commit = re.search(r"as of commit (\w+\+?)", page)
    assert commit is not None
    assert page == resources.resources_page(compilers, table, commit[1])
    assert not faults(table)
    for architecture in ARCHITECTURES:
        assert {row.kernel for row in table if row.architecture == architecture} >= {
            "planar",
            "interleaved",
            "many_classes",
            "sum_partial_losses",
        }


def test_the_digest_of_the_sources_ignores_comments_and_sees_code(tmp_path, monkeypatch):
    for folder in ("csrc", "kernels", "bench/gpu"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(resources, "ROOT", tmp_path)
    before = resources.source_digest()

    def change(name, old, new):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert old in text
        (tmp_path / name).write_text(text.replace(old, new, 1), encoding="utf-8")
        return resources.source_digest()

    assert change("csrc/cuda/planar.h", "namespace", "// a comment\n\nnamespace") == before
    assert change("kernels/labels.py", "import triton\n", "import triton  # a comment\n") == before
    cuda = change("csrc/cuda/planar.h", "__syncthreads()", "__syncwarp()")
    assert cuda != before
    assert change("kernels/labels.py", "tl.load(", "tl.load (0 + ") not in (cuda, before)


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_cuda_kernels_compile_without_spills():
    """The kernels compile without warnings, and their registers are those of the committed table.

    For all architectures if the kernels have changed since the table was made, otherwise for one.
    """
    assert NVCC is not None
    version = resources.nvcc_version(NVCC)
    known = resources.supported(NVCC)
    if resources.is_current({"nvcc": version}) and not EVERY_ARCHITECTURE:
        known = [90]
    table = resources.compile_cuda(NVCC, known)
    assert {row.architecture for row in table} == set(known)
    assert not faults(table)
    compilers, committed = resources.read()
    if compilers["nvcc"] == version:
        cuda = {row.kernel for row in table}
        expected = [row for row in committed if row.kernel in cuda and row.architecture in known]
        assert table == expected, "registers differ from the committed table; `python -m bench resources` updates it"


def configure(build, *options):
    """Error output of CMake's configure step, which must fail."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    if cmake is None or ninja is None:
        pytest.skip("CMake or ninja is not installed")
    command = [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run = subprocess.run([*command, f"-DPython_EXECUTABLE={sys.executable}", *options], capture_output=True, text=True)
    assert run.returncode != 0
    return " ".join(run.stderr.split())  # CMake wraps lines


def test_asking_for_cuda_without_nvcc_says_what_to_do(tmp_path):
    folders = {Path(NVCC).parent, Path(NVCC).resolve().parent} if NVCC else set()
    hidden = ";".join(map(str, folders | {Path("/usr/local/cuda/bin")}))
    output = configure(tmp_path, "-DCAWA_FAST_CUDA=ON", f"-DCMAKE_IGNORE_PATH={hidden}")
    assert "there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda" in output
    assert "CAWA_FAST_CUDA=0" in output


def test_unknown_values_of_cawa_fast_cuda_are_refused(tmp_path):
    assert "must be ON, OFF or AUTO, not 'maybe'" in configure(tmp_path / "build", "-DCAWA_FAST_CUDA=maybe")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("cawa_fast", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    environment = os.environ | {"CAWA_FAST_CUDA": "maybe", "CAWA_FAST_NATIVE": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode != 0
    assert "CAWA_FAST_CUDA must be 0, 1 or auto, not 'maybe'" in run.stderr


def test_cuda_operators_load_only_if_torch_has_cuda(monkeypatch, tmp_path):
    if torch.version.cuda is None:
        assert not native.cuda_available()
    if not native.available():
        return
    monkeypatch.setattr(torch.version, "cuda", None)
    assert re.fullmatch(r"torch .* has no CUDA", native._load_cuda() or "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(native, "_CUDA_LIBRARY", tmp_path / "_cuda.so")
    assert "CAWA_FAST_CUDA=1" in (native._load_cuda() or "")
    (tmp_path / "_cuda.so").write_bytes(b"not a shared library")
    with pytest.warns(RuntimeWarning, match=r"_cuda\.so is installed but does not load"):
        assert "rebuild it" in (native._load_cuda() or "")

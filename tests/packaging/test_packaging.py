"""What gets installed: builds of copies of the tree, with and without compiled code, and builds that must fail."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["pyproject.toml", "setup.py", "MANIFEST.in", "CMakeLists.txt", "README.md", "LICENSE"]
SOURCES += ["cawa_fast", "kernels", "csrc", "cmake"]


def run(*command, check=True, cwd=None, **environment):
    """Output and errors of a command, which must succeed or, if ``check`` is false, fail."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CAWA_FAST_")}
    result = subprocess.run(
        [str(part) for part in command],
        env=env | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
    )
    assert (result.returncode == 0) == check, result.stdout
    return result.stdout


@pytest.fixture
def tree(tmp_path):
    """A copy of everything that a build reads, without files of earlier builds."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    return copy


def build_wheel(source, out, **environment):
    environment = {"CAWA_FAST_CUDA": "0"} | environment
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", out, source, **environment)
    (wheel,) = out.glob("*.whl")
    assert wheel.stat().st_size < 2 * 10**6, "a wheel without CUDA must be smaller than 2 MB"
    return wheel


def run_installed(wheel, to, code):
    """Output lines of Python code that can import the unpacked wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(to)
    # -S skips .pth files. Otherwise an editable install of the repository would supply what the wheel lacks.
    path = os.pathsep.join([str(to), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return run(sys.executable, "-S", "-c", code, cwd=to, PYTHONPATH=path).splitlines()


@pytest.mark.slow
def test_sdist_and_the_native_wheel_built_from_it(tree, tmp_path):
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, tree)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("csrc", "cmake", "kernels", "cawa_fast"):
        assert {str(path.relative_to(tree)) for path in (tree / folder).rglob("*.*")} <= packed
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml"} <= packed

    wheel = build_wheel(sdist, tmp_path / "wheel")
    assert wheel.stat().st_size < 2_000_000
    extension = "cawa_fast/_C" + sysconfig.get_config_var("EXT_SUFFIX")
    with zipfile.ZipFile(wheel) as archive:
        assert {extension, "cawa_fast/kernels/__init__.py", "cawa_fast/py.typed"} <= set(archive.namelist())
        assert str(tmp_path).encode() not in archive.read(extension)  # no paths of the build machine

    code = "import cawa_fast._ops.native as n, torch; print(n.__file__); print(n.why_not())\n"
    code += (
        "x = torch.ones(3).long(); print(torch.ops.cawa_fast_cpu.confusion_matrix_labels(x, x, 2, -100)[0].tolist())"
    )
    file, reason, counts = run_installed(wheel, tmp_path / "installed", code)
    assert Path(file).is_relative_to(tmp_path)
    assert reason == "None"
    assert counts == "[[0, 0], [0, 3]]"


@pytest.mark.slow
def test_pure_wheel(tree, tmp_path):
    wheel = build_wheel(tree, tmp_path / "wheel", CAWA_FAST_NATIVE="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".pyd"))]
    code = "import cawa_fast.kernels as k, cawa_fast._ops.native as n\n"
    code += "print(k.__file__); print(n.available(), n.why_not())"
    file, native = run_installed(wheel, tmp_path / "installed", code)
    assert Path(file).is_relative_to(tmp_path)
    assert native.startswith("False there is no cawa_fast._C")


@pytest.mark.slow
def test_failed_build_shows_the_compiler_message(tree, tmp_path):
    for source in (tree / "csrc").rglob("*.cpp"):  # whichever is compiled first
        source.write_text("#error planted\n" + source.read_text())
    # -q: even then pip must show the compiler's message
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", tmp_path, tree]
    output = run(*command, check=False, CAWA_FAST_CUDA="0")
    assert "#error planted" in output
    assert re.search(r"\w\.cpp:1\b", output)
    assert "CAWA_FAST_NATIVE=0" in output  # how to install without the extension
    assert not list(tmp_path.glob("*.whl"))


def test_build_without_torch_says_how_to_get_it(tree, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    (python,) = tmp_path.glob("venv/*/python")
    cmake = shutil.which("cmake", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    output = run(cmake, "-S", tree, "-B", tmp_path / "build", f"-DPython_EXECUTABLE={python}", check=False)
    words = " ".join(output.split())  # CMake wraps lines
    assert "pip install torch" in words
    assert "--no-build-isolation" in words


@pytest.mark.parametrize("code", ["import kernels", "from kernels import cross_entropy", "import kernels.labels"])
def test_importing_kernels_by_its_bare_name_fails(code):
    output = run(sys.executable, "-c", code, check=False, PYTHONPATH=str(ROOT))
    assert "ImportError: 'kernels' is not importable by this name: import it as 'cawa_fast.kernels'" in output
    tried = f"try: {code}\nexcept ImportError as error: print(error.name)"
    assert run(sys.executable, "-c", tried, PYTHONPATH=str(ROOT)) == "kernels\n"


LOOKS_FOR_KERNELS = """
import importlib, importlib.metadata, importlib.util

def available(name):  # as transformers 5 does
    if importlib.util.find_spec(name) is None:
        return False, None
    try:
        return True, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        package = importlib.import_module(name)
        version = getattr(package, "__version__", "N/A")
        return version != "N/A" or getattr(package, "__file__", None) is not None, version

found, version = available("kernels")
viable = found and tuple(map(int, version.split("."))) >= (0, 10)
try:
    from kernels import get_kernel
    from kernels.layer import Mode
except ImportError:
    get_kernel = Mode = None
print(viable, get_kernel, Mode)
"""
"""Prints whether a package ``kernels`` of version 0.10 or later is there, and two things in it."""


def test_a_program_that_looks_for_another_package_named_kernels_finds_none():
    assert run(sys.executable, "-c", LOOKS_FOR_KERNELS, PYTHONPATH=str(ROOT)) == "False None None\n"
    assert run(sys.executable, "-c", LOOKS_FOR_KERNELS, cwd=ROOT) == "False None None\n"


@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize("form", ["package", "module"])
def test_another_package_named_kernels_is_found_behind_the_source_tree(tmp_path, metadata, form):
    (tmp_path / "before" / "kernels").mkdir(parents=True)  # a folder without __init__.py hides no package
    if form == "package":
        package = tmp_path / "installed" / "kernels"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("from ._version import __version__\nget_kernel = 'the other'\n")
        (package / "_version.py").write_text("__version__ = '0.12.1'\n")
        (package / "layer.py").write_text("Mode = 'its layer'\n")
        expected = "True the other its layer\n"
    else:
        (tmp_path / "installed").mkdir()
        (tmp_path / "installed" / "kernels.py").write_text("__version__ = '0.12.1'; get_kernel = 'the other'\n")
        expected = "True None None\n"  # it has no module "layer"
    if metadata:
        about = tmp_path / "installed" / "kernels-0.12.1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.12.1\n")
    path = os.pathsep.join(map(str, [tmp_path / "before", ROOT, tmp_path / "installed"]))
    assert run(sys.executable, "-c", LOOKS_FOR_KERNELS, PYTHONPATH=path) == expected
    code = "import kernels, sys; print(kernels.get_kernel, sys.modules['kernels'] is kernels, kernels.__file__)"
    shown = run(sys.executable, "-c", code, PYTHONPATH=path)
    assert shown.startswith(f"the other True {tmp_path}")


def test_an_error_in_the_other_package_is_its_own(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise RuntimeError('planted')")
    path = os.pathsep.join(map(str, [ROOT, tmp_path]))
    assert "RuntimeError: planted" in run(sys.executable, "-c", "import kernels", check=False, PYTHONPATH=path)


@pytest.fixture
def uncompiled(tree):
    """Runs Python code in a source tree as in a fresh clone, from which ``cawa_fast`` is imported."""
    if not (tree / "cawa_fast" / "kernels").exists():
        (tree / "cawa_fast" / "kernels").symlink_to(tree / "kernels")
    path = os.pathsep.join([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])

    def run_in_tree(code, **environment):
        # -S: an editable install of the repository would supply the extension
        return run(sys.executable, "-S", "-c", code, cwd=tree, PYTHONPATH=path, **environment)

    run_in_tree.folder = tree
    return run_in_tree


def test_a_source_tree_that_is_not_compiled_says_so_once(uncompiled):
    code = "import cawa_fast, cawa_fast._ops.native, cawa_fast.functional"
    output = uncompiled(code)
    assert output.count("RuntimeWarning") == 1
    assert f"cawa_fast is imported from the source tree {uncompiled.folder.resolve()}, which is not compiled" in output
    assert "Run `pip install --no-build-isolation -e .` there or, if cawa_fast is installed, start Python" in output
    assert uncompiled(code, CAWA_FAST_NATIVE="0") == ""


def test_compiled_or_installed_without_compiled_code_it_says_nothing(uncompiled):
    assert run(sys.executable, "-W", "error::RuntimeWarning", "-c", "import cawa_fast", cwd=ROOT) == ""
    (uncompiled.folder / "CMakeLists.txt").unlink()  # as in site-packages
    assert uncompiled("import cawa_fast") == ""

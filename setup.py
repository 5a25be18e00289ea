"""Runs the CMake build of the native code for setuptools. Metadata and dependencies are in pyproject.toml.

Environment variables:

* CAWA_FAST_NATIVE=0 installs the package without compiled code. Any other build gives the compiled extension or fails
  with the compiler's message, because an optional extension would fail silently under `pip -q`.
* CAWA_FAST_CUDA=0 leaves out the CUDA operators, 1 fails without nvcc, and auto (the default) builds them if there is
  an nvcc.
* CAWA_FAST_CUDA_ARCHITECTURES: the compute capabilities to build for, as in "80;90".
* CMAKE_ARGS: more options for CMake.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CUDA = {"0": "OFF", "1": "ON", "auto": "AUTO"}
CUDA_LIBRARY = "_cuda.so"  # beside the extension; cawa_fast/_ops/native.py loads it


def cuda_options() -> list[str]:
    """CMake options for the CUDA operators, from the environment."""
    wish = os.environ.get("CAWA_FAST_CUDA", "auto").lower()
    if wish not in CUDA:
        raise SystemExit(f"cawa_fast: CAWA_FAST_CUDA must be 0, 1 or auto, not {wish!r}.")
    architectures = os.environ.get("CAWA_FAST_CUDA_ARCHITECTURES")
    return [f"-DCAWA_FAST_CUDA={CUDA[wish]}"] + (
        [f"-DCAWA_FAST_CUDA_ARCHITECTURES={architectures}"] if architectures else []
    )


class CMakeBuild(build_ext):
    """Runs CMake and ninja, and installs the result where setuptools expects the extension."""

    def build_extension(self, ext: Extension) -> None:
        source, build = Path(__file__).parent.resolve(), Path(self.build_temp).resolve()
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        # cmake and ninja from PyPI are beside this Python, in a folder that is on PATH only in an activated venv.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        cmake = shutil.which("cmake", path=path)
        if cmake is None:
            raise SystemExit("cawa_fast: the native build needs CMake: `pip install cmake ninja pybind11`.")
        options = cuda_options() + shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = ["--parallel", str(self.parallel)] if self.parallel else []
        steps = [
            # --fresh: an old cache would name the tools of an earlier build environment, which pip has deleted.
            ["--fresh", "-S", source, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}", *options],
            ["--build", build, *jobs],
            ["--install", build, "--prefix", library.parent, "--strip"],
        ]
        try:
            for arguments in steps:
                subprocess.run([cmake, *arguments], check=True, env={**os.environ, "PATH": path})
        except subprocess.CalledProcessError:
            raise SystemExit(
                "cawa_fast: the native build failed; the reason is above. "
                "CAWA_FAST_NATIVE=0 in the environment installs without compiled code."
            ) from None
        if not library.is_file():
            raise SystemExit(f"cawa_fast: the native build did not make {library.name}.")

    def copy_extensions_to_source(self) -> None:
        """Copy the CUDA library too, for an editable install: setuptools copies only the extension module."""
        super().copy_extensions_to_source()
        built, installed = Path(self.build_lib) / "cawa_fast" / CUDA_LIBRARY, Path(__file__).parent / "cawa_fast"
        (installed / CUDA_LIBRARY).unlink(missing_ok=True)  # from an earlier build; this one may have none
        if built.is_file():
            shutil.copy2(built, installed)


native = os.environ.get("CAWA_FAST_NATIVE", "1") != "0"
setup(ext_modules=[Extension("cawa_fast._C", sources=[])] if native else [], cmdclass={"build_ext": CMakeBuild})

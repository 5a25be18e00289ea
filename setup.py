"""Bridge from setuptools to CMakeLists.txt, which alone describes the native build; the rest is in pyproject.toml.

CAWA_FAST_NATIVE=0 in the environment installs the package without compiled code. Any other build either gives the
compiled extension or fails with the compiler's message: an optional extension would fail silently under `pip -q`.
CMAKE_ARGS in the environment adds options for CMake.
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


class CMakeBuild(build_ext):
    """Runs CMake and ninja, and installs the result where setuptools expects the extension."""

    def build_extension(self, ext: Extension) -> None:
        source, build = Path(__file__).parent.resolve(), Path(self.build_temp).resolve()
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        # cmake and ninja from PyPI lie beside this Python, which is not on PATH when the venv is not activated.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        cmake = shutil.which("cmake", path=path)
        if cmake is None:
            raise SystemExit("cawa_fast: the native build needs CMake: `pip install cmake ninja pybind11`.")
        options = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = ["--parallel", str(self.parallel)] if self.parallel else []
        steps = [
            # --fresh: a kept cache would name the tools of an earlier, meanwhile deleted, build environment.
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


native = os.environ.get("CAWA_FAST_NATIVE", "1") != "0"
setup(ext_modules=[Extension("cawa_fast._C", sources=[])] if native else [], cmdclass={"build_ext": CMakeBuild})

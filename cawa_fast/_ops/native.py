"""Loads the compiled libraries: the extension ``cawa_fast._C`` and the CUDA operators in ``_cuda.so``.

Loading the extension registers ``torch.ops.cawa_fast_cpu``. Without it the package uses its other backends.
``CAWA_FAST_NATIVE=0`` in the environment disables it, at build time and at run time.

The CUDA operators ``torch.ops.cawa_fast_cuda`` are a separate library beside the extension. It is loaded only if torch
was built with CUDA.
"""

import importlib
import importlib.util
import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch  # before the extension, which uses the libraries that torch has loaded

_NAME = "cawa_fast._C"


def _load() -> tuple[ModuleType | None, str | None]:
    """The extension module, or None and the reason."""
    if os.environ.get("CAWA_FAST_NATIVE", "1") == "0":
        return None, "CAWA_FAST_NATIVE=0 in the environment switches the compiled extension off; unset it"
    if importlib.util.find_spec(_NAME) is None:
        return None, (
            f"there is no {_NAME} for this Python: cawa_fast was installed without compiled code (CAWA_FAST_NATIVE=0) "
            "or runs from a source tree; in the source tree run `pip install --no-build-isolation -e .`"
        )
    try:
        return importlib.import_module(_NAME), None
    except ImportError as error:
        reason = (
            f"{_NAME} is installed but does not load with torch {torch.__version__} (it needs 2.10 or later): {error}; "
            "rebuild it with `pip install --no-build-isolation --force-reinstall --no-deps` from the source tree"
        )
        warnings.warn(f"{reason}. Falling back to slower code.", RuntimeWarning, stacklevel=2)
        return None, reason


def _warn_of_source_tree(root: Path) -> None:
    """Warn if ``root`` is a source tree that has not been compiled, as a clone from which Python was started.

    It is imported even where a compiled cawa_fast is installed, since the current folder comes first in the path.
    """
    switched_off = os.environ.get("CAWA_FAST_NATIVE", "1") == "0"
    if switched_off or not (root / "CMakeLists.txt").is_file() or importlib.util.find_spec(_NAME) is not None:
        return
    warnings.warn(
        f"cawa_fast is imported from the source tree {root}, which is not compiled: on a CPU it takes many times as "
        "long. Run `pip install --no-build-isolation -e .` there or, if cawa_fast is installed, start Python in "
        "another folder. CAWA_FAST_NATIVE=0 in the environment accepts the slower code.",
        RuntimeWarning,
        stacklevel=2,
    )


_extension, _reason = _load()
if _extension is not None:
    _extension.instruction_set()  # raises here, not in the loss, if this processor lacks CAWA_FAST_CPU
else:
    _warn_of_source_tree(Path(__file__).resolve().parents[2])


_CUDA_LIBRARY = Path(__file__).parents[1] / "_cuda.so"


def _load_cuda() -> str | None:
    """Registers the CUDA operators. Returns None, or the reason why it could not."""
    if _extension is None:
        return _reason
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    if not _CUDA_LIBRARY.is_file():
        return (
            "cawa_fast was built without CUDA; with nvcc on PATH, rebuild it with CAWA_FAST_CUDA=1 in the environment"
        )
    try:
        torch.ops.load_library(str(_CUDA_LIBRARY))
    except OSError as error:
        reason = (
            f"{_CUDA_LIBRARY.name} is installed but does not load with torch {torch.__version__}: {error}; rebuild it "
            "with `pip install --no-build-isolation --force-reinstall --no-deps` from the source tree"
        )
        warnings.warn(f"{reason}. Falling back to slower code.", RuntimeWarning, stacklevel=2)
        return reason
    return None


_cuda_reason = _load_cuda()


def available() -> bool:
    """Whether the compiled operators of ``torch.ops.cawa_fast_cpu`` are registered."""
    return _extension is not None


def cuda_available() -> bool:
    """Whether the compiled CUDA operators of ``torch.ops.cawa_fast_cuda`` are registered."""
    return _cuda_reason is None


def why_no_cuda() -> str | None:
    """Why the compiled CUDA operators are missing and how to get them; None if they are loaded."""
    return _cuda_reason


def build_info() -> dict[str, Any] | None:
    """How the extension was built, or None without one.

    Keys: ``compiler``, ``cxx_standard``, ``build_type``, ``torch_target`` (the oldest torch that it runs on),
    ``torch_headers``, ``pybind11``, the lists ``instruction_sets`` and ``cuda_architectures`` (compute capabilities
    without the point, empty without CUDA); and ``cpu``, the instruction set that runs here: the best that this
    processor has, or ``CAWA_FAST_CPU`` of the environment.
    """
    return None if _extension is None else {**_extension.build_info(), "cpu": _extension.instruction_set()}


def instruction_sets() -> list[str]:
    """The compiled instruction sets that this processor supports, the best one last."""
    return [] if _extension is None else _extension.supported_instruction_sets()


def use_instruction_set(name: str) -> None:
    """Switch to another instruction set, for tests and benchmarks."""
    assert _extension is not None, _reason
    _extension.use_instruction_set(name)


def release_gradient_memory() -> None:
    """Free the buffer of the last large gradient, which is otherwise reused for the next one."""
    if _extension is not None:
        _extension.release_gradient_memory()


def why_not() -> str | None:
    """Why the compiled extension is missing and how to get it; None if it is loaded."""
    return _reason

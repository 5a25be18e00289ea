"""The compiled extension ``cawa_fast._C``: loaded once, here, when it is there.

Loading it registers ``torch.ops.cawa_fast_cpu``. Without it the package works through its other backends;
``CAWA_FAST_NATIVE=0`` in the environment asks for that, at run time as at build time.
"""

import importlib
import importlib.util
import os
import warnings
from types import ModuleType
from typing import Any

import torch  # first: the extension finds torch's libraries among those already loaded

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


_extension, _reason = _load()
if _extension is not None:
    _extension.instruction_set()  # a CAWA_FAST_CPU that this processor does not have is an error here, not in the loss


def available() -> bool:
    """Whether the compiled operators of ``torch.ops.cawa_fast_cpu`` are registered."""
    return _extension is not None


def build_info() -> dict[str, Any] | None:
    """How the extension was built, or None without one.

    Keys: ``compiler``, ``cxx_standard``, ``build_type``, ``torch_target`` (the oldest torch that it runs on),
    ``torch_headers``, ``pybind11``, the lists ``instruction_sets`` and ``cuda_architectures``; and ``cpu``, the
    instruction set that runs here: the best that this processor has, or ``CAWA_FAST_CPU`` of the environment.
    """
    return None if _extension is None else {**_extension.build_info(), "cpu": _extension.instruction_set()}


def instruction_sets() -> list[str]:
    """Those that this processor can run, the best one last."""
    return [] if _extension is None else _extension.supported_instruction_sets()


def use_instruction_set(name: str) -> None:
    """Run another instruction set from now on, for tests and benchmarks."""
    assert _extension is not None, _reason
    _extension.use_instruction_set(name)


def release_gradient_memory() -> None:
    """Free the memory of the last large gradient, which is kept for the next one."""
    if _extension is not None:
        _extension.release_gradient_memory()


def why_not() -> str | None:
    """Why there is no compiled extension and what to do about it; None if there is one."""
    return _reason

"""Triton kernels of cawa_fast, one file per operator, installed as the subpackage ``cawa_fast.kernels``.

The folder is at the top of the repository; ``pyproject.toml`` maps it into the package. It holds no public API. Only
``cawa_fast._ops`` imports it, and it imports nothing from the rest of the package.

Imported by its bare name, as by a program that was started in the repository, the folder would be a second copy, which
compiles every kernel again and shares no cache with the first. It therefore gives way to the package ``kernels`` of
PyPI, which transformers uses, and raises an ``ImportError`` where that is not installed.
"""

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder


def _next_package() -> ModuleSpec | None:
    """The package of this name that would be found without this folder; None if there is none."""
    here = os.path.dirname(os.path.realpath(__file__))
    path = [entry for entry in sys.path if os.path.realpath(os.path.join(entry, "kernels")) != here]
    found = PathFinder.find_spec(__name__, path)
    return found if found is not None and found.has_location else None  # a folder without __init__.py has none


def _is_probe() -> bool:
    """Whether ``importlib.import_module`` imports this, rather than a statement.

    transformers 5 looks for a version of the package so, and does not expect an ``ImportError`` for a package that
    ``find_spec`` has found. Statements are in ``try: ... except ImportError``, or in programs that are wrong.
    """
    frame = sys._getframe()
    while frame.f_back is not None and (
        frame.f_globals is globals() or frame.f_code.co_filename.startswith("<frozen importlib")
    ):
        frame = frame.f_back
    return frame.f_globals.get("__name__") == "importlib"


if __name__ != "cawa_fast.kernels":
    _spec = _next_package() if __name__ == "kernels" else None
    if _spec is not None and _spec.loader is not None:
        _module = importlib.util.module_from_spec(_spec)
        sys.modules[__name__] = _module  # the import system returns what it finds here
        _spec.loader.exec_module(_module)
    elif __name__ == "kernels" and _is_probe():
        __version__ = "0"  # older than any version that somebody needs
        __path__ = []  # no submodule can be imported
    else:
        raise ImportError(
            f"{__name__!r} is not importable by this name: import it as 'cawa_fast.kernels'", name=__name__
        )

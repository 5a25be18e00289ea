"""Importing the optional libraries with networks, with error messages that say what to install."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


def import_library(module: str, name: str | None = None) -> Any:
    """Import ``module`` of the extra ``models``, or its attribute ``name``, which lazy modules import only then.

    Raises:
        ImportError: it is not installed, or does not fit another library; the message says what to do.
    """
    try:
        with without_source_tree(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # between these libraries
            found = importlib.import_module(module)
            return found if name is None else getattr(found, name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is not installed, which this model needs: pip install 'cawa_fast[models]'", name=error.name
        ) from error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        raise ImportError(
            f"torchvision was built for another version of PyTorch than {torch.__version__} ({error}); install the "
            "torchvision that https://pytorch.org/get-started names for this version",
            name="torchvision",
        ) from error


@contextlib.contextmanager
def without_source_tree() -> Iterator[None]:
    """Inside the block, imports ignore the top folder of this repository, from which a program may have been started.

    transformers looks for a package named ``kernels`` and would find the repository's folder of that name.
    """
    before = sys.path[:]
    sys.path[:] = [entry for entry in before if not _is_source_tree(Path(entry))]
    try:
        yield
    finally:
        sys.path[:] = before


def _is_source_tree(folder: Path) -> bool:
    return (folder / "kernels" / "__init__.py").is_file() and (folder / "cawa_fast" / "__init__.py").is_file()

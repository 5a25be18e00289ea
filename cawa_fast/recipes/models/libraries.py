"""Importing other people's networks: what is missing, or does not fit, is named with the way out."""

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
    """Import ``module`` of the extra ``models``, or what it calls ``name`` (which may be what really imports it).

    Raises:
        ImportError: it is not installed, or what it needs does not fit; the message says what to do.
    """
    try:
        with without_source_tree(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # theirs, about one another
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
            f"torchvision was built for another torch than {torch.__version__} ({error}); pip install the torchvision "
            "that https://pytorch.org/get-started names beside this torch",
            name="torchvision",
        ) from error


@contextlib.contextmanager
def without_source_tree() -> Iterator[None]:
    """Imports do not find the top of this repository, as in programs that were started there.

    transformers looks for a package named ``kernels`` and would meet the repository's folder, which is not importable
    by that name.
    """
    before = sys.path[:]
    sys.path[:] = [entry for entry in before if not _is_source_tree(Path(entry))]
    try:
        yield
    finally:
        sys.path[:] = before


def _is_source_tree(folder: Path) -> bool:
    return (folder / "kernels" / "__init__.py").is_file() and (folder / "cawa_fast" / "__init__.py").is_file()

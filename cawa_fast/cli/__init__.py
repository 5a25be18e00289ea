"""The command line ``cawa-fast``."""

from .commands import main

__all__ = ["main"]

"""Triton kernels of cawa_fast, one file per operator, installed as the subpackage ``cawa_fast.kernels``.

The folder is at the top of the repository; ``pyproject.toml`` maps it into the package. It holds no public API. Only
``cawa_fast._ops`` imports it, and it imports nothing from the rest of the package.
"""

# Imported by its bare name, the folder would be a second copy, which compiles every kernel again and shares no cache
# with the first.
if __name__ != "cawa_fast.kernels":
    raise ImportError(f"{__name__!r} is not importable by this name: import it as 'cawa_fast.kernels'")

"""Triton kernels of cawa_fast, one file per operator, installed as the subpackage ``cawa_fast.kernels``.

The folder lies at the top of the repository; ``pyproject.toml`` maps it into the package. No public API lives here:
``cawa_fast/_ops/`` is the only caller, and kernels import nothing from above.
"""

# A second copy under the bare name would compile every kernel again and share no cache with the first.
if __name__ != "cawa_fast.kernels":
    raise ImportError(f"{__name__!r} is not importable by this name: import it as 'cawa_fast.kernels'")

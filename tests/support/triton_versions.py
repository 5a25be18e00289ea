"""Triton 3.6, which belongs to torch 2.11, beside the newest; `make setup` installs it in a folder of its own."""

import sys
from pathlib import Path

_FOLDER = Path(sys.prefix) / "triton-3.6"
OLDEST = _FOLDER if _FOLDER.is_dir() else None
WHY_NOT = f"there is no {_FOLDER.name} in this environment; `make setup` installs it"

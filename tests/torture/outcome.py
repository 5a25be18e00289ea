"""What every torture of the run folder returns."""

from __future__ import annotations

from typing import NamedTuple


class Outcome(NamedTuple):
    """The number of cases, how many of them ended as they should, and a line about each of the others."""

    tried: int
    survived: int
    lost: list[str]

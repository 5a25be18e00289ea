"""A class as a list describes it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from .text_files import shown

Colour = tuple[int, int, int]


class ClassEntry(NamedTuple):
    """A class of a list: its name, and perhaps its colour, its value in index masks, and that it is no class."""

    name: str
    colour: Colour | None = None
    value: int | None = None
    ignored: bool = False


def is_hex(text: object) -> bool:
    """Whether this is a colour as #rrggbb."""
    return isinstance(text, str) and re.fullmatch("#[0-9a-fA-F]{6}", text) is not None


def read_colour(channels: Any, where: str) -> Colour:
    """A colour from three channels, "#rrggbb" or "r, g, b"; an error begins with ``where``."""
    if is_hex(channels):
        channels = [int(channels[k : k + 2], 16) for k in (1, 3, 5)]
    elif isinstance(channels, str):  # "128 64 128", "(128, 64, 128)"
        channels = re.findall(r"[^\s,;()\[\]]+", channels) or channels
    try:
        red, green, blue = (int(channel) for channel in channels)
    except (TypeError, ValueError, OverflowError):  # also for an infinite number
        raise ValueError(f"{where}: {shown(channels)} is not a colour; give red, green, blue, each in 0..255") from None
    if not 0 <= min(red, green, blue) <= max(red, green, blue) <= 255:
        raise ValueError(f"{where}: the colour {(red, green, blue)} is outside 0..255")
    return red, green, blue

"""Charts by matplotlib that show users' text as it is."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib
from matplotlib.figure import Figure

PLAIN_TEXT: Any = {"text.parse_math": False, "text.usetex": False}
"""matplotlib's settings with which "$" and backslashes in the name of a class or run are ordinary characters."""


@contextlib.contextmanager
def plain_text(settings: Any = PLAIN_TEXT) -> Iterator[None]:
    """Inside it, charts are drawn and saved with ``settings``, and without warnings of letters that a font lacks."""
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing")
        warnings.filterwarnings("ignore", r"Matplotlib currently does not support .* natively")
        yield


def to_bytes(figure: Figure, settings: Any = PLAIN_TEXT, **options: Any) -> bytes:
    """The file that ``figure.savefig(**options)`` writes."""
    buffer = io.BytesIO()
    with plain_text(settings):
        figure.savefig(buffer, **options)
    return buffer.getvalue()

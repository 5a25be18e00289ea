"""JSON from files that a disk or a person may have changed: read within limits, and checked value by value.

A *check* takes a value and its name, such as ``iou[4]``, and raises a ``ValueError`` that says what is wrong with it.

>>> check = fields({"epoch": whole(1), "iou": listed(optional(number(0, 1)))})
>>> check({"epoch": 3, "iou": [0.25, None]}, "")
>>> check({"epoch": 3, "iou": [0.25, "0.5"]}, "")
Traceback (most recent call last):
    ...
ValueError: iou[1] is '0.5', not a number
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Check = Callable[[Any, str], None]

_LARGEST = 1 << 29  # bytes of a file; the metrics of 10,000 epochs with 150 classes take a third
_SHOWN = 60  # characters of a wrong value


def read_utf8(file: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        ValueError: it is no regular file, too large, or not UTF-8.
        OSError: it cannot be read.
    """
    if file.exists() and not file.is_file():  # a pipe would wait, a device has no end
        raise ValueError(f"{file} is no regular file")
    if (size := file.stat().st_size) > _LARGEST:
        raise ValueError(f"{file} has {size} bytes, more than any file of a run")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}, line {line} is damaged (it is not UTF-8: {error.reason})") from error


def parse_json(text: str) -> Any:
    """The value of a JSON text. It raises only ``ValueError``, also for deep nesting, and for NaN, which is no JSON."""

    def constant(name: str) -> Any:
        raise ValueError(f"it has the value {name}")

    try:
        return json.loads(text, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _misfit(value: Any, where: str, expected: str) -> ValueError:
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**_SHOWN else "a number of many digits"
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}…"
    return ValueError(f"{where or 'the value'} is {shown}, not {expected}")


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number in [low, high]."""

    def check(value: Any, where: str) -> None:
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not plain or (isinstance(value, int) and abs(value) >= 1 << 63) or not math.isfinite(value):
            raise _misfit(value, where, "a number")
        if not low <= value <= high:
            raise _misfit(value, where, f"from {low:g} to {high:g}" if high < math.inf else f"at least {low:g}")

    return check


def whole(low: int = -(1 << 63), high: int = (1 << 63) - 1) -> Check:
    """A whole number in [low, high]."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _misfit(value, where, "a whole number")
        if not low <= value <= high:
            raise _misfit(value, where, f"at least {low}" if value < low else f"at most {high}")

    return check


def text(value: Any, where: str) -> None:
    """A text."""
    if not isinstance(value, str):
        raise _misfit(value, where, "a text")


def flag(value: Any, where: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise _misfit(value, where, "true or false")


def optional(check: Check) -> Check:
    """A value that passes the check, or null."""
    return lambda value, where: None if value is None else check(value, where)


def listed(check: Check, length: int | None = None) -> Check:
    """A list, perhaps of this length, of values that pass the check."""

    def check_list(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)):
            raise _misfit(value, where, "a list")
        if length is not None and len(value) != length:
            raise ValueError(f"{where or 'the list'} has {len(value)} values, not {length}")
        for index, item in enumerate(value):
            check(item, f"{where}[{index}]")

    return check_list


def table(check: Check) -> Check:
    """An object of any keys, whose values pass the check."""

    def check_table(value: Any, where: str) -> None:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise _misfit(value, where, "an object")
        for key, item in value.items():
            check(item, f"{where}.{key}" if where else key)

    return check_table


def fields(needed: Mapping[str, Check], others: Mapping[str, Check] | None = None) -> Check:
    """An object that has the keys ``needed``, perhaps ``others``, and any more; their values pass the checks."""
    known = {**needed, **(others or {})}

    def check_fields(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise _misfit(value, where, "an object")
        if lacking := sorted(needed.keys() - value.keys()):
            raise ValueError(f"{where or 'it'} lacks {', '.join(map(repr, lacking))}")
        for key in known.keys() & value.keys():
            known[key](value[key], f"{where}.{key}" if where else key)

    return check_fields


def anything(value: Any, where: str) -> None:
    """Null, true or false, a number, a text, or a list of these."""
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if isinstance(item, (list, tuple)):
                raise _misfit(item, f"{where}[{index}]", "a plain value")
            anything(item, f"{where}[{index}]")
    elif value is not None and not isinstance(value, (bool, str)):
        number()(value, where)

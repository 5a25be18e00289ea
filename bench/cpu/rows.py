"""The rows of ``python -m bench cpu``."""

from __future__ import annotations

import dataclasses
import functools

from ..baselines import Implementation, make_implementation
from ..cases import Problem, make
from ..rows import SHAPES, Row, Size, Target

EXPONENTIALS = ("exponentials", "exponentials, one thread")
MACHINE = (*EXPONENTIALS, "copy", "copy, one thread")
"""Implementations that measure the machine and compute no operator."""

_TRAINING = ("eager", "eager, channels_last", "compile")
_COUNTS = {
    "confusion_matrix": ("eager", "eager, channels_last", "compile", "torchmetrics"),
    "cam_counts": ("eager", "eager, present", "compile"),
}
_REPEATED = ("ce-19", "ce-150", "resize-ce-19-x4", "resize-ce-150-x4", "confusion-19", "cam-19")
"""Rows that are also measured on one thread and on bfloat16."""


def implementation_of(row: Row, name: str) -> Implementation:
    """The implementation ``name`` of a row, with its input; the last two inputs are kept."""
    low, align_corners = row.low, row.align_corners
    if name == "ratio 4":
        low, align_corners = (row.high[0] // 4, row.high[1] // 4), False
    return make_implementation(name, row.operator, _problem(row.content, row.classes, low, row.high, align_corners))


@functools.lru_cache(maxsize=2)
def _problem(content: str, classes: int, low: Size, high: Size, align_corners: bool) -> Problem:
    return make(content, classes, low, high, align_corners=align_corners)


def _same_size(classes: int, high: Size, *targets: Target) -> Row:
    copy = Target("copy", 2.0 if classes == 19 else None, 1.3, within=True)
    return Row(f"ce-{classes}", "cross_entropy", classes, high, high, (*_TRAINING, "copy"), targets=(*targets, copy))


def _resize(classes: int, low: Size, high: Size, name: str, *targets: Target) -> Row:
    """A row of resize + cross-entropy; other ratios than 4 are compared with the row of ratio 4 as well."""
    return Row(
        f"resize-ce-{classes}-{name}",
        "cross_entropy",
        classes,
        low,
        high,
        _TRAINING if name == "x4" else (*_TRAINING, "ratio 4"),
        targets=targets if name == "x4" else (*targets, Target("ratio 4", 0.5, 1.0)),
        align_corners=name == "corners",
        note="align_corners" if name == "corners" else "",
    )


def _counts(operator: str, key: str, classes: int, content: str, least: float, aim: float) -> Row:
    high = dict(SHAPES)[classes]
    targets = (Target("eager", least, aim),)
    low = (high[0] // 4, high[1] // 4)
    return Row(key, operator, classes, low, high, _COUNTS[operator], targets=targets, content=content, note=content)


def _against_one_thread(row: Row) -> Row:
    """Also measures what a second thread brings to exponentials, and to a copy where memory is the limit."""
    return dataclasses.replace(
        row,
        key=f"threads-{row.key}",
        baselines=("one thread", *(MACHINE if row.same_size else EXPONENTIALS)),
        targets=(Target("one thread", 1.7, 1.9),),
        note=", ".join(filter(None, (row.note, "two threads against one"))),
    )


def _bfloat16(row: Row) -> Row:
    return dataclasses.replace(
        row,
        key=f"bfloat16-{row.key}",
        baselines=("float32",),
        targets=(Target("float32", 1.0, 1.5),),
        ours="bfloat16",
        dtype="bfloat16",
        note=", ".join(filter(None, (row.note, "bfloat16 against float32"))),
    )


def _loss(operator: str, classes: int, *targets: Target) -> Row:
    """A loss other than the cross-entropy, at ratio 4."""
    high = dict(SHAPES)[classes]
    libraries = {"dice": ("smp", "MONAI"), "ce_dice": ("smp", "MONAI"), "focal": ("smp",), "ohem": ()}[operator]
    return Row(
        f"resize-{operator.replace('_', '-')}-{classes}",
        operator,
        classes,
        (high[0] // 4, high[1] // 4),
        high,
        ("eager", *(() if operator == "ohem" else ("compile",)), *libraries, "cross-entropy"),
        targets=targets,
    )


def _rows() -> tuple[Row, ...]:
    (_, wide), (_, square) = SHAPES
    rows = [
        _same_size(19, wide, Target("eager", 8), Target("compile", 3.5)),
        _same_size(150, square, Target("eager", 7)),
        _resize(19, (128, 256), wide, "x4", Target("eager", 40, 60)),
        _resize(150, (128, 128), square, "x4", Target("eager", 60, 90)),
    ]
    whole = {19: Target("eager", 60, 90), 150: Target("eager", 100, 140)}
    other = {19: Target("eager", 27), 150: Target("eager", 37)}
    for classes, high in SHAPES:
        for name, ratio, target in (("corners", 4, other), ("x8", 8, whole), ("x3.7", 3.7, other)):
            low = (round(high[0] / ratio), round(high[1] / ratio))
            rows.append(_resize(classes, low, high, name, target[classes]))
    sums = Target("cross-entropy", 1.6, within=True)
    rows += [
        _loss("dice", 19, Target("eager", 15)),
        _loss("dice", 150, Target("eager", 20)),
        _loss("ce_dice", 19, Target("eager", 15), sums),
        _loss("ce_dice", 150, Target("eager", 20), sums),
        _loss("focal", 19, Target("eager", 20)),
        _loss("focal", 150, Target("eager", 30)),
        _loss("ohem", 19, Target("eager", 8)),
    ]
    rows += [
        _counts("confusion_matrix", "confusion-19", 19, "realistic", 80, 160),
        _counts("confusion_matrix", "confusion-19-noise", 19, "noise", 12, 20),
        _counts("cam_counts", "cam-19", 19, "realistic", 80, 160),
        _counts("cam_counts", "cam-19-noise", 19, "noise", 20, 40),
        _counts("cam_counts", "cam-150", 150, "realistic", 80, 160),
    ]
    plain = {row.key: row for row in rows}
    rows += [_against_one_thread(plain[key]) for key in _REPEATED]
    rows += [_bfloat16(plain[key]) for key in _REPEATED]
    return tuple(rows)


ROWS = _rows()
"""In the order of the table."""

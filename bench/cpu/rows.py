"""The rows of the CPU benchmark: operator, shapes, rivals, and what is to be reached."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from .. import baselines, floors
from ..cases import Problem, make

EXPONENTIALS = ("exponentials", "exponentials, one thread")
MACHINE = (*EXPONENTIALS, "copy", "copy, one thread")
"""Contenders that say something of the machine and nothing of an operator."""

QUICK = 8  # the factor by which --quick shrinks heights and widths


@dataclass(frozen=True)
class Target:
    """What a row shall reach against one rival: ``rival / ours`` at least ``least``, better ``aim``.

    With ``within`` it is ``ours / rival``, at most ``least``, better ``aim``. None: no such goal.
    """

    rival: str
    least: float | None
    aim: float | None
    within: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: what ``--rows`` selects by.
        operator: of :mod:`cawa_fast.functional`.
        classes, low, high: ``C``, ``(h, w)`` and ``(H, W)``; there are always two images.
        ours: the contender that stands in the column "ours".
        rivals: the others, and what the table says of them.
        targets: what is to be reached.
        content: "realistic" or "noise".
        note: what the title adds to operator and shape.
    """

    key: str
    operator: str
    classes: int
    low: tuple[int, int]
    high: tuple[int, int]
    rivals: tuple[str, ...]
    targets: tuple[Target, ...]
    ours: str = "ours"
    content: str = "realistic"
    align_corners: bool = False
    note: str = ""

    @property
    def title(self) -> str:
        """Operator and shape, as in the table."""
        shape = f"2×{self.classes}×{self.low[0]}×{self.low[1]}"
        if self.low == self.high:
            title = f"{self.operator} {shape}"
        else:
            resize = "resize + " if self.operator == "cross_entropy" else ""
            title = f"{resize}{self.operator} {shape} to {self.high[0]}×{self.high[1]}"
        return title + (f", {self.note}" if self.note else "")

    @property
    def names(self) -> tuple[str, ...]:
        """All contenders, ours first; the copy is always among them, for the floor."""
        return (self.ours, *self.rivals, *(() if "copy" in self.rivals else ("copy",)))

    @property
    def floor(self) -> floors.Floor:
        """The fewest bytes and exponentials, with uint8 labels."""
        size = 2 if self.ours == "bfloat16" else 4
        shape = (2, self.classes, self.low, self.high, size)
        if self.operator == "cross_entropy":
            return floors.cross_entropy(*shape, gather=False)
        return {"confusion_matrix": floors.confusion_matrix, "cam_counts": floors.cam_counts}[self.operator](*shape)

    def shrunk(self) -> Row:
        """The same at a small size, for trials."""

        def small(size: tuple[int, int]) -> tuple[int, int]:
            return -(-size[0] // QUICK), -(-size[1] // QUICK)

        return dataclasses.replace(self, low=small(self.low), high=small(self.high))


def contender(row: Row, name: str) -> baselines.Contender:
    """The contender ``name`` of a row, with its input; the last problem made is kept."""
    low = row.low
    if name == "ratio 4":
        low = (row.high[0] // 4, row.high[1] // 4)
    align_corners = row.align_corners and name != "ratio 4"
    return baselines.build(name, row.operator, _problem(row.content, row.classes, low, row.high, align_corners))


@functools.lru_cache(maxsize=2)
def _problem(content: str, classes: int, low: tuple[int, int], high: tuple[int, int], align_corners: bool) -> Problem:
    return make(content, classes, low, high, align_corners=align_corners)


_TRAINING = ("eager", "eager, channels_last", "compile")
_COUNTS = {
    "confusion_matrix": ("eager", "eager, channels_last", "compile", "torchmetrics"),
    "cam_counts": ("eager", "eager, present", "compile"),
}
_WIDE, _SQUARE = (512, 1024), (512, 512)


def _same_size(classes: int, high: tuple[int, int], *targets: Target) -> Row:
    copy = Target("copy", 2.0 if classes == 19 else None, 1.3, within=True)
    rivals = (*_TRAINING, "copy")
    return Row(f"ce-{classes}", "cross_entropy", classes, high, high, rivals, (*targets, copy))


def _resize(
    classes: int, low: tuple[int, int], high: tuple[int, int], name: str, *targets: Target, align_corners: bool = False
) -> Row:
    """A row of resize + cross-entropy; without targets it is compared with the row of ratio 4."""
    note = "align_corners" if align_corners else ""
    rivals = _TRAINING if targets else (*_TRAINING, "ratio 4")
    return Row(
        f"resize-ce-{classes}-{name}",
        "cross_entropy",
        classes,
        low,
        high,
        rivals,
        targets or (Target("ratio 4", 0.5, 1.0),),
        align_corners=align_corners,
        note=note,
    )


def _counts(operator: str, key: str, classes: int, content: str, least: float, aim: float) -> Row:
    low, high = ((128, 256), _WIDE) if classes == 19 else ((128, 128), _SQUARE)
    targets = (Target("eager", least, aim),)
    return Row(key, operator, classes, low, high, _COUNTS[operator], targets, content=content, note=content)


def _rows() -> tuple[Row, ...]:
    rows = [
        _same_size(19, _WIDE, Target("eager", 8, None), Target("compile", 3.5, None)),
        _same_size(150, _SQUARE, Target("eager", 7, None)),
        _resize(19, (128, 256), _WIDE, "x4", Target("eager", 15, 25)),
        _resize(150, (128, 128), _SQUARE, "x4", Target("eager", 20, 30)),
    ]
    for classes, high in ((19, _WIDE), (150, _SQUARE)):
        eighth = (high[0] // 8, high[1] // 8)
        odd = (round(high[0] / 3.7), round(high[1] / 3.7))
        rows += [
            _resize(classes, (high[0] // 4, high[1] // 4), high, "corners", align_corners=True),
            _resize(classes, eighth, high, "x8"),
            _resize(classes, odd, high, "x3.7"),
        ]
    rows += [
        _counts("confusion_matrix", "confusion-19", 19, "realistic", 40, 80),
        _counts("confusion_matrix", "confusion-19-noise", 19, "noise", 12, 20),
        _counts("cam_counts", "cam-19", 19, "realistic", 40, 80),
        _counts("cam_counts", "cam-19-noise", 19, "noise", 20, 40),
        _counts("cam_counts", "cam-150", 150, "realistic", 80, 160),
    ]
    plain = {row.key: row for row in rows}
    for key in ("ce-19", "ce-150", "resize-ce-19-x4", "resize-ce-150-x4", "confusion-19", "cam-19"):
        row = plain[key]
        threads = Target("one thread", 1.7, 1.9)
        note = f"{row.note}, " if row.note else ""
        rows.append(
            dataclasses.replace(
                row,
                key=f"threads-{key}",
                # what a second thread is worth to exponentials, and where memory is the limit to the copy
                rivals=("one thread", *(MACHINE if row.low == row.high else EXPONENTIALS)),
                targets=(threads,),
                note=f"{note}two threads against one",
            )
        )
    for key in ("ce-19", "ce-150", "resize-ce-19-x4", "resize-ce-150-x4", "confusion-19", "cam-19"):
        row = plain[key]
        note = f"{row.note}, " if row.note else ""
        rows.append(
            dataclasses.replace(
                row,
                key=f"bfloat16-{key}",
                rivals=("float32",),
                targets=(Target("float32", 1.0, 1.5),),
                ours="bfloat16",
                note=f"{note}bfloat16 against float32",
            )
        )
    return tuple(rows)


ROWS = _rows()
"""In the order of the table."""

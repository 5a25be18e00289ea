"""A row of the operator benchmarks: what ``python -m bench cpu`` and ``python -m bench gpu`` measure."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click
import torch

from . import floors

Size = tuple[int, int]
SQUARE, WIDE = (512, 512), (512, 1024)
SHAPES = ((19, WIDE), (150, SQUARE))
"""Classes and label size of the main rows, as in Cityscapes and ADE20K."""

LOSSES = {"cross_entropy": "cross_entropy", "dice": "Dice", "ce_dice": "cross_entropy + Dice", "focal": "focal loss"}
LOSSES["ohem"] = "hard pixels (OHEM)"
"""Operators with a backward pass, and their names in the tables."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_QUICK = 8  # the factor by which --quick divides heights and widths


@dataclass(frozen=True)
class Target:
    """A goal against one baseline: ``baseline / ours`` at least ``least``, ideally ``aim``.

    With ``within``, ``ours / baseline`` at most ``least``, ideally ``aim``. None: no such goal. On a GPU the baselines
    "bytes" and "exponentials" stand for the share of that limit which ours reaches.
    """

    baseline: str
    least: float | None
    aim: float | None = None
    within: bool = False


@dataclass(frozen=True)
class Row:
    """An operator on an input of one shape, with the baselines that it is compared with.

    Attributes:
        key: what ``--rows`` selects by.
        operator: of :mod:`cawa_fast.functional`.
        classes, low, high: ``C``, logits ``(h, w)``, labels ``(H, W)``.
        baselines: names of :data:`bench.baselines.MEANING`.
        compiled: baselines that take long to compile; on a GPU they are measured after the other rows.
        targets: the goals.
        memory: bytes that one call of ours may add, if there is a goal.
        ours: the implementation in the column "ours".
        images: ``N``.
        dtype, layout: of the logits that ours gets.
        content: of :func:`bench.cases.make`.
        align_corners: of the resize.
        note: what the title adds to operator and shape.
    """

    key: str
    operator: str
    classes: int
    low: Size
    high: Size
    baselines: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    memory: int | None = None
    ours: str = "ours"
    images: int = 2
    dtype: str = "float32"
    layout: str = "contiguous"
    content: str = "realistic"
    align_corners: bool = False
    note: str = ""

    @property
    def same_size(self) -> bool:
        """Whether logits have the labels' size."""
        return self.low == self.high

    @property
    def title(self) -> str:
        """Operator, shape and note, as in the tables."""
        resize = "resize + " if self.operator in LOSSES and not self.same_size else ""
        to = "" if self.same_size else f" to {self.high[0]}×{self.high[1]}"
        shape = f"{self.images}×{self.classes}×{self.low[0]}×{self.low[1]}{to}"
        return f"{resize}{LOSSES.get(self.operator, self.operator)} {shape}" + (f", {self.note}" if self.note else "")

    @property
    def names(self) -> tuple[str, ...]:
        """All implementations, ours first; the copy is always among them, for the floor."""
        return tuple(dict.fromkeys((self.ours, *self.baselines, *self.compiled, "copy")))

    def floor(self, *, gather: bool, maps: int | None = None) -> floors.Floor:
        """The least work with uint8 labels; arguments as in :mod:`bench.floors`."""
        shape = (self.images, self.classes, self.low, self.high, DTYPES[self.dtype].itemsize)
        if self.operator in ("dice", "ce_dice"):
            return floors.region_loss(*shape)
        if self.operator in LOSSES:
            return floors.cross_entropy(*shape, gather=gather)
        if self.operator == "confusion_matrix":
            return floors.confusion_matrix(*shape)
        if self.operator == "cam_counts":
            return floors.cam_counts(*shape, maps=maps)
        raise ValueError(f"bench/floors.py has no floor for the operator {self.operator!r}")

    def shrunk(self) -> Row:
        """The same with heights and widths divided by 8, for ``--quick``."""
        low, high = ((-(-height // _QUICK), -(-width // _QUICK)) for height, width in (self.low, self.high))
        return dataclasses.replace(self, low=low, high=high)


AnyRow = TypeVar("AnyRow", bound=Any)


def select(rows: Sequence[AnyRow], patterns: str) -> list[AnyRow]:
    """The rows whose key matches one of the comma-separated glob ``patterns``.

    Raises:
        click.BadParameter: a pattern matches no row.
    """
    words = [word.strip() for word in patterns.split(",")]
    for word in words:
        if not any(fnmatch.fnmatchcase(row.key, word) for row in rows):
            raise click.BadParameter(f"{word!r} matches no row; --list shows them", param_hint="--rows")
    return [row for row in rows if any(fnmatch.fnmatchcase(row.key, word) for word in words)]

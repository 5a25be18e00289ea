"""The rows of the GPU benchmark: operator, shape, dtype, rivals, and what is to be reached on an H200."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field

import torch

from .. import cases, floors
from ..baselines import Contender, build
from ..cases import IGNORE, Problem
from ..cpu.rows import Target
from .timing import Machine, copies_of

IMAGES = 8
SCENES = 2  # that are drawn; the others are their mirror images
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: what ``--rows`` selects by.
        operator: of :mod:`cawa_fast.functional`.
        classes, low, high: ``C``, ``(h, w)``, ``(H, W)``.
        rivals: contenders beside ours.
        compiled: contenders that take long to compile, and are measured when all rows have been.
        targets: what is to be reached; ``rival`` "bytes" or "exponentials" is a share of that limit.
        memory: bytes of extra memory that are allowed, if there is a goal.
        content: see :func:`bench.cases.make`.
        layout: of the logits that ours gets.
        images: ``N``.
    """

    key: str
    operator: str
    classes: int
    low: tuple[int, int]
    high: tuple[int, int]
    dtype: str = "float32"
    rivals: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    memory: int | None = None
    content: str = "realistic"
    layout: str = "contiguous"
    images: int = IMAGES

    @property
    def same_size(self) -> bool:
        """Whether logits have the labels' size."""
        return self.low == self.high

    @property
    def title(self) -> str:
        """Operator, shape and what else tells the row from others."""
        resize = "resize + " if self.operator == "cross_entropy" and not self.same_size else ""
        to = "" if self.same_size else f" to {self.high[0]}×{self.high[1]}"
        shape = f"{self.images}×{self.classes}×{self.low[0]}×{self.low[1]}{to}"
        notes = [self.dtype]
        notes += [self.layout] if self.layout != "contiguous" else []
        notes += [self.content] if self.operator != "cross_entropy" else []
        return f"{resize}{self.operator} {shape}, {', '.join(notes)}"

    def floor(self, maps: int | None = None) -> floors.Floor:
        """The least work, with uint8 labels; ``maps`` that CAM counts must read."""
        shape = (self.images, self.classes, self.low, self.high, DTYPES[self.dtype].itemsize)
        if self.operator == "cross_entropy":
            return floors.cross_entropy(*shape)
        if self.operator == "confusion_matrix":
            return floors.confusion_matrix(*shape)
        return floors.cam_counts(*shape, maps=maps)


@functools.lru_cache(maxsize=16)
def _scenes(content: str, classes: int, low: tuple[int, int], high: tuple[int, int]) -> Problem:
    return cases.make(content, classes, low, high, images=SCENES)


def problems(row: Row, machine: Machine) -> list[Problem]:
    """The row's input, as often as is needed to exceed the device's cache."""
    # logits of the labels' size are upsampled on the device: on the CPU that takes seconds
    low = (max(row.high[0] // 4, 1), max(row.high[1] // 4, 1)) if row.same_size else row.low
    given = cases.repeat(_scenes(row.content, row.classes, low, row.high), row.images, machine.device, row.low)
    logits = given.logits.to(DTYPES[row.dtype])
    if row.layout == "channels_last":
        logits = logits.contiguous(memory_format=torch.channels_last)
    given = dataclasses.replace(given, logits=logits)
    size = logits.numel() * logits.element_size() + given.labels.numel()
    more = range(copies_of(machine, size) - 1)
    return [given, *(dataclasses.replace(given, logits=logits.clone(), labels=given.labels.clone()) for _ in more)]


def contender(row: Row, name: str, machine: Machine, given: list[Problem], backend: str = "inductor") -> Contender:
    """The contender ``name`` of a row whose input is ``given``."""
    if name == "labels":
        from .limits import reads_labels

        return reads_labels(given)
    if name == "ours, realistic":
        mixed = problems(dataclasses.replace(row, content="realistic"), machine)
        return build("ours", row.operator, *mixed)._replace(name=name)
    return build(name, row.operator, *given, backend=backend)


def scored_maps(problem: Problem, classes: int) -> int:
    """How many maps belong to classes that their image's labels contain."""
    labels = problem.labels.cpu().flatten(1).long()
    return sum(int((torch.bincount(image, minlength=IGNORE + 1)[:classes] > 0).sum()) for image in labels)


# ----------------------------------------------------------------------------------------------------- all the rows

_WIDE, _SQUARE = (512, 1024), (512, 512)
_SHAPES = ((19, _WIDE), (150, _SQUARE))


def _compiled(dtype: str) -> tuple[str, ...]:
    """Compilation takes seconds each time: all of it for float32, none for float16, which is as fast as bfloat16."""
    return {"float32": ("compile", "compile, max-autotune"), "bfloat16": ("compile",), "float16": ()}[dtype]


def _shrunk(size: tuple[int, int], ratio: float) -> tuple[int, int]:
    return round(size[0] / ratio), round(size[1] / ratio)


def _bytes(images: int, classes: int, size: tuple[int, int], dtype: str) -> int:
    return images * classes * size[0] * size[1] * DTYPES[dtype].itemsize


def _cross_entropy(classes: int, high: tuple[int, int], dtype: str, layout: str) -> Row:
    goal = layout == "contiguous"
    targets = [Target("bytes", 0.85, None)]
    if goal:
        targets += [Target("eager", 3, None), Target("compile", 1.3, None), Target("Liger", 5, None)]
    autocast = ("eager, autocast",) if dtype != "float32" else ()
    short = {"float32": "", "bfloat16": "-bf16", "float16": "-fp16"}[dtype]
    return Row(
        f"ce-{classes}{short}" + ("" if goal else "-channels_last"),
        "cross_entropy",
        classes,
        high,
        high,
        dtype,
        ("eager", "eager, channels_last", *autocast, *(("Liger",) if goal else ()), "copy"),
        _compiled(dtype) if goal else (),
        tuple(targets),
        _bytes(IMAGES, classes, high, dtype),
        layout=layout,
    )


def _resize(classes: int, high: tuple[int, int], ratio: float, dtype: str) -> Row:
    low = _shrunk(high, ratio)
    goal = ratio == 4
    eager = 7 if classes == 150 else 5
    targets = [Target("exponentials", 0.5, None), Target("eager", eager, None)]
    if dtype != "float16":
        targets.append(Target("compile", 2.5, None))
    autocast = ("eager, autocast",) if dtype == "bfloat16" else ()
    liger = ("Liger",) if goal and dtype == "float32" else ()
    short = {"float32": "", "bfloat16": "-bf16", "float16": "-fp16"}[dtype]
    return Row(
        f"resize-ce-{classes}-x{ratio:g}{short}",
        "cross_entropy",
        classes,
        low,
        high,
        dtype,
        ("eager", "eager, channels_last", *autocast, *liger),
        _compiled(dtype) if goal else (),
        tuple(targets) if goal else (),
        # the low-resolution gradient, and eight bytes a pixel
        _bytes(IMAGES, classes, low, dtype) + 8 * IMAGES * high[0] * high[1] if goal else None,
    )


def _counts(operator: str, classes: int, high: tuple[int, int], content: str, dtype: str = "float32") -> Row:
    key = {"confusion_matrix": "confusion", "cam_counts": "cam"}[operator]
    key += f"-{classes}" + {"realistic": "", "noise": "-noise", "one class": "-one"}[content]
    key += "-bf16" if dtype == "bfloat16" else ""
    rivals: tuple[str, ...] = ("eager", "labels")
    targets: tuple[Target, ...] = ()
    if content == "realistic":
        other = ("eager, channels_last", "MMSegmentation") if operator == "confusion_matrix" else ("eager, present",)
        rivals = ("eager", *other, "torchmetrics", "torchmetrics, deterministic", "labels")
        deterministic = Target("torchmetrics, deterministic", 30, None)
        targets = (Target("eager", 15, None), deterministic, Target("labels", 3, None, within=True))
    elif content == "one class":
        rivals = ("eager", "labels", "ours, realistic")
        targets = (Target("ours, realistic", 2, None, within=True),)
    compiled = ("compile",) if content == "realistic" and dtype == "float32" else ()
    low = _shrunk(high, 4)
    return Row(key, operator, classes, low, high, dtype, rivals, compiled, targets, content=content)


def _rows() -> tuple[Row, ...]:
    rows = [
        _cross_entropy(classes, high, dtype, layout)
        for layout in ("contiguous", "channels_last")
        for classes, high in _SHAPES
        for dtype in ("float32", "bfloat16")
    ]
    for classes, high in reversed(_SHAPES):
        rows += [_resize(classes, high, 4, dtype) for dtype in DTYPES]
    for ratio in (3.7, 8):
        for classes, high in reversed(_SHAPES):
            rows += [_resize(classes, high, ratio, dtype) for dtype in ("float32", "bfloat16")]
    for operator in ("confusion_matrix", "cam_counts"):
        for classes, high in _SHAPES:
            rows += [_counts(operator, classes, high, content) for content in ("realistic", "one class", "noise")]
            rows.append(_counts(operator, classes, high, "realistic", "bfloat16"))
    return tuple(rows)


ROWS = _rows()
"""In the order of the table."""


def shrunk(row: Row) -> Row:
    """The same at a tiny size, for a rehearsal."""
    high = (8, 16) if row.high == _WIDE else (12, 12)
    ratio = row.high[0] / row.low[0]
    low = high if row.same_size else (max(round(high[0] / ratio), 2), max(round(high[1] / ratio), 2))
    return dataclasses.replace(row, classes=min(row.classes, 5), low=low, high=high, images=2)


REHEARSED = ("ce-19", "ce-19-bf16-channels_last", "resize-ce-150-x4-fp16", "confusion-19", "cam-19", "cam-19-one")
"""Rows that a rehearsal runs: every kind of row once."""


@dataclass(frozen=True)
class Unit:
    """A piece of the benchmark that is done or not done: some contenders of a row, beside ours."""

    row: Row
    names: tuple[str, ...]
    kind: str = field(default="rivals")

    @property
    def name(self) -> str:
        """As in the list of what is done."""
        return f"{self.row.key}: {self.kind}"


def units(rows: tuple[Row, ...]) -> list[Unit]:
    """What is to be measured, the most important first: goals, then slower rivals of those, then the rest.

    torchmetrics, whose import alone takes ten seconds, and what is compiled are pieces of their own.
    """
    goals = [row for row in rows if row.targets]
    others = [row for row in rows if not row.targets]
    ordered = [Unit(row, _quick(row)) for row in goals]
    ordered += [Unit(row, row.compiled[:1], "compile") for row in goals if row.compiled]
    ordered += [Unit(row, slow, "torchmetrics") for row in goals if (slow := _torchmetrics(row))]
    ordered += [Unit(row, _quick(row)) for row in others]
    ordered += [Unit(row, row.compiled[:1], "compile") for row in others if row.compiled]
    ordered += [Unit(row, row.compiled[1:], "max-autotune") for row in goals if row.compiled[1:]]
    return ordered


def _torchmetrics(row: Row) -> tuple[str, ...]:
    return tuple(name for name in row.rivals if name.startswith("torchmetrics"))


def _quick(row: Row) -> tuple[str, ...]:
    return tuple(name for name in row.rivals if not name.startswith("torchmetrics"))

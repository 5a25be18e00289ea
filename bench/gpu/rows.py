"""The rows of ``python -m bench gpu``, and the goals on an H200."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch

from .. import cases
from ..baselines import Implementation, make_implementation
from ..cases import IGNORE, Problem
from ..rows import DTYPES, SHAPES, WIDE, Row, Size, Target
from .timing import Machine, copies_of

IMAGES = 8
_SCENES = 2  # drawn; the others are their mirror images
_SUFFIX = {"float32": "", "bfloat16": "-bf16", "float16": "-fp16"}


@functools.lru_cache(maxsize=16)
def _scenes(content: str, classes: int, low: Size, high: Size) -> Problem:
    return cases.make(content, classes, low, high, images=_SCENES)


def inputs_of(row: Row, machine: Machine) -> list[Problem]:
    """The row's input, in as many copies as exceed the device's cache."""
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


def implementation_on(
    machine: Machine, row: Row, name: str, given: list[Problem], backend: str = "inductor"
) -> Implementation:
    """The implementation ``name`` of a row whose inputs are ``given``."""
    if name == "labels":
        from .limits import reads_labels

        return reads_labels(given)
    if name == "ours, realistic":
        mixed = inputs_of(dataclasses.replace(row, content="realistic"), machine)
        return make_implementation("ours", row.operator, *mixed)._replace(name=name)
    return make_implementation(name, row.operator, *given, backend=backend)


def scored_maps(problem: Problem, classes: int) -> int:
    """How many maps belong to a class that is in the labels of the map's image."""
    labels = problem.labels.cpu().flatten(1).long()
    return sum(int((torch.bincount(image, minlength=IGNORE + 1)[:classes] > 0).sum()) for image in labels)


# ----------------------------------------------------------------------------------------------------- all the rows


def _compiled(dtype: str) -> tuple[str, ...]:
    """Compiling takes seconds: both modes for float32, none for float16, which is as fast as bfloat16."""
    return {"float32": ("compile", "compile, max-autotune"), "bfloat16": ("compile",), "float16": ()}[dtype]


def _shrunk(size: Size, ratio: float) -> Size:
    return round(size[0] / ratio), round(size[1] / ratio)


def _bytes(images: int, classes: int, size: Size, dtype: str) -> int:
    return images * classes * size[0] * size[1] * DTYPES[dtype].itemsize


def _cross_entropy(classes: int, high: Size, dtype: str, layout: str) -> Row:
    goal = layout == "contiguous"
    targets = [Target("bytes", 0.85)]
    if goal:
        targets += [Target("eager", 3), Target("compile", 1.3), Target("Liger", 5)]
    autocast = ("eager, autocast",) if dtype != "float32" else ()
    return Row(
        f"ce-{classes}{_SUFFIX[dtype]}" + ("" if goal else "-channels_last"),
        "cross_entropy",
        classes,
        high,
        high,
        ("eager", "eager, channels_last", *autocast, *(("Liger",) if goal else ()), "copy"),
        _compiled(dtype) if goal else (),
        tuple(targets),
        _bytes(IMAGES, classes, high, dtype),
        images=IMAGES,
        dtype=dtype,
        layout=layout,
        note=dtype if goal else f"{dtype}, {layout}",
    )


def _resize(classes: int, high: Size, ratio: float, dtype: str) -> Row:
    low = _shrunk(high, ratio)
    goal = ratio == 4
    targets = [Target("exponentials", 0.5), Target("eager", 7 if classes == 150 else 5)]
    if dtype != "float16":
        targets.append(Target("compile", 2.5))
    autocast = ("eager, autocast",) if dtype == "bfloat16" else ()
    liger = ("Liger",) if goal and dtype == "float32" else ()
    return Row(
        f"resize-ce-{classes}-x{ratio:g}{_SUFFIX[dtype]}",
        "cross_entropy",
        classes,
        low,
        high,
        ("eager", "eager, channels_last", *autocast, *liger),
        _compiled(dtype) if goal else (),
        tuple(targets) if goal else (),
        # the low-resolution gradient, and eight bytes a pixel
        _bytes(IMAGES, classes, low, dtype) + 8 * IMAGES * high[0] * high[1] if goal else None,
        images=IMAGES,
        dtype=dtype,
        note=dtype,
    )


def _counts(operator: str, classes: int, high: Size, content: str, dtype: str = "float32") -> Row:
    key = {"confusion_matrix": "confusion", "cam_counts": "cam"}[operator]
    key += f"-{classes}" + {"realistic": "", "noise": "-noise", "one class": "-one"}[content] + _SUFFIX[dtype]
    baselines: tuple[str, ...] = ("eager", "labels")
    targets: tuple[Target, ...] = ()
    if content == "realistic":
        other = ("eager, channels_last", "MMSegmentation") if operator == "confusion_matrix" else ("eager, present",)
        baselines = ("eager", *other, "torchmetrics", "torchmetrics, deterministic", "labels")
        deterministic = Target("torchmetrics, deterministic", 30)
        targets = (Target("eager", 15), deterministic, Target("labels", 3, within=True))
    elif content == "one class":
        baselines = ("eager", "labels", "ours, realistic")
        targets = (Target("ours, realistic", 2, within=True),)
    return Row(
        key,
        operator,
        classes,
        _shrunk(high, 4),
        high,
        baselines,
        ("compile",) if content == "realistic" and dtype == "float32" else (),
        targets,
        images=IMAGES,
        dtype=dtype,
        content=content,
        note=f"{dtype}, {content}",
    )


def _rows() -> tuple[Row, ...]:
    rows = [
        _cross_entropy(classes, high, dtype, layout)
        for layout in ("contiguous", "channels_last")
        for classes, high in SHAPES
        for dtype in ("float32", "bfloat16")
    ]
    for classes, high in reversed(SHAPES):
        rows += [_resize(classes, high, 4, dtype) for dtype in DTYPES]
    for ratio in (3.7, 8):
        for classes, high in reversed(SHAPES):
            rows += [_resize(classes, high, ratio, dtype) for dtype in ("float32", "bfloat16")]
    for operator in ("confusion_matrix", "cam_counts"):
        for classes, high in SHAPES:
            rows += [_counts(operator, classes, high, content) for content in ("realistic", "one class", "noise")]
            rows.append(_counts(operator, classes, high, "realistic", "bfloat16"))
    return tuple(rows)


ROWS = _rows()
"""In the order of the table."""


def rehearsed(row: Row) -> Row:
    """The same at a tiny size, for a rehearsal."""
    high = (8, 16) if row.high == WIDE else (12, 12)
    ratio = row.high[0] / row.low[0]
    low = high if row.same_size else (max(round(high[0] / ratio), 2), max(round(high[1] / ratio), 2))
    return dataclasses.replace(row, classes=min(row.classes, 5), low=low, high=high, images=2)


REHEARSED = ("ce-19", "ce-19-bf16-channels_last", "resize-ce-150-x4-fp16", "confusion-19", "cam-19", "cam-19-one")
"""Rows that a rehearsal runs: every kind of row once."""


@dataclass(frozen=True)
class Unit:
    """A piece of the benchmark that is done as a whole: some implementations of a row, compared with ours."""

    row: Row
    names: tuple[str, ...]
    kind: str = "baselines"

    @property
    def name(self) -> str:
        """As in the list of finished pieces."""
        return f"{self.row.key}: {self.kind}"


def units_of(rows: tuple[Row, ...]) -> list[Unit]:
    """All units, the most important first: rows with goals, then the slow baselines of those, then the other rows.

    Two kinds of baselines are units of their own: compiled ones, and torchmetrics, whose import takes ten seconds.
    """
    goals = [row for row in rows if row.targets]
    others = [row for row in rows if not row.targets]
    slow = {row: tuple(name for name in row.baselines if name.startswith("torchmetrics")) for row in rows}
    quick = {row: tuple(name for name in row.baselines if name not in slow[row]) for row in rows}
    ordered = [Unit(row, quick[row]) for row in goals]
    ordered += [Unit(row, row.compiled[:1], "compile") for row in goals if row.compiled]
    ordered += [Unit(row, slow[row], "torchmetrics") for row in goals if slow[row]]
    ordered += [Unit(row, quick[row]) for row in others]
    ordered += [Unit(row, row.compiled[:1], "compile") for row in others if row.compiled]
    ordered += [Unit(row, row.compiled[1:], "max-autotune") for row in goals if row.compiled[1:]]
    return ordered

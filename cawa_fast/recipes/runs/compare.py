"""Runs on one dataset compared: a row per class, and rows for the whole run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .data import class_differences
from .read import Run, labelled

if TYPE_CHECKING:
    from rich.table import Table

RARE = 0.2
"""A class is rare if it has less than this part of an even share of the training pixels; see :func:`rare_classes`."""


@dataclass(frozen=True)
class Cell:
    """The numbers of one run in a row of the comparison. Shares lie in [0, 1]; None where there is no such number.

    Attributes:
        final: after the last epoch.
        best: at the epoch with the highest mIoU.
        difference: ``final`` minus the first run's ``final``.
        weight: class weight after the last epoch, of an adaptive run.
        csps: the class's score after the last epoch, of an adaptive run.
    """

    final: float | None
    best: float | None = None
    difference: float | None = None
    weight: float | None = None
    csps: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the comparison: the IoU of a class, or a number of the whole run.

    Attributes:
        label: the name of the class or of the number.
        cells: one per run.
        unit: "s", or "%", for which values are shares and are shown times 100.
        digits: decimals to show.
        index: of the class; None for a number of the whole run.
        share: of the class in the labelled pixels of the training set.
        rare: whether the class is one of :func:`rare_classes`.
    """

    label: str
    cells: tuple[Cell, ...]
    unit: str = "%"
    digits: int = 1
    index: int | None = None
    share: float | None = None
    rare: bool = False

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """The value as text, without its unit; a dash for None."""
        if value is None:
            return "–"
        shown = f"{100 * value if self.unit == '%' else value:{'+' if signed else ''}.{self.digits}f}"
        if not float(shown):
            shown = shown.lstrip("+-")
        return shown.replace("-", "−")


def share_text(share: float) -> str:
    """A share in %, with two decimals, or with more where two would show 0.

    >>> share_text(0.3012), share_text(0.00048), share_text(0.0000031), share_text(0)
    ('30.12', '0.05', '0.0003', '0')
    """
    percent = 100 * share
    if percent >= 0.01 or percent == 0:
        return f"{percent:.2f}" if percent else "0"
    return f"{percent:.{-math.floor(math.log10(percent))}f}"


def rare_classes(train_pixels: Sequence[int], part: float = RARE) -> list[int]:
    r"""The classes with less than ``part`` of an even share: :math:`0 < n_i < part \cdot \sum_j n_j / C`, ascending.

    The limit is relative to the even share :math:`1/C`, since a fixed share would make nearly all of 150 classes rare.
    Classes without training pixels are left out, since they cannot be learned. With 0.2, the rare ones of CamVid's 11
    classes are column_pole, sign_symbol, fence, pedestrian and bicyclist: at most 1.2 %, while the next has 4.7 %.

    Args:
        train_pixels: ``C`` pixels per class.
        part: above 0, at most 1.

    Raises:
        ValueError: ``part`` is out of range.

    Example:
        >>> rare_classes([700, 250, 40, 10, 0])  # an even share is 200 of 1000
        [3]
    """
    if not 0 < part <= 1:
        raise ValueError(f"rare must lie in (0, 1], got {part}")
    limit = part * sum(train_pixels) / max(len(train_pixels), 1)
    return [index for index, pixels in enumerate(train_pixels) if 0 < pixels < limit]


def comparison_table(runs: Sequence[Run], rare_part: float = RARE) -> list[Row]:
    """Compare ``runs`` on the same classes: a row per class, from the most frequent to the rarest, then totals.

    Args:
        runs: at least one; differences are to the first.
        rare_part: ``part`` of :func:`rare_classes`. For the runs of an ablation, ``rare["part"]`` of its
            ``ablation.json``, which ``cawa-fast ablate --rare`` sets.

    Raises:
        ValueError: runs on different classes.
    """
    for run in runs:
        if run.dataset["class_names"] != runs[0].dataset["class_names"]:
            differ = class_differences(runs[0].dataset["class_names"], run.dataset["class_names"])
            raise ValueError(
                f"{run.path} and {runs[0].path} have different classes: {'; '.join(differ)}. "
                "Compare runs on one dataset"
            )
    dataset = runs[0].dataset
    pixels = dataset["train_pixels"]
    labelled_pixels = max(sum(pixels), 1)
    rare = rare_classes(pixels, rare_part)
    rows = []
    for index in sorted(range(len(pixels)), key=lambda i: (-pixels[i], i)):
        share = pixels[index] / labelled_pixels
        cells = [
            Cell(
                run.final["iou"][index],
                run.best["iou"][index],
                weight=run.final["weight"][index] if run.adaptive else None,
                csps=run.final["csps"][index] if run.adaptive else None,
            )
            for run in runs
        ]
        name = dataset["class_names"][index]
        rows.append(Row(name, _with_differences(cells), index=index, share=share, rare=index in rare))

    def total(label: str, cells: Sequence[Cell], **options: Any) -> Row:
        return Row(label, _with_differences(cells), **options)

    if any("test" in run.final for run in runs):  # first: the images that no rule has read
        known = [[record.get("test") for record in (run.final, run.best)] for run in runs]

        def tested(value: Callable[[dict[str, Any]], float | None]) -> list[Cell]:
            return [Cell(*(None if test is None else value(test) for test in both)) for both in known]

        rows.append(total("test mIoU", tested(lambda test: test["miou"])))
        if rare:
            name = f"test mIoU of {len(rare)} rare classes"
            rows.append(total(name, tested(lambda test: _mean(test["iou"], rare))))
    rows.append(total("mIoU", [Cell(run.final["miou"], run.best["miou"]) for run in runs]))
    if rare:
        cells = [Cell(_mean(run.final["iou"], rare), _mean(run.best["iou"], rare)) for run in runs]
        rows.append(total(f"mIoU of {len(rare)} rare classes", cells))
    cells = [Cell(run.final["pixel_accuracy"], run.best["pixel_accuracy"]) for run in runs]
    rows.append(total("pixel accuracy", cells))
    seconds = [run.seconds()["total"] for run in runs]
    digits = 2 if min(seconds) < 10 else 1
    rows.append(total("time per epoch", [Cell(value) for value in seconds], unit="s", digits=digits))
    if any(run.adaptive for run in runs):
        rows.append(Row("AWA overhead", tuple(Cell(run.awa_overhead()) for run in runs), digits=2))
    return rows


def terminal_table(runs: Sequence[Run], rare_part: float = RARE) -> Table:
    """:func:`comparison_table` for a terminal, as a ``rich`` table."""
    from ..terminal import PlainTable

    runs = labelled(runs)
    table = PlainTable("Share of training pixels, IoU and CSPS in %; Δ in points")
    rows = comparison_table(runs, rare_part)
    table.add_names("class", (row.label for row in rows))
    table.add_numbers("share")
    for number, run in enumerate(runs):
        for heading in (run.label, "Δ" if number else "", *(("weight", "CSPS") if run.adaptive else ())):
            if heading:
                table.add_numbers(heading)
    for row, following in zip(rows, [*rows[1:], rows[-1]], strict=True):
        total = row.index is None
        line = [
            f"{row.label}, {row.unit}" if total else row.label,
            "" if row.share is None else share_text(row.share),
        ]
        for number, (run, cell) in enumerate(zip(runs, row.cells, strict=True)):
            line.append(row.text(cell.final))
            if number:
                line.append(row.text(cell.difference, signed=True) if cell.difference is not None else "")
            if run.adaptive:
                line.append("" if cell.weight is None else f"{cell.weight:.2f}")
                line.append("" if total else row.text(cell.csps))
        section = following.rare != row.rare or total != (following.index is None)
        table.add_row(*line, end_section=section)
    return table


def _mean(values: Sequence[float | None], indices: Sequence[int]) -> float | None:
    known = [value for index in indices if (value := values[index]) is not None]
    return sum(known) / len(known) if known else None


def _with_differences(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells with their differences to the first cell."""
    base = cells[0].final

    def difference(cell: Cell) -> float | None:
        return None if base is None or cell.final is None else cell.final - base

    return (cells[0], *(replace(cell, difference=difference(cell)) for cell in cells[1:]))

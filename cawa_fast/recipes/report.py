"""Compare training runs: one table for terminal and page, and one self-contained HTML page."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .run_folder import RunFolder, atomic

if TYPE_CHECKING:
    from rich.table import Table

RARE_SHARE = 0.01
"""A class is rare if less than this share of the training set's labelled pixels is its own."""

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Run:
    """What a run's folder says, without its checkpoints.

    Attributes:
        path: the folder.
        label: a short name, unlike that of the other runs in a report.
        config: the settings, ``config.json``.
        dataset: ``class_names``, ``palette``, ``ignore_index``, ``train_pixels``, ``train_images``, ``val_images``.
        records: one per epoch, ``metrics.jsonl``, by ascending epoch; at least one.
    """

    path: Path
    label: str
    config: dict[str, Any]
    dataset: dict[str, Any]
    records: tuple[dict[str, Any], ...]

    @property
    def final(self) -> dict[str, Any]:
        """The last epoch's record."""
        return self.records[-1]

    @property
    def best(self) -> dict[str, Any]:
        """The record with the highest mIoU, the first of several: the epoch that ``best.pt`` holds."""
        return max(self.records, key=lambda record: -1.0 if record["miou"] is None else record["miou"])

    @property
    def adaptive(self) -> bool:
        """Whether the class weights followed a score (CSPS)."""
        return any(value is not None for record in self.records for value in record.get("csps") or ())

    @property
    def epochs(self) -> list[int]:
        """The epochs' numbers."""
        return [record["epoch"] for record in self.records]

    @property
    def steady(self) -> tuple[dict[str, Any], ...]:
        """The records that timings are averaged over: all but the first, which also warms up, if there are more."""
        return self.records[1:] or self.records

    def column(self, name: str, index: int | None = None) -> list[float | None]:
        """``name`` of every epoch, or its value of class ``index``."""
        values = [record.get(name) for record in self.records]
        return [None if value is None else value[index] for value in values] if index is not None else values

    def seconds(self) -> dict[str, float]:
        """Mean seconds of an epoch by part; ``other`` is what no part accounts for, ``total`` their sum."""
        names = dict.fromkeys(name for record in self.steady for name in record["seconds"])
        mean = {name: sum(r["seconds"].get(name, 0.0) for r in self.steady) / len(self.steady) for name in names}
        total = mean.pop("total")
        return {**mean, "other": max(total - sum(mean.values()), 0.0), "total": total}

    def awa_overhead(self) -> float | None:
        """Mean share that the adaptive weights add to the time of an epoch without them; None without such weights."""
        return sum(record["awa_overhead"] for record in self.steady) / len(self.steady) if self.adaptive else None


@dataclass(frozen=True)
class Cell:
    """One run's numbers in a row. Shares lie in [0, 1]; None where there is no such number.

    Attributes:
        final: after the last epoch.
        best: at the epoch with the highest mIoU.
        difference: ``final`` less the first run's.
        weight: class weight after the last epoch, of an adaptive run.
        csps: score after the last epoch, of an adaptive run.
    """

    final: float | None
    best: float | None = None
    difference: float | None = None
    weight: float | None = None
    csps: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a class's IoU, or a number of the whole run.

    Attributes:
        label: the class's name, or what the number is.
        cells: one per run.
        unit: "%" (values are shares: show 100 times them) or "s".
        digits: decimals to show.
        index: the class, None for a number of the whole run.
        share: of the training set's labelled pixels, for a class.
        rare: whether ``share`` is below :data:`RARE_SHARE`.
    """

    label: str
    cells: tuple[Cell, ...]
    unit: str = "%"
    digits: int = 1
    index: int | None = None
    share: float | None = None
    rare: bool = False

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """The value as it is shown, without its unit; a dash for None."""
        if value is None:
            return "–"
        shown = f"{100 * value if self.unit == '%' else value:{'+' if signed else ''}.{self.digits}f}"
        if not float(shown):
            shown = shown.lstrip("+-")
        return shown.replace("-", "−")


def share_text(share: float) -> str:
    """A share in %, with two decimals; more where they would be 0.

    >>> share_text(0.3012), share_text(0.00048), share_text(0.0000031), share_text(0)
    ('30.12', '0.05', '0.0003', '0')
    """
    percent = 100 * share
    if percent >= 0.01 or percent == 0:
        return f"{percent:.2f}" if percent else "0"
    return f"{percent:.{-math.floor(math.log10(percent))}f}"


_RECORD = {"epoch", "train_loss", "miou", "pixel_accuracy", "iou", "csps", "weight", "seconds", "awa_overhead"}
"""What every line of metrics.jsonl holds."""


def load_run(run_dir: StrPath) -> Run:
    """Read a run's folder.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged, or files do not belong together.
    """
    folder = RunFolder(run_dir)
    if not folder.path.is_dir():
        raise FileNotFoundError(f"{folder.path} is no folder; give one that `cawa-fast train --run-dir` has written")
    config = _read_object(folder.config_file)
    dataset = _read_object(folder.path / "dataset.json")
    records: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(_read(folder.metrics_file).splitlines(), start=1):
        try:
            record = json.loads(line)
            if lacking := sorted(_RECORD - record.keys()):
                raise KeyError(*lacking)
            records[record["epoch"]] = record
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder.metrics_file}, line {number} is not an epoch's record ({error!r}); `cawa-fast train "
                "--resume` writes the file anew from latest.pt"
            ) from error
    if not records:
        raise ValueError(f"{folder.metrics_file} is empty: no epoch was finished; resume the run first")
    missing = {"class_names", "palette", "ignore_index", "train_pixels"} - dataset.keys()
    if missing:
        raise ValueError(f"{folder.path / 'dataset.json'} lacks {', '.join(sorted(missing))}; train the run again")
    classes = len(dataset["class_names"])
    for epoch, record in records.items():
        if len(record["iou"]) != classes:
            raise ValueError(
                f"{folder.metrics_file}, epoch {epoch} has {len(record['iou'])} classes, but dataset.json names "
                f"{classes}: the files are not of the same run"
            )
    label = folder.path.resolve().name
    return Run(folder.path, label, config, dataset, tuple(records[epoch] for epoch in sorted(records)))


def load_runs(run_dirs: Sequence[StrPath]) -> list[Run]:
    """Read runs that are to be compared, and label them by what their folders' names do not share.

    Raises:
        ValueError: no folders, one given twice, or runs on different classes; and what :func:`load_run` raises.
    """
    if not run_dirs:
        raise ValueError("run_dirs is empty; give at least one run's folder")
    return _comparable([load_run(run_dir) for run_dir in run_dirs])


def _comparable(runs: Sequence[Run]) -> list[Run]:
    """The runs with labels that tell them apart."""
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ValueError(f"a folder is given twice: {', '.join(str(run.path) for run in runs)}")
    for run in runs:
        if run.dataset["class_names"] != runs[0].dataset["class_names"]:
            raise ValueError(f"{run.path} and {runs[0].path} have different classes; compare runs on one data set")
    return [replace(run, label=label) for run, label in zip(runs, _labels(runs), strict=True)]


def comparison_table(runs: Sequence[Run]) -> list[Row]:
    """Compare ``runs`` on the same classes: a row per class, from the most frequent to the rarest, then totals."""
    dataset = runs[0].dataset
    pixels = dataset["train_pixels"]
    labelled = max(sum(pixels), 1)
    rows = []
    for index in sorted(range(len(pixels)), key=lambda i: (-pixels[i], i)):
        share = pixels[index] / labelled
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
        rows.append(Row(name, _with_differences(cells), index=index, share=share, rare=share < RARE_SHARE))
    rare = [row.index for row in rows if row.rare and row.index is not None]

    def total(label: str, cells: Sequence[Cell], **options: Any) -> Row:
        return Row(label, _with_differences(cells), **options)

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


def terminal_table(runs: Sequence[Run]) -> Table:
    """:func:`comparison_table` for a terminal, as a ``rich`` table."""
    from rich.table import Table
    from rich.text import Text

    runs = _comparable(runs)
    table = Table(title="Share of training pixels, IoU and CSPS in %; Δ in points", title_justify="left")
    table.add_column("class", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for number, run in enumerate(runs):
        for heading in (run.label, "Δ" if number else "", *(("weight", "CSPS") if run.adaptive else ())):
            if heading:
                table.add_column(heading, justify="right", no_wrap=True)
    rows = comparison_table(runs)
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
        table.add_row(*map(Text, line), end_section=section)
    return table


def write_report(run_dirs: Sequence[StrPath], out: StrPath, *, images: int = 4, png: bool = False) -> Path:
    """Write one HTML page that compares runs; it needs no other file and no network.

    Args:
        run_dirs: the runs' folders; differences are to the first.
        out: the page's file; written under a temporary name and renamed.
        images: validation images to show, those with rare classes; 0 for none, and then no checkpoint is read.
        png: also write the charts beside the page, as ``<out's stem>-<chart>.png``.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: a folder, a file in it, or the data set is missing.
        ValueError: damaged files, runs that do not compare, or ``images`` below 0.

    Example:
        >>> write_report(["runs/uniform", "runs/cawa"], "report.html")  # doctest: +SKIP
        PosixPath('report.html')
    """
    from ._page import render  # matplotlib and jinja2 come with the extra "train" only

    if images < 0:
        raise ValueError(f"images must be at least 0, got {images}")
    out = Path(out)
    page, charts = render(load_runs(run_dirs), images=images, png=png)
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, content in charts.items():
        with atomic(out.with_name(f"{out.stem}-{name}.png")) as file:
            file.write(content)
    with atomic(out) as file:
        file.write(page.encode())
    return out


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{file} is missing: {file.parent} is not the folder of a run, or no epoch was finished; give the folder "
            "that `cawa-fast train --run-dir` has written"
        ) from None


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}); train the run again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds no JSON object; train the run again")
    return value


def _labels(runs: Sequence[Run]) -> list[str]:
    """The folders' names without the words, between dashes, that all begin or end with."""
    names = [run.label for run in runs]
    if len(names) == 1:
        return names
    if len(set(names)) < len(names):
        return [str(run.path) for run in runs]
    words = [name.split("-") for name in names]
    room = min(map(len, words)) - 1  # every name keeps a word
    first = 0
    while first < room and len({word[first] for word in words}) == 1:
        first += 1
    last = 0
    while last < room - first and len({word[-1 - last] for word in words}) == 1:
        last += 1
    return ["-".join(word[first : len(word) - last]) for word in words]


def _mean(values: Sequence[float | None], indices: Sequence[int]) -> float | None:
    known = [value for index in indices if (value := values[index]) is not None]
    return sum(known) / len(known) if known else None


def _with_differences(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells with their differences to the first."""
    base = cells[0].final

    def difference(cell: Cell) -> float | None:
        return None if base is None or cell.final is None else cell.final - base

    return (cells[0], *(replace(cell, difference=difference(cell)) for cell in cells[1:]))

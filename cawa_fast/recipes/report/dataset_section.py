"""The section of the page on the runs of one dataset, compared class by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from ..runs.compare import Row, comparison_table
from ..runs.read import Run
from .class_charts import ClassChange, change_caption, change_chart, class_grid, confusion_chart
from .epoch_charts import Series, class_panels, line_chart, time_bars
from .figure_writer import FigureWriter
from .figures import HALF, PANEL, PARTS, WIDE, class_colour, run_style, seconds_text
from .gallery import cam_run, contact_sheet, make_scenes
from .overview import INCIDENTAL

_MOST_PANELS = 24
_MOST_LABELS = 20  # labels at the ends of lines that can still be read
_MOST_CONFUSIONS = 10
_MOST_CHANGED = 6  # classes that the example images are chosen for
_LEAST_CHANGE = 0.1  # of the largest change; smaller ones are not worth an example image

_GRIDS = {
    "csps": ("Score (CSPS)", "share"),
    "base_weight": ("Base weight (Eq. 5)", "amount"),
    "ratio_weight": ("Ratio weight (Eq. 6)", "factor"),
    "weight": ("Weight", "factor"),
}
"""Title and scale of what a class weight is computed from, and of the weight."""


def make_dataset_section(writer: FigureWriter, runs: Sequence[Run], images: int, rare_part: float) -> dict[str, Any]:
    """The values that ``templates/dataset.html.j2`` shows of the runs on one dataset."""
    rows = comparison_table(runs, rare_part)
    classes = [row for row in rows if row.index is not None]
    rare = [row.index for row in classes if row.rare and row.index is not None]
    mapped = cam_run(runs)
    changes = _changes(runs, classes)
    changed = _most_changed(classes, runs.index(mapped))
    shown = changed or rare or [row.index for row in classes[-3:] if row.index is not None]
    scenes = make_scenes(runs, shown, images)
    if writer.png:
        for number, scene in enumerate(scenes, start=1):
            writer.save(f"gallery-{number}", contact_sheet(scene))
    return {
        "runs": runs,
        "dataset_name": runs[0].config["dataset"],
        "classes": classes,
        "totals": [row for row in rows if row.index is None],
        "rare": rare,
        "rare_percent": f"{100 * rare_part / len(classes):.2g}",
        "colour": {row.index: class_colour(rank, len(classes)) for rank, row in enumerate(classes)},
        "largest_share": max((row.share or 0.0 for row in classes), default=0.0) or 1.0,
        "change": _change_image(writer, changes),
        "change_caption": change_caption(changes),
        "miou": _miou_image(writer, runs),
        "panels": _panel_images(writer, runs, classes),
        "hidden_panels": max(len(classes) - _MOST_PANELS, 0),
        "adaptive": _adaptive(writer, runs, classes),
        "most_labels": _MOST_LABELS,
        "confusion": _confusion(writer, runs, classes),
        "time": _time_image(writer, runs),
        "parts": _parts(runs),
        "scenes": scenes,
        "changed": [runs[0].dataset["class_names"][index] for index in changed],
        "cam_run": mapped,
        "dataset": runs[0].dataset,
        "notes": _notes(runs),
        "settings": _settings(runs),
    }


def _order(classes: Sequence[Row]) -> np.ndarray:
    """The classes' indices, from frequent to rare."""
    return np.array([row.index for row in classes], dtype=np.int64)


def _percent(values: Sequence[float | None], factor: float = 100) -> list[float | None]:
    return [None if value is None else factor * value for value in values]


def _run_line(run: Run, number: int, column: str, index: int | None = None, label: str | None = None) -> Series:
    """A run's values over epochs in %, in the run's style."""
    style = run_style(number)
    return Series(label, run.epochs, _percent(run.column(column, index)), style.colour, style.line)


# -------------------------------------------------------------------------------------------------- changes of the IoU


def _most_changed(classes: Sequence[Row], number: int) -> list[int]:
    """The classes whose IoU differs most between the baseline and the run with this number."""
    change = {row.index: abs(row.cells[number].difference or 0.0) for row in classes if row.index is not None}
    most = sorted(change, key=lambda index: -change[index])[:_MOST_CHANGED]
    return [index for index in most if change[index] > _LEAST_CHANGE * change[most[0]]]


def _changes(runs: Sequence[Run], classes: Sequence[Row]) -> list[ClassChange]:
    """The change of each class's IoU in all runs but the first; empty if there is only one."""
    if len(runs) < 2:
        return []
    return [
        ClassChange(
            row.label,
            row.share or 0.0,
            [
                (None if cell.difference is None else 100 * cell.difference, run_style(number))
                for number, cell in enumerate(row.cells)
                if number
            ],
        )
        for row in classes
    ]


def _change_image(writer: FigureWriter, changes: Sequence[ClassChange]) -> Markup | None:
    if not changes:
        return None
    largest = max(changes, key=lambda change: change.largest)
    alt = f"Change of each class's IoU, from frequent to rare classes; {largest.label} changed most."
    return writer.chart("gain", alt, change_chart(changes))


# -------------------------------------------------------------------------------------------------------- over epochs


def _miou_image(writer: FigureWriter, runs: Sequence[Run]) -> Markup:
    series = [_run_line(run, number, "miou", label=run.label) for number, run in enumerate(runs)]
    total = Row("mIoU", ())
    ends = "; ".join(f"{run.label} ends at {total.text(run.final['miou'])} %" for run in runs)
    figure = line_chart(series, WIDE, 300, unit=" %", show_last=True)
    return writer.chart("miou", f"mIoU over epochs: {ends}.", figure)


def _panel_images(writer: FigureWriter, runs: Sequence[Run], classes: Sequence[Row]) -> list[Markup]:
    """The IoU of each class over epochs, the rarest class first."""
    groups = [
        (row, [_run_line(run, number, "iou", row.index) for number, run in enumerate(runs)])
        for row in classes[: -_MOST_PANELS - 1 : -1]
    ]
    if writer.png:
        styles = [(run.label, run_style(number)) for number, run in enumerate(runs)]
        writer.save("class-iou", class_panels([(row.label, lines) for row, lines in groups], styles))
    images = []
    for row, lines in groups:
        ends = "; ".join(
            f"{run.label} ends at {row.text(cell.final)} %" for run, cell in zip(runs, row.cells, strict=True)
        )
        figure = line_chart(lines, PANEL, 140, ticks=3, unit=" %")
        images.append(writer.image(f"IoU of {row.label} over epochs: {ends}.", figure))
    return images


def _adaptive(writer: FigureWriter, runs: Sequence[Run], classes: Sequence[Row]) -> list[dict[str, Any]]:
    """Weights and scores of each run with adaptive weights: as lines, as grids, and as numbers of three epochs."""
    charts = []
    for number, run in enumerate(runs):
        if not run.adaptive:
            continue
        by_weight = sorted(classes, key=lambda row: run.final["weight"][row.index] or 0.0)
        labelled = by_weight
        if len(classes) > _MOST_LABELS:
            labelled = by_weight[: _MOST_LABELS // 2] + by_weight[-_MOST_LABELS // 2 :]
        height = max(290, 70 + 15 * len(labelled))
        lines = {
            column: [
                Series(
                    row.label if row in labelled else None,
                    run.epochs,
                    _percent(run.column(column, row.index), factor),
                    class_colour(rank, len(classes)),
                )
                for rank, row in enumerate(classes)
            ]
            for column, factor in (("weight", 1), ("csps", 100))
        }
        ends = f"{by_weight[-1].label} has the largest weight in the end, {by_weight[0].label} the smallest"
        columns = _columns(run)
        charts.append(
            {
                "run": run,
                "number": number,
                "weight": writer.chart(
                    f"weights-{number}",
                    f"Class weights of {run.label} over epochs: {ends}.",
                    line_chart(lines["weight"], HALF, height, log=True, title="Weight"),
                ),
                "csps": writer.chart(
                    f"csps-{number}",
                    f"CSPS of the classes in {run.label} over epochs; the table above has the last values.",
                    line_chart(lines["csps"], HALF, height, unit=" %", title="Score (CSPS)"),
                ),
                "has_ratio": "ratio_weight" in columns,
                "grids": [_grid_image(writer, run, number, classes, column) for column in ("weight", *columns[:-1])],
                "moments": _moments(run, classes),
            }
        )
    return charts


def _columns(run: Run) -> list[str]:
    """The keys of :data:`_GRIDS`, without the ratio weight in runs that left it out: there it is 1 everywhere."""
    ratios = (value for record in run.records for value in record.get("ratio_weight") or ())
    has_ratio = any(value not in (None, 1.0) for value in ratios)
    return [column for column in _GRIDS if has_ratio or column != "ratio_weight"]


def _grid_image(writer: FigureWriter, run: Run, number: int, classes: Sequence[Row], column: str) -> Markup:
    title, kind = _GRIDS[column]
    if run.config["weighting"] != "cawa":  # the numbers of the equations are those of CAWA
        title = title.partition(" (Eq.")[0]
    missing = [None] * len(classes)
    by_epoch = np.array([[*(record.get(column) or missing)] for record in run.records], dtype=float)  # None is NaN
    values = by_epoch[:, _order(classes)].T
    figure = class_grid(values, [row.label for row in classes], run.epochs, HALF, title=title, kind=kind)
    alt = f"{title} of each class (rows, from frequent to rare) in each epoch (columns) of {run.label}."
    return writer.chart(f"grid-{column.replace('_', '-')}-{number}", alt, figure)


def _moments(run: Run, classes: Sequence[Row]) -> dict[str, Any]:
    """Scores and weights at the first, a middle and the last epoch, as in the paper's table 4."""
    places = sorted({0, (len(run.records) - 1) // 2, len(run.records) - 1})
    records = [run.records[place] for place in places]
    lines = []
    for row in classes:
        cells = []
        for record in records:
            for column in _columns(run):
                values = record.get(column)
                value = None if values is None else values[row.index]
                cells.append("–" if value is None else f"{100 * value:.1f}" if column == "csps" else f"{value:.2f}")
        lines.append((row, cells))
    return {"epochs": [record["epoch"] for record in records], "lines": lines}


# ---------------------------------------------------------------------------------------------- confusion and time


def _confusion(writer: FigureWriter, runs: Sequence[Run], classes: Sequence[Row]) -> list[dict[str, Any]]:
    """The confusion matrix of each run that kept it, and the most frequent confusions."""
    order = _order(classes)
    names = [row.label for row in classes]
    found = []
    for number, run in enumerate(runs):
        kept = run.confusion()
        if kept is None:
            continue
        matrix = np.array(kept, dtype=np.int64)[np.ix_(order, order)]
        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        np.fill_diagonal(share, 0)
        worst = np.argsort(-share, axis=None, kind="stable")[:_MOST_CONFUSIONS]
        pairs = [np.unravel_index(place, share.shape) for place in worst if share.flat[place] > 0]
        alt = f"Confusion matrix of {run.label}: the share of each class's pixels that is predicted as each class."
        found.append(
            {
                "run": run,
                "number": number,
                "chart": writer.chart(f"confusion-{number}", alt, confusion_chart(matrix, names)),
                "pairs": [(names[a], names[b], f"{100 * share[a, b]:.0f} %") for a, b in pairs],
            }
        )
    return found


def _time_image(writer: FigureWriter, runs: Sequence[Run]) -> Markup:
    bars = []
    for run in runs:
        seconds = run.seconds()
        bars.append((run.label, {part: seconds[part] for part in PARTS if part in seconds}, seconds["total"]))
    ends = "; ".join(f"{label} takes {seconds_text(total)} s" for label, _, total in bars)
    return writer.chart("time", f"Seconds of an epoch by part: {ends}.", time_bars(bars))


def _parts(runs: Sequence[Run]) -> list[tuple[str, str, list[float | None]]]:
    """Name, colour and the seconds in each run, of every part of an epoch that any run has."""
    seconds = [run.seconds() for run in runs]
    return [
        (label, colour, [times.get(part) for times in seconds])
        for part, (label, colour) in PARTS.items()
        if any(part in times for times in seconds)
    ]


# ------------------------------------------------------------------------------------------------ notes and settings


def _notes(runs: Sequence[Run]) -> list[str]:
    """Caveats: the number of seeds, unfinished runs, different validation files, and different numbers of epochs."""

    def settings_but_seed(run: Run) -> str:
        return repr(sorted((key, value) for key, value in run.config.items() if key not in {"seed"} | INCIDENTAL))

    notes = []
    most = max(Counter(map(settings_but_seed, runs)).values())
    if most == 1:
        notes.append(
            "Each setting was trained once, with one seed. The result of one seed can be chance: train with more "
            "seeds before you draw conclusions from a difference, above all for rare classes."
        )
    else:
        notes.append(
            f"Up to {most} runs share all settings but the seed. Compare every other difference on this page with the "
            "spread of these runs."
        )
    for run in runs:
        planned = run.config.get("epochs")
        if planned is not None and run.final["epoch"] < planned:
            notes.append(f"{run.label} is not finished: {run.final['epoch']} of {planned} epochs.")
    if len({run.dataset["files"]["val"] for run in runs if "files" in run.dataset}) > 1:
        notes.append("The runs were validated on different files: their values cannot be compared.")
    if len({run.final["epoch"] for run in runs}) > 1:
        notes.append("The runs have different numbers of epochs: their final values are of different epochs.")
    return notes


def _settings(runs: Sequence[Run]) -> dict[str, Any]:
    """``differ``: settings in which the runs differ, with each run's value; ``same``: the others."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    values = {name: [_setting_text(run.config.get(name)) for run in runs] for name in names if name != "root"}
    return {
        "differ": {name: row for name, row in values.items() if len(set(row)) > 1},
        "same": {name: row[0] for name, row in values.items() if len(set(row)) == 1},
    }


def _setting_text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return (" to " if any(isinstance(part, float) for part in value) else " × ").join(map(str, value))
    return str(value)

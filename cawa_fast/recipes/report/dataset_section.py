"""One part of the page: the runs on one data set, compared class by class."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from ..runs.compare import RARE, Row, comparison_table
from ..runs.read import Run
from .class_charts import Gain, class_grid, confusion_chart, gain_chart, left_out
from .epoch_charts import Series, line_chart, panels, time_bars
from .figure_writer import HALF, NARROW, PANEL, WIDE, FigureWriter
from .figures import PARTS, Paint, seconds_text
from .gallery import cam_run, contact_sheet, make_scenes
from .overview import INCIDENTAL

_MOST_PANELS = 24
_MOST_NAMES = 20  # lines of a chart that can be told apart by a name at their end
_MOST_CONFUSIONS = 10
_CHANGED = 6  # classes that the pictures are to show, at most
_LEAST_CHANGE = 0.1  # of the largest change: less is no difference that one looks at


def make_chapter(writer: FigureWriter, runs: Sequence[Run], images: int) -> dict[str, Any]:
    """What the template shows of the runs on one data set."""
    rows = comparison_table(runs)
    classes = [row for row in rows if row.index is not None]
    rare = [row.index for row in classes if row.rare and row.index is not None]
    mapped = cam_run(runs)
    gains = _gains(runs, classes)
    changed = _changed(classes, runs.index(mapped))
    shown = changed or rare or [row.index for row in classes[-3:] if row.index is not None]
    scenes = make_scenes(runs, shown, images)
    for number, scene in enumerate(scenes, start=1):
        if writer.png:
            writer.save(f"gallery-{number}", contact_sheet(scene, writer.colours))
    return {
        "runs": runs,
        "dataset_name": runs[0].config["dataset"],
        "classes": classes,
        "totals": [row for row in rows if row.index is None],
        "cards": _cards(rows, runs),
        "rare": rare,
        "rare_percent": f"{100 * RARE / len(classes):.2g}",
        "colour": {row.index: writer.colours.of_class(rank, len(classes)) for rank, row in enumerate(classes)},
        "largest_share": max((row.share or 0.0 for row in classes), default=0.0) or 1.0,
        "gain": _gain(writer, gains),
        "left_out": left_out(gains),
        "miou": _miou(writer, runs),
        "panels": _panels(writer, runs, classes),
        "hidden_panels": max(len(classes) - _MOST_PANELS, 0),
        "adaptive": _adaptive(writer, runs, classes),
        "most_names": _MOST_NAMES,
        "confusion": _confusion(writer, runs, classes),
        "time": _time(writer, runs),
        "parts": _parts(runs),
        "scenes": scenes,
        "changed": [runs[0].dataset["class_names"][index] for index in changed],
        "cam_run": mapped,
        "dataset": runs[0].dataset,
        "notes": _notes(runs),
        "settings": _settings(runs),
    }


def _changed(classes: Sequence[Row], number: int) -> list[int]:
    """The classes whose IoU the run changed most, up or down."""
    change = {row.index: abs(row.cells[number].difference or 0.0) for row in classes if row.index is not None}
    most = sorted(change, key=lambda index: -change[index])[:_CHANGED]
    return [index for index in most if change[index] > _LEAST_CHANGE * change[most[0]]]


def _order(classes: Sequence[Row]) -> np.ndarray:
    """The classes' indices, from frequent to rare."""
    return np.array([row.index for row in classes], dtype=np.int64)


def _percent(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in values]


def _line_chart(series: Sequence[Series], height: int, paint: Paint, width: int, **options: Any) -> Figure:
    return line_chart(series, paint, (width, height), **options)


def _gains(runs: Sequence[Run], classes: Sequence[Row]) -> list[Gain]:
    """Of each class, share of the pixels and change of the IoU; nothing of one run alone."""
    if len(runs) < 2:
        return []
    return [
        Gain(
            row.label,
            row.share or 0.0,
            [
                (None if cell.difference is None else 100 * cell.difference, f"run{number}")
                for number, cell in enumerate(row.cells)
                if number
            ],
        )
        for row in classes
    ]


def _gain(writer: FigureWriter, gains: Sequence[Gain]) -> list[Markup]:
    """Share of the pixels against the change of the IoU."""
    if not gains:
        return []
    largest = max(gains, key=lambda gain: gain.largest)
    alt = f"Change of each class's IoU against its share of the training pixels; {largest.label} changed most."

    def draw(paint: Paint, width: int) -> Figure:
        return gain_chart(gains, paint, (width, 400 if width > 500 else 320), 40 if width > 500 else 12)

    return writer.chart("gain", alt, draw, (WIDE, NARROW))


def _miou(writer: FigureWriter, runs: Sequence[Run]) -> list[Markup]:
    series = [Series(run.label, run.epochs, _percent(run.column("miou")), f"run{i}") for i, run in enumerate(runs)]
    total = Row("mIoU", ())
    ends = "; ".join(f"{run.label} ends at {total.text(run.final['miou'])} %" for run in runs)

    def draw(paint: Paint, width: int) -> Figure:
        return line_chart(series, paint, (width, 320 if width > 500 else 240), unit=" %", show_last=True)

    return writer.chart("miou", f"mIoU over epochs: {ends}.", draw, (WIDE, NARROW))


def _panels(writer: FigureWriter, runs: Sequence[Run], classes: Sequence[Row]) -> list[Markup]:
    """IoU over epochs of each class, the rarest first."""
    groups = []
    for row in list(reversed(classes))[:_MOST_PANELS]:
        lines = [
            Series(None, run.epochs, _percent(run.column("iou", row.index)), f"run{i}") for i, run in enumerate(runs)
        ]
        groups.append((row, lines))
    if writer.png:
        titled = [(row.label, lines) for row, lines in groups]
        names = [(run.label, f"run{i}") for i, run in enumerate(runs)]
        writer.save("class-iou", panels(titled, names, writer.paint, unit=" %"))
    drawn = []
    for row, lines in groups:
        ends = "; ".join(
            f"{run.label} ends at {row.text(cell.final)} %" for run, cell in zip(runs, row.cells, strict=True)
        )
        drawn += writer.chart(
            f"iou-{row.index}",
            f"IoU of {row.label} over epochs: {ends}.",
            functools.partial(_line_chart, lines, 130, ticks=3, unit=" %"),
            (PANEL,),
            file=False,
        )
    return drawn


def _adaptive(writer: FigureWriter, runs: Sequence[Run], classes: Sequence[Row]) -> list[dict[str, Any]]:
    """Weights and scores over epochs of each adaptive run: lines, grids, and the numbers of three epochs."""
    charts = []
    for number, run in enumerate(runs):
        if not run.adaptive:
            continue
        by_weight = sorted(classes, key=lambda row: run.final["weight"][row.index] or 0.0)
        named = (
            by_weight if len(classes) <= _MOST_NAMES else by_weight[: _MOST_NAMES // 2] + by_weight[-_MOST_NAMES // 2 :]
        )
        height = max(290, 60 + 15 * len(named))

        def lines(column: str, factor: float, run: Run = run, named: Sequence[Row] = named) -> list[Series]:
            return [
                Series(
                    row.label if row in named else None,
                    run.epochs,
                    [None if value is None else factor * value for value in run.column(column, row.index)],
                    writer.colours.of_class(rank, len(classes)),
                )
                for rank, row in enumerate(classes)
            ]

        ends = f"{by_weight[-1].label} has the largest weight in the end, {by_weight[0].label} the least"
        weight, csps = (
            writer.chart(f"{name}-{number}", alt, functools.partial(_line_chart, series, height, **options), (HALF,))[0]
            for name, alt, series, options in (
                (
                    "weights",
                    f"Class weights of {run.label} over epochs: {ends}.",
                    lines("weight", 1),
                    {"log": True, "title": "Weight"},
                ),
                (
                    "csps",
                    f"CSPS of the classes in {run.label} over epochs; the last values are in the table.",
                    lines("csps", 100),
                    {"unit": " %", "title": "Score (CSPS)"},
                ),
            )
        )
        columns = _columns(run)
        charts.append(
            {
                "run": run,
                "number": number,
                "weight": weight,
                "csps": csps,
                "has_ratio": "ratio_weight" in columns,
                "grids": [_grid(writer, run, number, classes, one, *_GRIDS[one]) for one in ("weight", *columns[:-1])],
                "moments": _moments(run, classes),
            }
        )
    return charts


_GRIDS = {
    "csps": ("Score (CSPS)", "share"),
    "base_weight": ("Base weight (Eq. 5)", "amount"),
    "ratio_weight": ("Ratio weight (Eq. 6)", "factor"),
    "weight": ("Weight", "factor"),
}


def _columns(run: Run) -> list[str]:
    """What a weight is made of, and it; without the ratio where Eq. 6 was left out, which is 1 everywhere."""
    ratios = (value for record in run.records for value in record.get("ratio_weight") or ())
    return (
        list(_GRIDS) if any(value not in (None, 1.0) for value in ratios) else [k for k in _GRIDS if "ratio" not in k]
    )


def _grid(
    writer: FigureWriter, run: Run, number: int, classes: Sequence[Row], column: str, title: str, kind: str
) -> Markup:
    if run.config["weighting"] != "cawa":  # the equations are not those of other rules
        title = title.partition(" (Eq.")[0]
    nothing = [None] * len(classes)
    by_epoch = np.array([[*(record.get(column) or nothing)] for record in run.records], dtype=float)  # None is NaN
    values = by_epoch[:, _order(classes)].T

    def draw(paint: Paint, width: int) -> Figure:
        names = [row.label for row in classes]
        return class_grid(values, names, run.epochs, paint, width, title=title, kind=kind)

    alt = f"{title} of each class (rows, from frequent to rare) in each epoch (columns) of {run.label}."
    return writer.chart(f"grid-{column.replace('_', '-')}-{number}", alt, draw, (HALF,))[0]


def _moments(run: Run, classes: Sequence[Row]) -> dict[str, Any]:
    """Scores and weights at the first, a middle and the last epoch (the paper's table 4)."""
    places = sorted({0, (len(run.records) - 1) // 2, len(run.records) - 1})
    records = [run.records[place] for place in places]
    lines = []
    for row in classes:
        cells = []
        for record in records:
            for column in _columns(run):
                values = record.get(column)
                value = None if values is None else values[row.index]
                shown = "–" if value is None else f"{100 * value:.1f}" if column == "csps" else f"{value:.2f}"
                cells.append(shown)
        lines.append((row, cells))
    return {"epochs": [record["epoch"] for record in records], "lines": lines}


def _confusion(writer: FigureWriter, runs: Sequence[Run], classes: Sequence[Row]) -> list[dict[str, Any]]:
    """The confusion matrix of each run that kept it, and what it takes for what most often."""
    order = _order(classes)
    names = [row.label for row in classes]
    found = []
    for number, run in enumerate(runs):
        kept = run.confusion()
        if kept is None:
            continue
        matrix = np.array(kept, dtype=np.int64)[np.ix_(order, order)]

        def draw(paint: Paint, width: int, matrix: np.ndarray = matrix) -> Figure:
            return confusion_chart(matrix, names, paint, width)

        share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        np.fill_diagonal(share, 0)
        worst = np.argsort(-share, axis=None, kind="stable")[:_MOST_CONFUSIONS]
        pairs = [np.unravel_index(place, share.shape) for place in worst if share.flat[place] > 0]
        alt = f"Confusion matrix of {run.label}: of each class's pixels, the share taken for each class."
        found.append(
            {
                "run": run,
                "number": number,
                "chart": writer.chart(f"confusion-{number}", alt, draw, (HALF,))[0],
                "pairs": [(names[a], names[b], f"{100 * share[a, b]:.0f} %") for a, b in pairs],
            }
        )
    return found


def _time(writer: FigureWriter, runs: Sequence[Run]) -> list[Markup]:
    bars = []
    for run in runs:
        seconds = run.seconds()
        bars.append((run.label, {part: seconds[part] for part in PARTS if part in seconds}, seconds["total"]))
    ends = "; ".join(f"{label} takes {seconds_text(total)} s" for label, _, total in bars)
    return writer.chart(
        "time",
        f"Seconds of an epoch by part: {ends}.",
        lambda paint, width: time_bars(bars, paint, width),
        (WIDE, NARROW),
    )


def _parts(runs: Sequence[Run]) -> list[tuple[str, str, list[float | None]]]:
    """Name on the page, colour and each run's seconds of every part that any run has."""
    seconds = [run.seconds() for run in runs]
    return [
        (label, f"part-{part}", [times.get(part) for times in seconds])
        for part, (label, _, _) in PARTS.items()
        if any(part in times for times in seconds)
    ]


def _cards(rows: Sequence[Row], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The headline numbers: of each a value per run and its difference to the first run."""
    cards = []
    for row in rows:
        if row.index is not None or row.label == "pixel accuracy":
            continue
        values = [
            {
                "run": run.label,
                "number": number,
                "value": row.text(cell.final),
                "difference": row.text(cell.difference, signed=True) if cell.difference is not None else "",
            }
            for number, (run, cell) in enumerate(zip(runs, row.cells, strict=True))
            if cell.final is not None
        ]
        cards.append({"label": row.label, "unit": row.unit, "values": values})
    return cards


def _notes(runs: Sequence[Run]) -> list[str]:
    """What a reader has to know before comparing: seeds, and runs that are not finished or not alike."""

    def recipe(run: Run) -> str:
        return repr(sorted((key, value) for key, value in run.config.items() if key not in {"seed"} | INCIDENTAL))

    notes = []
    repeats = Counter(map(recipe, runs))
    if max(repeats.values()) == 1:
        notes.append(
            "Each setting was trained once, with one seed. A single seed proves little: train again with other seeds "
            "before drawing conclusions from a difference, above all for rare classes."
        )
    else:
        most = max(repeats.values())
        notes.append(
            f"Up to {most} runs share all settings but the seed; how far they lie apart is the yardstick for every "
            "other difference on this page."
        )
    for run in runs:
        planned = run.config.get("epochs")
        if planned is not None and run.final["epoch"] < planned:
            notes.append(f"{run.label} is not finished: {run.final['epoch']} of {planned} epochs.")
    if len({run.final["epoch"] for run in runs}) > 1:
        notes.append("The runs have different numbers of epochs; final values compare them at different stages.")
    return notes


def _settings(runs: Sequence[Run]) -> dict[str, Any]:
    """``differ``: settings in which the runs differ, with each run's value; ``same``: the others."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    values = {name: [_plain(run.config.get(name)) for run in runs] for name in names if name != "root"}
    return {
        "differ": {name: row for name, row in values.items() if len(set(row)) > 1},
        "same": {name: row[0] for name, row in values.items() if len(set(row)) == 1},
    }


def _plain(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, (list, tuple)):
        return (" to " if any(isinstance(part, float) for part in value) else " × ").join(map(str, value))
    return str(value)

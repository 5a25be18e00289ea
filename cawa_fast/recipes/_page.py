"""The report's page: what is shown of the runs, and the template that shows it."""

from __future__ import annotations

import functools
import importlib.resources
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from . import _figures
from ._figures import PARTS, Colours, Paint, Series
from ._gallery import AGREEMENT, cam_run, heat_gradient, make_scenes
from .report import RARE_SHARE, Row, Run, comparison_table, share_text

_WIDE, _NARROW, _HALF, _PANEL = 960, 360, 470, 230
_MOST_PANELS = 24
_MOST_NAMES = 20  # lines of a chart that can be told apart by a name at their end
# Settings that say where and how fast a run was made, not what was trained.
_INCIDENTAL = {"seed", "device", "threads", "workers", "root"}


def render(runs: Sequence[Run], *, images: int, png: bool) -> tuple[str, dict[str, bytes]]:
    """The page, and with ``png`` its charts as PNG files by name."""
    rows = comparison_table(runs)
    classes = [row for row in rows if row.index is not None]
    rare = [row.index for row in classes if row.rare and row.index is not None]
    studio = _Studio(Colours(len(runs), len(classes)), png)
    rank = {row.index: number for number, row in enumerate(classes)}
    shown = rare or [row.index for row in classes[-3:] if row.index is not None]

    context = {
        "runs": runs,
        "rows": rows,
        "classes": classes,
        "totals": [row for row in rows if row.index is None],
        "cards": _cards(rows, runs),
        "rare": rare,
        "rare_percent": f"{100 * RARE_SHARE:g}",
        "rank": rank,
        "largest_share": max((row.share or 0.0 for row in classes), default=0.0) or 1.0,
        "miou": _miou(studio, runs),
        "panels": _panels(studio, runs, classes),
        "hidden_panels": max(len(classes) - _MOST_PANELS, 0),
        "adaptive": _adaptive(studio, runs, classes),
        "most_names": _MOST_NAMES,
        "time": _time(studio, runs),
        "parts": _parts(runs),
        "scenes": make_scenes(runs, shown, images),
        "cam_run": cam_run(runs),
        "heat_gradient": heat_gradient(),
        "agreement": AGREEMENT,
        "dataset": runs[0].dataset,
        "notes": _notes(runs),
        "settings": _settings(runs),
        "colours": studio.colours,
        "seconds": _figures.seconds_text,
        "share": share_text,
    }
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = importlib.resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(context), studio.files


@dataclass
class _Studio:
    """Draws charts for the page, and keeps those that are to be files too."""

    colours: Colours
    png: bool
    files: dict[str, bytes] = field(default_factory=dict)

    def chart(
        self, name: str, alt: str, draw: Callable[[Paint, int], Figure], widths: Sequence[int], *, file: bool = True
    ) -> list[Markup]:
        """SVG of the chart in each of ``widths`` pixels; ``draw(paint, width)`` makes it."""
        if self.png and file:
            self.save(name, draw(self.colours.light.__getitem__, widths[0]))
        return [
            Markup(_figures.to_svg(draw(self.colours.stand_in, width), self.colours, f"{name}-{width}", alt))
            for width in widths
        ]

    def save(self, name: str, figure: Figure) -> None:
        self.files[name] = _figures.to_png(figure, self.colours)


def _percent(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in values]


def _line_chart(series: Sequence[Series], height: int, paint: Paint, width: int, **options: Any) -> Figure:
    return _figures.line_chart(series, paint, (width, height), **options)


def _miou(studio: _Studio, runs: Sequence[Run]) -> list[Markup]:
    series = [Series(run.label, run.epochs, _percent(run.column("miou")), f"run{i}") for i, run in enumerate(runs)]
    ends = "; ".join(f"{run.label} ends at {100 * (run.final['miou'] or 0):.1f} %" for run in runs)

    def draw(paint: Paint, width: int) -> Figure:
        return _figures.line_chart(series, paint, (width, 320 if width > 500 else 240), unit=" %", show_last=True)

    return studio.chart("miou", f"mIoU over epochs: {ends}.", draw, (_WIDE, _NARROW))


def _panels(studio: _Studio, runs: Sequence[Run], classes: Sequence[Row]) -> list[Markup]:
    """IoU over epochs of each class, the rarest first."""
    groups = []
    for row in list(reversed(classes))[:_MOST_PANELS]:
        lines = [
            Series(None, run.epochs, _percent(run.column("iou", row.index)), f"run{i}") for i, run in enumerate(runs)
        ]
        groups.append((row, lines))
    if studio.png:
        titled = [(row.label, lines) for row, lines in groups]
        names = [(run.label, f"run{i}") for i, run in enumerate(runs)]
        studio.save("class-iou", _figures.panels(titled, names, studio.colours.light.__getitem__, unit=" %"))
    drawn = []
    for row, lines in groups:
        ends = "; ".join(
            f"{run.label} ends at {row.text(cell.final)} %" for run, cell in zip(runs, row.cells, strict=True)
        )
        drawn += studio.chart(
            f"iou-{row.index}",
            f"IoU of {row.label} over epochs: {ends}.",
            functools.partial(_line_chart, lines, 130, ticks=3, unit=" %"),
            (_PANEL,),
            file=False,
        )
    return drawn


def _adaptive(studio: _Studio, runs: Sequence[Run], classes: Sequence[Row]) -> list[dict[str, Any]]:
    """Weights and scores over epochs of each adaptive run."""
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
                    f"class{rank}",
                )
                for rank, row in enumerate(classes)
            ]

        weights, scores = lines("weight", 1), lines("csps", 100)
        ends = f"{by_weight[-1].label} has the largest weight in the end, {by_weight[0].label} the least"
        charts.append(
            {
                "run": run,
                "number": number,
                "weight": studio.chart(
                    f"weights-{number}",
                    f"Class weights of {run.label} over epochs: {ends}.",
                    functools.partial(_line_chart, weights, height, log=True, title="Weight"),
                    (_HALF,),
                )[0],
                "csps": studio.chart(
                    f"csps-{number}",
                    f"CSPS of the classes in {run.label} over epochs; the last values are in the table.",
                    functools.partial(_line_chart, scores, height, unit=" %", title="Score (CSPS)"),
                    (_HALF,),
                )[0],
            }
        )
    return charts


def _time(studio: _Studio, runs: Sequence[Run]) -> list[Markup]:
    bars = []
    for run in runs:
        seconds = run.seconds()
        bars.append((run.label, {part: seconds[part] for part in PARTS if part in seconds}))
    ends = "; ".join(f"{label} takes {_figures.seconds_text(sum(parts.values()))} s" for label, parts in bars)
    return studio.chart(
        "time",
        f"Seconds of an epoch by part: {ends}.",
        lambda paint, width: _figures.time_bars(bars, paint, width),
        (_WIDE, _NARROW),
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
        return repr(sorted((key, value) for key, value in run.config.items() if key not in _INCIDENTAL))

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
        return " × ".join(map(str, value))
    return str(value)

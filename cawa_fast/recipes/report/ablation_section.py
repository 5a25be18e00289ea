"""The section of the page on an ablation: a chart and a table for each group of rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ..ablation.results import METRIC_NAMES, difference_text, mean_text, seed_caveat, shown_metrics
from ..config import TrainConfig
from .ablation_charts import SettingDots, SweepCurve, dot_chart, sweep_chart
from .class_charts import ClassChange, change_caption, change_chart
from .figure_writer import FigureWriter
from .figures import class_colour, run_style
from .inputs import SWEPT, adaptive_row

_TITLES = {"rare_iou": "IoU of rare classes", "test_rare_iou": "test IoU of rare classes"}
_MOST_CURVES = 8
_COLOUR, _ADAPTIVE_COLOUR = run_style(0).colour, run_style(1).colour


def make_ablation_section(writer: FigureWriter, result: dict[str, Any]) -> dict[str, Any]:
    """The values that ``templates/ablation.html.j2`` shows of an ``ablation.json``."""
    done = sum(run["status"] == "done" for row in result["rows"] for run in row["runs"])
    total = sum(len(row["runs"]) for row in result["rows"])
    names, rare = result["class_names"], result["rare"]
    return {
        "dataset": result["settings"]["dataset"],
        "model": result["settings"]["model"],
        "epochs": result["epochs"],
        "seeds": result["seeds"],
        "against": result["against"],
        "done": done,
        "total": total,
        "rare": [names[index] for index in rare["classes"]],
        "rare_percent": f"{100 * rare['part'] / max(len(names), 1):.2g}",
        "honesty": seed_caveat(len(result["seeds"])),
        "command": result["command"],
        "groups": [
            _group(writer, result, key, heading)
            for key, heading in result["groups"].items()
            if any(row["group"] == key and row["summary"]["miou"] for row in result["rows"])
        ],
        "change": _change(writer, result),
    }


def _group(writer: FigureWriter, result: dict[str, Any], key: str, heading: str) -> dict[str, Any]:
    rows = [row for row in result["rows"] if row["group"] == key]
    measures = _measures(result)
    best = {
        metric: max((row["summary"][metric]["mean"] for row in rows if row["summary"][metric]), default=None)
        for metric, _ in measures
    }
    lines = []
    for row in rows:
        done = [run for run in row["runs"] if run["status"] == "done"]
        summary = row["summary"]
        lines.append(
            {
                "title": row["title"],
                "values": [
                    (mean_text(summary[metric]), bool(summary[metric]) and summary[metric]["mean"] == best[metric])
                    for metric, _ in measures
                ],
                "differences": [difference_text(row["paired"][metric]) for metric, _ in measures[:2]],
                "dead": ", ".join(str(len(run["dead"])) for run in done) or "–",
                "share": f"{100 * summary['awa_share']['mean']:.2f}" if summary["awa_share"] else "–",
            }
        )
    return {
        "key": key,
        "heading": heading,
        "measures": [METRIC_NAMES[metric] for metric, _ in measures],
        "lines": lines,
        "chart": _image(writer, result, key, rows),
    }


def _measures(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The metrics of a table and their titles in charts; those of the test images first."""
    return [(m, f"{_TITLES.get(m, METRIC_NAMES[m])}, %") for m in shown_metrics(result["rows"])]


def _image(writer: FigureWriter, result: dict[str, Any], key: str, rows: Sequence[dict[str, Any]]) -> Markup | None:
    measures = _measures(result)
    first, adaptive = measures[0][0], adaptive_row(result)
    known = [row for row in rows if row["summary"][first]]
    if len(known) < 2:
        return None
    if key in SWEPT:
        return _sweep_image(writer, result, key, known)
    if key == "rivals":  # from best to worst; the rows of other groups have an order of their own
        known = sorted(known, key=lambda row: -row["summary"][first]["mean"])
    measures = [one for one in measures[:2] if any(_values(row, one[0]) for row in known)]
    dots = [
        SettingDots(
            row["title"],
            _ADAPTIVE_COLOUR if row["settings"]["weighting"] == adaptive else _COLOUR,
            [_values(row, metric) for metric, _ in measures],
        )
        for row in known
    ]
    folders = [[run["run"] for run in row["runs"]] for row in known]
    base = next((row for row in result["rows"] if row["name"] == result["against"]), None)
    own = [run["run"] for run in base["runs"]] if base else None
    figure = dot_chart(dots, [title for _, title in measures], folders.index(own) if own in folders else None)
    means = "; ".join(f"{row['title']} {100 * row['summary'][first]['mean']:.1f} %" for row in known)
    return writer.chart(key, f"{METRIC_NAMES[first]} over seeds: {means}.", figure)


def _values(row: dict[str, Any], metric: str, index: int | None = None) -> list[float]:
    """The metric in % of each finished run, or its value of one class."""
    done = [run for run in row["runs"] if run["status"] == "done" and metric in run]
    found = [run[metric] if index is None else run[metric][index] for run in done]
    return [100 * value for value in found if value is not None]


def _sweep_image(writer: FigureWriter, result: dict[str, Any], key: str, rows: Sequence[dict[str, Any]]) -> Markup:
    """mIoU, the mean of the rare classes, and each rare class over the values of the setting.

    For delta this is the paper's figure 5.
    """
    setting = SWEPT[key]
    rows = sorted(rows, key=lambda row: row["settings"][setting])
    places = [float(row["settings"][setting]) for row in rows]
    pixels = result["train_pixels"]
    order = sorted(range(len(pixels)), key=lambda index: (-pixels[index], index))
    rarest = sorted(result["rare"]["classes"], key=pixels.__getitem__)[:_MOST_CURVES]

    def curve(label: str, colour: str, values: Sequence[Sequence[float]], bold: bool = False) -> SweepCurve | None:
        kept = [(place, found) for place, found in zip(places, values, strict=True) if found]
        means = [statistics.fmean(found) for _, found in kept]
        deviations = [statistics.stdev(found) if len(found) > 1 else None for _, found in kept]
        return SweepCurve(label, colour, [place for place, _ in kept], means, deviations, bold) if kept else None

    (first, _), (second, _), *_ = _measures(result)
    by_class = first.replace("miou", "iou")
    drawn = [
        curve(METRIC_NAMES[first], _COLOUR, [_values(row, first) for row in rows], bold=True),
        curve("rare classes", _ADAPTIVE_COLOUR, [_values(row, second) for row in rows], bold=True),
    ]
    for index in rarest:
        colour = class_colour(order.index(index), len(order))
        drawn.append(curve(result["class_names"][index], colour, [_values(row, by_class, index) for row in rows]))
    curves = [one for one in drawn if one]
    used = float(result["settings"].get(setting, getattr(TrainConfig(), setting)))
    figure = sweep_chart(curves, setting=setting, used=used if used in places else None)
    means = ", ".join(f"{place:g}: {mean:.1f} %" for place, mean in zip(curves[0].places, curves[0].means, strict=True))
    return writer.chart(key, f"mIoU over {setting}: {means}.", figure)


def _change(writer: FigureWriter, result: dict[str, Any]) -> dict[str, Any] | None:
    """Change of each class's IoU, as means over seeds: of the adaptive row, and of the best of the other methods.

    On the test images, if there are any.
    """
    first = _measures(result)[0][0]
    by_class = first.replace("miou", "iou")
    by_name, adaptive = {row["name"]: row for row in result["rows"]}, adaptive_row(result)
    base = by_name.get(result["against"])
    others = [
        row
        for row in result["rows"]
        if row["group"] == "rivals" and row["name"] not in (adaptive, result["against"]) and row["summary"][first]
    ]
    best = max(others, key=lambda row: row["summary"][first]["mean"], default=None)
    shown = [row for row in (by_name.get(adaptive), best) if row is not None and row["summary"][first]]
    if base is None or not base["summary"][first] or not shown:
        return None

    def change(row: dict[str, Any], index: int) -> float | None:
        before, after = (
            {run["seed"]: run[by_class][index] for run in one["runs"] if run["status"] == "done" and by_class in run}
            for one in (base, row)
        )
        both = [(before[seed], after[seed]) for seed in after if before.get(seed) is not None]
        differences = [100 * (b - a) for a, b in both if b is not None]
        return statistics.fmean(differences) if differences else None

    styles = [run_style(1 if row["name"] == adaptive else 0) for row in shown]
    pixels = result["train_pixels"]
    classes = [
        ClassChange(
            result["class_names"][index],
            pixels[index] / max(sum(pixels), 1),
            [(change(row, index), style) for row, style in zip(shown, styles, strict=True)],
        )
        for index in sorted(range(len(pixels)), key=lambda index: (-pixels[index], index))
    ]
    alt = f"Mean change of each class's IoU from {base['title']}, from frequent to rare classes."
    return {
        "chart": writer.chart("gain", alt, change_chart(classes)),
        "caption": change_caption(classes),
        "legend": [(row["title"], style.colour) for row, style in zip(shown, styles, strict=True)],
    }

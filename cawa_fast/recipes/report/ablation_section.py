"""Ablations on the page: a figure and a table for each group of rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from ..ablation.results import difference_text, mean_text, seed_caveat
from ..config import TrainConfig
from .class_charts import Curve, Dots, Gain, dot_chart, gain_chart, left_out, sweep_chart
from .figure_writer import NARROW, WIDE, Studio
from .figures import Paint

_SWEPT = {"delta": "delta", "tau": "tau", "clip": "w_max", "momentum": "weight_momentum", "every": "every"}
"""Groups whose rows are values of one number, with its name."""

_COLUMNS = (("miou", "mIoU, %"), ("rare_iou", "IoU of rare classes, %"), ("pixel_accuracy", "pixel accuracy, %"))
_MOST_CURVES = 8
_ADAPTIVE = "cawa"


def make_ablation(studio: Studio, result: dict[str, Any]) -> dict[str, Any]:
    """What the template shows of an ``ablation.json``."""
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
            _group(studio, result, key, heading)
            for key, heading in result["groups"].items()
            if any(row["group"] == key and row["summary"]["miou"] for row in result["rows"])
        ],
        "gain": _gain(studio, result),
    }


def _group(studio: Studio, result: dict[str, Any], key: str, heading: str) -> dict[str, Any]:
    rows = [row for row in result["rows"] if row["group"] == key]
    best = {
        metric: max((row["summary"][metric]["mean"] for row in rows if row["summary"][metric]), default=None)
        for metric, _ in _COLUMNS
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
                    for metric, _ in _COLUMNS
                ],
                "differences": [difference_text(row["paired"][metric]) for metric in ("miou", "rare_iou")],
                "dead": ", ".join(str(len(run["dead"])) for run in done) or "–",
                "share": f"{100 * summary['awa_share']['mean']:.2f}" if summary["awa_share"] else "–",
            }
        )
    return {"key": key, "heading": heading, "lines": lines, "charts": _charts(studio, result, key, rows)}


def _charts(studio: Studio, result: dict[str, Any], key: str, rows: Sequence[dict[str, Any]]) -> list[Markup]:
    known = [row for row in rows if row["summary"]["miou"]]
    if len(known) < 2:
        return []
    if key in _SWEPT:
        return _sweep(studio, result, key, known)
    if key == "rivals":  # the best first; elsewhere the order says something
        known = sorted(known, key=lambda row: -row["summary"]["miou"]["mean"])
    columns = [one for one in _COLUMNS[:2] if any(_values(row, one[0]) for row in known)]
    dots = [
        Dots(
            row["title"],
            "run1" if row["settings"]["weighting"] == _ADAPTIVE else "run0",
            [_values(row, metric) for metric, _ in columns],
        )
        for row in known
    ]
    folders = [[run["run"] for run in row["runs"]] for row in known]
    base = next((r for r in result["rows"] if r["name"] == result["against"]), None)
    own = [run["run"] for run in base["runs"]] if base else None
    against = folders.index(own) if own in folders else None
    means = "; ".join(f"{row['title']} {100 * row['summary']['miou']['mean']:.1f} %" for row in known)
    return studio.chart(
        key,
        f"mIoU over seeds: {means}.",
        lambda paint, width: dot_chart(dots, [title for _, title in columns], paint, width, against),
        (WIDE, NARROW),
    )


def _values(row: dict[str, Any], metric: str) -> list[float]:
    return [100 * run[metric] for run in row["runs"] if run["status"] == "done" and run[metric] is not None]


def _sweep(studio: Studio, result: dict[str, Any], key: str, rows: Sequence[dict[str, Any]]) -> list[Markup]:
    """mIoU, the rare classes' mean, and each rare class over the setting's values (the paper's figure 5 for delta)."""
    setting = _SWEPT[key]
    rows = sorted(rows, key=lambda row: row["settings"][setting])
    places = [float(row["settings"][setting]) for row in rows]
    pixels = result["train_pixels"]
    order = sorted(range(len(pixels)), key=lambda index: (-pixels[index], index))
    rarest = sorted(result["rare"]["classes"], key=pixels.__getitem__)[:_MOST_CURVES]

    def curve(label: str, colour: str, values: Sequence[Sequence[float]], bold: bool = False) -> Curve | None:
        kept = [(place, found) for place, found in zip(places, values, strict=True) if found]
        means = [statistics.fmean(found) for _, found in kept]
        deviations = [statistics.stdev(found) if len(found) > 1 else None for _, found in kept]
        return Curve(label, colour, [place for place, _ in kept], means, deviations, bold) if kept else None

    drawn = [
        curve("mIoU", "run0", [_values(row, "miou") for row in rows], bold=True),
        curve("rare classes", "run1", [_values(row, "rare_iou") for row in rows], bold=True),
    ]
    for index in rarest:
        of_class = [
            [
                100 * run["iou"][index]
                for run in row["runs"]
                if run["status"] == "done" and run["iou"][index] is not None
            ]
            for row in rows
        ]
        colour = studio.colours.of_class(order.index(index), len(order))
        drawn.append(curve(result["class_names"][index], colour, of_class))
    curves = [one for one in drawn if one]
    used = float(result["settings"].get(setting, getattr(TrainConfig(), setting)))

    def draw(paint: Paint, width: int) -> Figure:
        size = (width, 340 if width > 500 else 280)
        return sweep_chart(curves, paint, size, setting=setting, used=used if used in places else None)

    means = ", ".join(f"{place:g}: {mean:.1f} %" for place, mean in zip(curves[0].places, curves[0].means, strict=True))
    return studio.chart(key, f"mIoU over {setting}: {means}.", draw, (WIDE, NARROW))


def _gain(studio: Studio, result: dict[str, Any]) -> dict[str, Any] | None:
    """Share against gain of CAWA and of the best row that is not adaptive, means over seeds."""
    by_name = {row["name"]: row for row in result["rows"]}
    base = by_name.get(result["against"])
    rivals = [
        row
        for row in result["rows"]
        if row["group"] == "rivals" and row["name"] not in (_ADAPTIVE, result["against"]) and row["summary"]["miou"]
    ]
    best = max(rivals, key=lambda row: row["summary"]["miou"]["mean"], default=None)
    shown = [row for row in (by_name.get(_ADAPTIVE), best) if row is not None and row["summary"]["miou"]]
    if base is None or not base["summary"]["miou"] or not shown:
        return None
    pixels = result["train_pixels"]

    def gain(row: dict[str, Any], index: int) -> float | None:
        before = {run["seed"]: run["iou"][index] for run in base["runs"] if run["status"] == "done"}
        after = {run["seed"]: run["iou"][index] for run in row["runs"] if run["status"] == "done"}
        both = [(before[seed], after[seed]) for seed in after if before.get(seed) is not None]
        differences = [100 * (b - a) for a, b in both if b is not None]
        return statistics.fmean(differences) if differences else None

    colours = ["run1" if row["name"] == _ADAPTIVE else "run0" for row in shown]
    gains = [
        Gain(
            name,
            pixels[index] / max(sum(pixels), 1),
            [(gain(row, index), c) for row, c in zip(shown, colours, strict=True)],
        )
        for index, name in enumerate(result["class_names"])
    ]

    def draw(paint: Paint, width: int) -> Figure:
        return gain_chart(gains, paint, (width, 400 if width > 500 else 320), 40 if width > 500 else 12)

    alt = f"Mean change of each class's IoU to {base['title']} against its share of the training pixels."
    return {
        "charts": studio.chart("gain", alt, draw, (WIDE, NARROW)),
        "left_out": left_out(gains),
        "legend": [(row["title"], colour) for row, colour in zip(shown, colours, strict=True)],
    }

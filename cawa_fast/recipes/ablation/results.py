"""The results of an ablation: means, deviations, and paired differences to one row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..runs.read import Run
from ..text import markdown_code, markdown_text

TESTED = ("test_miou", "test_rare_iou", "test_pixel_accuracy")
"""Metrics of the images that no rule reads; of runs with ``test_split``."""
COMPARED = (*TESTED, "miou", "rare_iou", "pixel_accuracy")
METRICS = (*COMPARED, "seconds_per_epoch", "awa_share")

# The 97.5 % quantile of Student's t distribution for 1 to 30 degrees of freedom.
_T_975 = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139),
    *(2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963),
    *(2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272),
)


@dataclass(frozen=True)
class Summary:
    """Statistics over seeds: ``mean``, sample standard deviation ``sd`` (None with one seed), number of seeds ``n``."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    r"""Differences of two rows seed by seed, with Student's 95 % confidence interval of their mean.

    .. math:: \bar d \pm t_{0.975, n-1}\, s_d / \sqrt n

    Attributes:
        differences: by seed, of the seeds that both rows have.
        mean, sd, n: of the differences; ``sd`` is None with one seed.
        low, high: the interval; None with one seed. It assumes normally distributed differences, which two or three
            seeds cannot confirm.
        better: the number of differences above 0.
    """

    differences: dict[int, float]
    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None
    better: int


def summarize(values: Sequence[float]) -> Summary | None:
    """Mean and sample standard deviation (divisor ``n - 1``); None without values.

    Example:
        >>> summarize([4.0, 6.0, 8.0])
        Summary(mean=6.0, sd=2.0, n=3)
    """
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), sd, len(values))


def compare(row: Mapping[int, float], against: Mapping[int, float]) -> Paired | None:
    """The differences of the values of two rows by seed; None if they have no seed in common.

    Example:
        >>> paired = compare({0: 5.0, 1: 8.0}, {0: 4.0, 1: 4.0, 2: 3.0})
        >>> paired.differences, paired.mean, paired.better
        ({0: 1.0, 1: 4.0}, 2.5, 2)
    """
    differences = {seed: value - against[seed] for seed, value in row.items() if seed in against}
    values = list(differences.values())
    if not values:
        return None
    mean, n = statistics.fmean(values), len(values)
    sd = low = high = None
    if n > 1:
        sd = statistics.stdev(values)
        # Beyond 30 degrees of freedom the last value of the table is used: the interval is slightly too wide.
        half = _T_975[min(n - 1, len(_T_975)) - 1] * sd / math.sqrt(n)
        low, high = mean - half, mean + half
    return Paired(differences, mean, sd, n, low, high, sum(value > 0 for value in values))


def final_values(run: Run, rare: Sequence[int]) -> dict[str, Any]:
    """The results of a finished run after its last epoch. Times are means over all epochs but the first."""
    final = run.final
    shares = {**_shares("", final, rare), **(_shares("test_", final["test"], rare) if "test" in final else {})}
    return {
        "epochs": len(run.records),
        **shares,
        "seconds_per_epoch": run.seconds()["total"],
        "awa_share": run.awa_overhead(),
        "iou": final["iou"],
        "dead": [i for i, iou in enumerate(final["iou"]) if iou == 0],
    }


def _shares(prefix: str, metrics: Mapping[str, Any], rare: Sequence[int]) -> dict[str, Any]:
    """The metrics of a split, as the results of an ablation name them."""
    known = [metrics["iou"][index] for index in rare if metrics["iou"][index] is not None]
    return {
        f"{prefix}miou": metrics["miou"],
        f"{prefix}rare_iou": statistics.fmean(known) if known else None,
        f"{prefix}pixel_accuracy": metrics["pixel_accuracy"],
    } | ({f"{prefix}iou": metrics["iou"]} if prefix else {})


def shown_metrics(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The metrics of a table: those of the test images first, if there are any.

    Example:
        >>> shown_metrics([{"summary": {"test_miou": None}}])
        ('miou', 'rare_iou', 'pixel_accuracy')
    """
    tested = any(row["summary"].get("test_miou") for row in rows)
    return ("test_miou", "test_rare_iou", "miou", "rare_iou") if tested else COMPARED[3:]


METRIC_NAMES = {
    "test_miou": "test mIoU",
    "test_rare_iou": "test rare IoU",
    "test_pixel_accuracy": "test pixel accuracy",
    "miou": "mIoU",
    "rare_iou": "rare IoU",
    "pixel_accuracy": "pixel accuracy",
}


def with_statistics(rows: Sequence[dict[str, Any]], against: str) -> list[dict[str, Any]]:
    """``rows`` of ablation.json with ``summary`` and ``paired``, computed from the finished runs."""

    def values(row: dict[str, Any], metric: str) -> dict[int, float]:
        return {r["seed"]: r[metric] for r in row["runs"] if r["status"] == "done" and r.get(metric) is not None}

    base: dict[str, Any] = next((row for row in rows if row["name"] == against), {"runs": []})
    result = []
    for row in rows:
        summary = {metric: summarize(list(values(row, metric).values())) for metric in METRICS}
        paired = {metric: compare(values(row, metric), values(base, metric)) for metric in COMPARED}
        if [run["run"] for run in row["runs"]] == [
            run["run"] for run in base["runs"]
        ]:  # the row itself, or one with the same runs
            paired = dict.fromkeys(COMPARED)
        result.append(
            row
            | {"summary": {name: value and asdict(value) for name, value in summary.items()}}
            | {"paired": {name: value and asdict(value) for name, value in paired.items()}}
        )
    return result


def markdown(result: dict[str, Any], groups: Mapping[str, str]) -> str:
    """``ablation.md`` from the content of ``ablation.json``; ``groups`` has the headings."""
    rows, against = result["rows"], result["against"]
    done = sum(run["status"] == "done" for row in rows for run in row["runs"])
    total = sum(len(row["runs"]) for row in rows)
    rare, names = result["rare"], result["class_names"]
    seeds = len(result["seeds"])
    lines = [
        "# Ablation",
        "",
        markdown_code(result["command"]),
        "",
        f"{result['epochs']} epochs; seeds {', '.join(map(str, result['seeds']))}; {done} of {total} entries finished. "
        "Values are those **after the last epoch**, not of the best one: mean ± sample standard deviation over seeds, "
        "in %. "
        + (
            "Those of the test are measured on images that nothing in a run reads; the others, on the validation "
            "images, from which adaptive rows also compute their weights."
            if shown_metrics(rows)[0] == "test_miou"
            else "They are measured on the validation images, from which adaptive rows also compute their weights."
        ),
        "",
        f"Rare: {', '.join(markdown_text(names[i]) for i in rare['classes']) or 'none'} (fewer training pixels than "
        f"{rare['part']:g} of an even share, {100 * rare['part'] / max(len(names), 1):.2f} %).",
        "",
        f"Δ: difference to {markdown_code(against)} seed by seed, in points: mean [95 % t interval], and the number of "
        f"seeds with a difference above 0. {seed_caveat(seeds)} Runs shared the machine while they were timed: compare "
        "times only between rows of one call, on a machine that ran nothing else.",
    ]
    for group, heading in groups.items():
        mine = [row for row in rows if row["group"] == group]
        if mine:
            lines += ["", f"## {heading}", "", *_table(mine)]
    broken = {run["run"]: run for row in rows for run in row["runs"] if run["status"] != "done"}
    if broken:
        lines += ["", "## Not finished", ""]
        lines += [
            f"- {markdown_code(name)}: {markdown_text(run['error'] or run['status'])}" for name, run in broken.items()
        ]
    return "\n".join(lines) + "\n"


def seed_caveat(seeds: int) -> str:
    """What the number of seeds allows to conclude, in sentences for the report."""
    many = "By chance, one row in twenty lies outside its interval."
    if seeds < 2:
        return "One seed does not show how much results vary by chance; no interval can be given."
    if seeds >= 6:
        return many
    return (
        f"With {seeds} seeds, even differences of the same sign on all seeds have only p = {2 ** (1 - seeds):.2g} in a "
        f"sign test, so the table is only a hint. {many}"
    )


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    metrics = shown_metrics(rows)
    names = [METRIC_NAMES[metric] for metric in metrics]
    heads = ["row", *names, *(f"Δ {name}" for name in names[:2]), "dead classes", "s / epoch", "AWA, %"]
    lines = [f"| {' | '.join(heads)} |", f"|---{'|--:' * (len(heads) - 1)}|"]
    best: dict[str, float | None] = {}
    for metric in metrics:
        means = {summary["mean"] for row in rows if (summary := row["summary"][metric])}
        best[metric] = max(means) if len(means) > 1 else None
    for row in rows:
        summary, paired = row["summary"], row["paired"]
        done = [run for run in row["runs"] if run["status"] == "done"]
        title, name = markdown_text(row["title"]), markdown_code(row["name"], cell=True)
        cells = [title if row["name"] == row["title"].replace(" ", "") else f"{title} ({name})"]
        cells += [mean_text(summary[metric], best[metric]) for metric in metrics]
        cells += [difference_text(paired[metric]) for metric in metrics[:2]]
        cells.append(", ".join(str(len(run["dead"])) for run in done) or "–")
        seconds, share = summary["seconds_per_epoch"], summary["awa_share"]
        cells.append(f"{seconds['mean']:.3g}" if seconds else "–")
        cells.append(f"{100 * share['mean']:.2f}" if share else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def mean_text(summary: Mapping[str, Any] | None, best: float | None = None) -> str:
    """``41.2 ± 0.5``, in %; in bold Markdown if the mean is ``best``."""
    if summary is None:
        return "–"
    mean = f"{100 * summary['mean']:.1f}"
    shown = f"**{mean}**" if summary["mean"] == best else mean
    return shown if summary["sd"] is None else f"{shown} ± {100 * summary['sd']:.1f}"


def difference_text(paired: Mapping[str, Any] | None) -> str:
    """``+1.2 [−0.3, +2.7] 3/3``, in points; empty for None."""
    if paired is None:
        return ""
    shown = _signed(paired["mean"])
    if paired["low"] is not None:
        shown += f" [{_signed(paired['low'])}, {_signed(paired['high'])}]"
    return f"{shown} {paired['better']}/{paired['n']}"


def _signed(value: float) -> str:
    shown = f"{100 * value:+.1f}".replace("-", "−")
    return shown if float(shown[1:]) else shown[1:]  # zero has no sign

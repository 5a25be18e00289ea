"""What an ablation found: means, deviations, and each row's paired difference to one of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..runs.read import Run

METRICS = ("miou", "rare_iou", "pixel_accuracy", "seconds_per_epoch", "awa_share")
COMPARED = ("miou", "rare_iou", "pixel_accuracy")

# The 97.5 % point of Student's t for 1, 2, ... degrees of freedom.
_T = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139),
    *(2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963),
    *(2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272),
)


@dataclass(frozen=True)
class Summary:
    """Values over seeds: ``mean``, sample standard deviation ``sd`` (None with one seed), and their number ``n``."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    r"""Differences of two rows, seed by seed, with Student's 95 % interval of their mean.

    .. math:: \bar d \pm t_{0.975, n-1}\, s_d / \sqrt n

    Attributes:
        differences: by seed, of the seeds that both rows have.
        mean, sd, n: of the differences; ``sd`` is None with one seed.
        low, high: the interval; None with one seed. It supposes that the differences are normally distributed, which
            two or three of them cannot show.
        better: how many differences are above 0.
    """

    differences: dict[int, float]
    mean: float
    sd: float | None
    n: int
    low: float | None
    high: float | None
    better: int


def summarize(values: Sequence[float]) -> Summary | None:
    """Mean and sample standard deviation (divisor ``n - 1``); None of no values.

    Example:
        >>> summarize([4.0, 6.0, 8.0])
        Summary(mean=6.0, sd=2.0, n=3)
    """
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), sd, len(values))


def compare(row: Mapping[int, float], against: Mapping[int, float]) -> Paired | None:
    """The differences of two rows' values by seed; None where no seed is in both.

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
        # beyond the table its last value, which makes the interval too wide rather than too narrow
        half = _T[min(n - 1, len(_T)) - 1] * sd / math.sqrt(n)
        low, high = mean - half, mean + half
    return Paired(differences, mean, sd, n, low, high, sum(value > 0 for value in values))


def final_values(run: Run, rare: Sequence[int]) -> dict[str, Any]:
    """A finished run's numbers: after the last epoch, times as means over the epochs but the first."""
    final = run.final
    known = [final["iou"][index] for index in rare if final["iou"][index] is not None]
    return {
        "epochs": len(run.records),
        "miou": final["miou"],
        "rare_iou": statistics.fmean(known) if known else None,
        "pixel_accuracy": final["pixel_accuracy"],
        "seconds_per_epoch": run.seconds()["total"],
        "awa_share": run.awa_overhead(),
        "iou": final["iou"],
        "dead": [i for i, iou in enumerate(final["iou"]) if iou == 0],
    }


def with_statistics(rows: Sequence[dict[str, Any]], against: str) -> list[dict[str, Any]]:
    """``rows`` of ablation.json with ``summary`` and ``paired``, from the finished runs alone."""

    def values(row: dict[str, Any], metric: str) -> dict[int, float]:
        return {r["seed"]: r[metric] for r in row["runs"] if r["status"] == "done" and r[metric] is not None}

    base: dict[str, Any] = next((row for row in rows if row["name"] == against), {"runs": []})
    result = []
    for row in rows:
        summary = {metric: summarize(list(values(row, metric).values())) for metric in METRICS}
        paired = {metric: compare(values(row, metric), values(base, metric)) for metric in COMPARED}
        if [run["run"] for run in row["runs"]] == [run["run"] for run in base["runs"]]:  # itself, by any name
            paired = dict.fromkeys(COMPARED)
        result.append(
            row
            | {"summary": {name: value and asdict(value) for name, value in summary.items()}}
            | {"paired": {name: value and asdict(value) for name, value in paired.items()}}
        )
    return result


# -------------------------------------------------------------------------------------------------------- Markdown


def markdown(result: dict[str, Any], groups: Mapping[str, str]) -> str:
    """``ablation.md`` of what ``ablation.json`` holds; ``groups`` are the headings."""
    rows, against = result["rows"], result["against"]
    done = sum(run["status"] == "done" for row in rows for run in row["runs"])
    total = sum(len(row["runs"]) for row in rows)
    rare, names = result["rare"], result["class_names"]
    seeds = len(result["seeds"])
    lines = [
        "# Ablation",
        "",
        f"`{result['command']}`",
        "",
        f"{result['epochs']} epochs; seeds {', '.join(map(str, result['seeds']))}; {done} of {total} entries finished. "
        "Values are those **after the last epoch**, not of the best one: mean ± sample standard deviation over seeds, "
        "in %. They are of the validation images, which the adaptive rows also take their weights from.",
        "",
        f"Rare: {', '.join(names[i] for i in rare['classes']) or 'none'} (fewer training pixels than "
        f"{rare['part']:g} of an even share, {100 * rare['part'] / max(len(names), 1):.2f} %).",
        "",
        f"Δ: difference to `{against}` seed by seed, in points: mean [95 % t interval], and on how many seeds it is "
        f"above 0. {honesty(seeds)} Times are of runs side by side: they compare rows of one call on a machine that "
        "does nothing else.",
    ]
    for group, heading in groups.items():
        mine = [row for row in rows if row["group"] == group]
        if mine:
            lines += ["", f"## {heading}", "", *_table(mine)]
    broken = {run["run"]: run for row in rows for run in row["runs"] if run["status"] != "done"}
    if broken:
        lines += ["", "## Not finished", ""]
        lines += [f"- `{name}`: {run['error'] or run['status']}" for name, run in broken.items()]
    return "\n".join(lines) + "\n"


def honesty(seeds: int) -> str:
    many = "Of many rows one in twenty lies outside its interval by chance."
    if seeds < 2:
        return "One seed shows nothing about chance: no interval can be given."
    least = f"{2 ** (1 - seeds):.2g}"
    few = (
        f" With {seeds} seeds even a difference of the same sign on all has p = {least} in a sign test"
        if seeds < 6
        else ""
    )
    return (f"{few.strip()}: take the table as a hint. " if few else "") + many


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    head = "| row | mIoU | rare IoU | pixel accuracy | Δ mIoU | Δ rare IoU | dead classes | s / epoch | AWA, % |"
    lines = [head, "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    best: dict[str, float | None] = {}
    for metric in COMPARED:
        means = {summary["mean"] for row in rows if (summary := row["summary"][metric])}
        best[metric] = max(means) if len(means) > 1 else None
    for row in rows:
        summary, paired = row["summary"], row["paired"]
        done = [run for run in row["runs"] if run["status"] == "done"]
        cells = [row["title"] if row["name"] == row["title"].replace(" ", "") else f"{row['title']} (`{row['name']}`)"]
        cells += [mean_text(summary[metric], best[metric]) for metric in COMPARED]
        cells += [difference_text(paired[metric]) for metric in ("miou", "rare_iou")]
        cells.append(", ".join(str(len(run["dead"])) for run in done) or "–")
        seconds, share = summary["seconds_per_epoch"], summary["awa_share"]
        cells.append(f"{seconds['mean']:.3g}" if seconds else "–")
        cells.append(f"{100 * share['mean']:.2f}" if share else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def mean_text(summary: Mapping[str, Any] | None, best: float | None = None) -> str:
    """``41.2 ± 0.5``, in %; bold in Markdown where the mean is ``best``."""
    if summary is None:
        return "–"
    mean = f"{100 * summary['mean']:.1f}"
    shown = f"**{mean}**" if summary["mean"] == best else mean
    return shown if summary["sd"] is None else f"{shown} ± {100 * summary['sd']:.1f}"


def difference_text(paired: Mapping[str, Any] | None) -> str:
    """``+1.2 [−0.3, +2.7] 3/3``, in points; nothing where there is no difference to speak of."""
    if paired is None:
        return ""
    shown = _signed(paired["mean"])
    if paired["low"] is not None:
        shown += f" [{_signed(paired['low'])}, {_signed(paired['high'])}]"
    return f"{shown} {paired['better']}/{paired['n']}"


def _signed(value: float) -> str:
    shown = f"{100 * value:+.1f}".replace("-", "−")
    return shown if float(shown[1:]) else shown[1:]  # no sign without a digit

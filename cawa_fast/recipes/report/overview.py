"""The table of models by dataset: the final mIoU of every method over seeds, as in the paper's table 1.

It is that of the test images where all runs have some, else that of the validation images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..ablation.results import Paired, Summary, compare, difference_text, mean_text, summarize
from ..runs.read import Run

if TYPE_CHECKING:
    from rich.table import Table

_AXES = {"seed", "dataset", "model", "backbone", "weighting"}  # settings with a place of their own in the table
INCIDENTAL = {"device", "threads", "workers", "root", "allow_outside_root"}
"""Settings that say where and how fast a run was trained, and should not change its result."""


@dataclass(frozen=True)
class OverviewEntry:
    """One method with one model on one dataset.

    Attributes:
        summary: mIoU, of the test if :attr:`Overview.tested`, after the last epoch, over seeds.
        paired: its difference to the baseline with the same seed; None for the baseline.
    """

    summary: Summary
    paired: Paired | None

    @property
    def mean(self) -> str:
        """``41.2 ± 0.5``, in %."""
        return mean_text(vars(self.summary))

    @property
    def difference(self) -> str:
        """``+1.2 [−0.3, +2.7] 3/3``, in points."""
        return "" if self.paired is None else difference_text(vars(self.paired))


@dataclass(frozen=True)
class OverviewLine:
    """One method with one model; ``entries`` has one entry per dataset, None without runs."""

    model: str
    method: str
    entries: tuple[OverviewEntry | None, ...]


@dataclass(frozen=True)
class Overview:
    """The table: a column per dataset, and lines by model. The first method of each model is the baseline."""

    datasets: tuple[str, ...]
    lines: tuple[OverviewLine, ...]
    tested: bool = False


def make_overview(runs: Sequence[Run]) -> Overview | None:
    """The table of ``runs``; None if it would say nothing: one dataset, one model, and one run of each method."""
    datasets = tuple(dict.fromkeys(run.config["dataset"] for run in runs))
    models = tuple(dict.fromkeys(_model(run) for run in runs))
    tested = all("test" in run.final for run in runs)
    cells: dict[tuple[str, str, str], dict[int, float]] = {}
    for run, method in zip(runs, _methods(runs), strict=True):
        value = (run.final["test"] if tested else run.final)["miou"]
        if value is None:
            continue
        cell = (_model(run), method, run.config["dataset"])
        if run.config["seed"] in cells.get(cell, {}):  # the same settings on another device get a line of their own
            cell = (cell[0], f"{method}, {run.label}", cell[2])
        cells.setdefault(cell, {})[run.config["seed"]] = value
    if not cells or (len(datasets) == len(models) == 1 and all(len(values) == 1 for values in cells.values())):
        return None
    lines = []
    for model in models:
        methods = tuple(dict.fromkeys(method for of, method, _ in cells if of == model))
        for method in methods:
            entries = []
            for dataset in datasets:
                found = cells.get((model, method, dataset), {})
                base = cells.get((model, methods[0], dataset), {})
                paired = compare(found, base) if method != methods[0] else None
                summary = summarize(list(found.values()))
                entries.append(OverviewEntry(summary, paired) if summary else None)
            lines.append(OverviewLine(model, method, tuple(entries)))
    return Overview(datasets, tuple(lines), tested)


def _model(run: Run) -> str:
    backbone = run.config.get("backbone")
    return run.config["model"] if backbone is None else f"{run.config['model']} {backbone}"


def _methods(runs: Sequence[Run]) -> list[str]:
    """The weighting of each run, with the settings in which runs of the same model, dataset and weighting differ."""

    def kind(run: Run) -> tuple[str, str, str]:
        return _model(run), run.config["dataset"], run.config["weighting"]

    names = []
    for run in runs:
        alike = [other.config for other in runs if kind(other) == kind(run)]
        differ = [
            name
            for name in run.config
            if name not in _AXES | INCIDENTAL and len({repr(config.get(name)) for config in alike}) > 1
        ]
        settings = ", ".join(f"{name} {run.config[name]}" for name in differ)
        names.append(f"{run.config['weighting']} ({settings})" if settings else run.config["weighting"])
    return names


def overview_table(overview: Overview) -> Table:
    """The overview for a terminal, as a ``rich`` table."""
    from ..terminal import PlainTable

    metric = "Test mIoU" if overview.tested else "mIoU"
    table = PlainTable(f"{metric} after the last epoch in %; Δ: difference in points with the same seed")
    table.add_names("model", (line.model for line in overview.lines))
    table.add_names("method", (line.method for line in overview.lines))
    for dataset in overview.datasets:
        table.add_numbers(dataset, no_wrap=False)
        table.add_numbers("Δ", no_wrap=False)
    for number, line in enumerate(overview.lines):
        new = number == 0 or overview.lines[number - 1].model != line.model
        cells = [line.model if new else "", line.method]
        for entry in line.entries:
            cells += [entry.mean, entry.difference] if entry else ["", ""]
        last = number + 1 == len(overview.lines) or overview.lines[number + 1].model != line.model
        table.add_row(*cells, end_section=last)
    return table

"""What a report shows: runs and ablations, read from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..ablation.results import with_statistics
from ..runs.compare import RARE
from ..runs.contents import check_ablation
from ..runs.folder import RunFolder
from ..runs.read import Run, StrPath, labelled, load_run, read_object

ABLATION_FILE = "ablation.json"
ADAPTIVE_ROWS = ("balanced", "cawa")
"""Rows that a report shows against the others: the first of them that an ablation has."""
SWEPT = {"delta": "delta", "tau": "tau", "clip": "w_max", "momentum": "weight_momentum", "every": "every"}
"""Groups whose rows are values of one numeric setting, with the name of the setting."""


def adaptive_row(ablation: dict[str, Any]) -> str:
    """The name of the row that a report shows against the others."""
    names = {row["name"] for row in ablation["rows"]}
    return next((name for name in ADAPTIVE_ROWS if name in names), ADAPTIVE_ROWS[-1])


@dataclass(frozen=True)
class ReportInputs:
    """What a report shows.

    Attributes:
        runs: in the given order. The first run of each dataset is the baseline of the others.
        ablations: the contents of each ``ablation.json``.
        rare_parts: for datasets of ablations, the part of an even share below which a class is rare: the ``part`` of
            :func:`~cawa_fast.recipes.runs.compare.rare_classes`.
    """

    runs: list[Run]
    ablations: list[dict[str, Any]]
    rare_parts: dict[str, float] = field(default_factory=dict)

    def rare_part(self, dataset: str) -> float:
        """The part of an even share below which a class of this dataset is rare."""
        return self.rare_parts.get(dataset, RARE)


def load_inputs(paths: Sequence[StrPath]) -> ReportInputs:
    """Read run folders, folders of ``cawa-fast ablate``, and files ``ablation.json``.

    From the folder of an ablation this also reads the runs of its baseline and of its adaptive row with the first seed,
    if they are there. A class is rare as the ablation's ``--rare`` says, also for single runs from the folder of an
    ablation. If ablations on one dataset disagree, the first one counts.

    Raises:
        FileNotFoundError: a folder or a file in it is missing.
        ValueError: no paths, damaged files, or a folder given twice.
    """
    if not paths:
        raise ValueError("run_dirs is empty; give the folder of at least one run")
    runs: list[Run] = []
    ablations: list[dict[str, Any]] = []
    sources: list[dict[str, Any]] = []
    given = {Path(path).resolve() for path in paths}
    for path in map(Path, paths):
        file = path / ABLATION_FILE if path.is_dir() else path
        if file.suffix != ".json" or (path.is_dir() and not file.is_file()):
            runs.append(load_run(path))
            sources += _ablations_of_run(path.resolve())
            continue
        ablation = read_object(file)
        if ablation.get("format") != 1:
            raise ValueError(
                f"{file} is not a result of `cawa-fast ablate` that this version can read; run the ablation again"
            )
        try:
            check_ablation(ablation, SWEPT)
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}); `cawa-fast ablate` writes it again") from error
        ablation = {**ablation, "rows": with_statistics(ablation["rows"], ablation["against"])}
        ablations.append(ablation)
        taken = given | {run.path.resolve() for run in runs}
        runs += [run for run in _first_runs(ablation, file.parent) if run.path.resolve() not in taken]
    labelled(runs)  # raises an error if a folder is given twice
    rare_parts: dict[str, float] = {}
    for ablation in ablations + sources:
        rare_parts.setdefault(ablation["settings"]["dataset"], ablation["rare"]["part"])
    return ReportInputs(runs, ablations, rare_parts)


def _first_runs(ablation: dict[str, Any], folder: Path) -> list[Run]:
    """The finished runs of the baseline and of the adaptive row with the first seed."""
    names: list[str] = []
    for row in (ablation["against"], adaptive_row(ablation)):
        found = [r["runs"] for r in ablation["rows"] if r["name"] == row]
        names += [run["run"] for run in found[0][:1] if run["status"] == "done"] if found else []
    return [load_run(folder / name) for name in dict.fromkeys(names) if RunFolder(folder / name).metrics_file.is_file()]


def _ablations_of_run(path: Path) -> list[dict[str, Any]]:
    """The ablation that trained the run in this folder; empty if the run was trained alone.

    The user has not asked for a file that lies beside the run: what it does not hold is no error.
    """
    file = path.parent / ABLATION_FILE
    try:
        ablation = read_object(file)
        names = {run["run"] for row in ablation["rows"] for run in row["runs"]}
        check_ablation(ablation, SWEPT)
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [ablation] if ablation.get("format") == 1 and path.name in names else []

"""What a report is made of: runs and ablations, read from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runs.folder import RunFolder
from ..runs.read import Run, StrPath, labelled, load_run, read_object

ABLATION = "ablation.json"
ADAPTIVE_ROW = "cawa"


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made of.

    Attributes:
        runs: in the given order; the first of each data set is what the others are compared with.
        ablations: what each ``ablation.json`` holds.
    """

    runs: list[Run]
    ablations: list[dict[str, Any]]


def load(paths: Sequence[StrPath]) -> ReportInputs:
    """Read run folders, and folders (or files ``ablation.json``) that ``cawa-fast ablate`` has written.

    Of an ablation the runs of the baseline and of CAWA with the first seed are read too, where they are at hand.

    Raises:
        FileNotFoundError: a folder or a file in it is missing.
        ValueError: no paths, damaged files, or a folder given twice.
    """
    if not paths:
        raise ValueError("run_dirs is empty; give at least one run's folder")
    runs: list[Run] = []
    ablations = []
    given = {Path(path).resolve() for path in paths}
    for path in map(Path, paths):
        file = path / ABLATION if path.is_dir() else path
        if file.suffix != ".json" or (path.is_dir() and not file.is_file()):
            runs.append(load_run(path))
            continue
        ablation = read_object(file)
        if ablation.get("format") != 1:
            raise ValueError(f"{file} is no result of `cawa-fast ablate` that this version knows; make it again")
        ablations.append(ablation)
        taken = given | {run.path.resolve() for run in runs}
        runs += [run for run in _examples(ablation, file.parent) if run.path.resolve() not in taken]
    labelled(runs)  # raises where a folder is given twice
    return ReportInputs(runs, ablations)


def _examples(ablation: dict[str, Any], folder: Path) -> list[Run]:
    names: list[str] = []
    for row in (ablation["against"], ADAPTIVE_ROW):
        found = [r["runs"] for r in ablation["rows"] if r["name"] == row]
        names += [run["run"] for run in found[0][:1] if run["status"] == "done"] if found else []
    return [load_run(folder / name) for name in dict.fromkeys(names) if RunFolder(folder / name).metrics_file.is_file()]

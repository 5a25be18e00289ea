"""One self-contained HTML page of training runs and ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic
from ..runs.compare import terminal_table
from ..runs.folder import RunFolder
from ..runs.read import Run, StrPath, by_dataset, labelled, load_run, read_object
from .overview import make_overview
from .overview import terminal_table as overview_table

if TYPE_CHECKING:
    from rich.table import Table

ABLATION = "ablation.json"
_ADAPTIVE_ROW = "cawa"


@dataclass(frozen=True)
class Material:
    """What a report is made of.

    Attributes:
        runs: in the given order; the first of each data set is what the others are compared with.
        ablations: what each ``ablation.json`` holds.
    """

    runs: list[Run]
    ablations: list[dict[str, Any]]


def load(paths: Sequence[StrPath]) -> Material:
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
    return Material(runs, ablations)


def _examples(ablation: dict[str, Any], folder: Path) -> list[Run]:
    names: list[str] = []
    for row in (ablation["against"], _ADAPTIVE_ROW):
        found = [r["runs"] for r in ablation["rows"] if r["name"] == row]
        names += [run["run"] for run in found[0][:1] if run["status"] == "done"] if found else []
    return [load_run(folder / name) for name in dict.fromkeys(names) if RunFolder(folder / name).metrics_file.is_file()]


def terminal_tables(material: Material) -> list[Table]:
    """The same in a terminal: models by data sets, the ablations, and the classes of each data set's runs."""
    from ..ablation.progress import result_table

    overview = make_overview(material.runs)
    tables = [overview_table(overview)] if overview else []
    tables += [result_table(ablation) for ablation in material.ablations]
    return tables + [terminal_table(group) for group in by_dataset(material.runs)]


def write_report(run_dirs: Sequence[StrPath] | Material, out: StrPath, *, images: int = 4, png: bool = False) -> Path:
    """Write one HTML page that compares runs; it needs no other file and no network.

    Args:
        run_dirs: folders of runs (differences are to the first on the same data set) and of ablations, or what
            :func:`load` made of them.
        out: the page's file; written under a temporary name and renamed.
        images: validation images of each data set to show: those with the classes that changed most; 0 for none, and
            then no checkpoint is read.
        png: also write the figures beside the page, as ``<out's stem>-<figure>.png``.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: a folder, a file in it, or the data set is missing.
        ValueError: damaged files, runs that do not compare, or ``images`` below 0.

    Example:
        >>> write_report(["runs/uniform", "runs/cawa"], "report.html")  # doctest: +SKIP
        PosixPath('report.html')
    """
    from .page import render  # matplotlib and jinja2 come with the extra "train" only

    if images < 0:
        raise ValueError(f"images must be at least 0, got {images}")
    out = Path(out)
    material = run_dirs if isinstance(run_dirs, Material) else load(run_dirs)
    page, figures = render(material, images=images, png=png)
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, content in figures.items():
        with atomic(out.with_name(f"{out.stem}-{name}.png")) as file:
            file.write(content)
    with atomic(out) as file:
        file.write(page.encode())
    return out

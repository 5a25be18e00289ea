"""One self-contained HTML page of training runs and ablations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..runs.compare import terminal_table
from ..runs.folder import atomic
from ..runs.read import StrPath, by_dataset
from .inputs import ReportInputs, load
from .overview import make_overview
from .overview import terminal_table as overview_table

if TYPE_CHECKING:
    from rich.table import Table


def terminal_tables(inputs: ReportInputs) -> list[Table]:
    """The same in a terminal: models by data sets, the ablations, and the classes of each data set's runs."""
    from ..ablation.progress import result_table

    overview = make_overview(inputs.runs)
    tables = [overview_table(overview)] if overview else []
    tables += [result_table(ablation) for ablation in inputs.ablations]
    return tables + [terminal_table(group) for group in by_dataset(inputs.runs)]


def write_report(
    run_dirs: Sequence[StrPath] | ReportInputs, out: StrPath, *, images: int = 4, png: bool = False
) -> Path:
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
    inputs = run_dirs if isinstance(run_dirs, ReportInputs) else load(run_dirs)
    page, figures = render(inputs, images=images, png=png)
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, content in figures.items():
        with atomic(out.with_name(f"{out.stem}-{name}.png")) as file:
            file.write(content)
    with atomic(out) as file:
        file.write(page.encode())
    return out

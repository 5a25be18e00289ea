"""Writes the report: one self-contained HTML page on training runs and ablations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import atomic, make_folder
from ..runs.compare import terminal_table
from ..runs.read import StrPath, by_dataset
from .inputs import ReportInputs, load_inputs
from .overview import make_overview, overview_table

if TYPE_CHECKING:
    from rich.table import Table


def terminal_tables(inputs: ReportInputs) -> list[Table]:
    """The tables of the report for a terminal: models by dataset, the ablations, and the classes of each dataset."""
    from ..ablation.progress import result_table

    overview = make_overview(inputs.runs)
    tables = [overview_table(overview)] if overview else []
    tables += [result_table(ablation) for ablation in inputs.ablations]
    for group in by_dataset(inputs.runs):
        tables.append(terminal_table(group, inputs.rare_part(group[0].config["dataset"])))
    return tables


def write_report(
    run_dirs: Sequence[StrPath] | ReportInputs, out: StrPath, *, images: int = 4, png: bool = False
) -> Path:
    """Write one HTML page that compares runs. The page needs no other file and no network.

    Args:
        run_dirs: folders of runs and ablations, or the result of :func:`~.inputs.load_inputs`. On each dataset the
            first run is the baseline of the others.
        out: file of the page. It appears complete or not at all.
        images: number of validation images to show for each dataset, chosen for the classes that changed most. With 0
            the report needs no checkpoint.
        png: also write each figure beside the page, as ``<stem of out>-<figure>.png``.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: a folder, a file in it, or the dataset is missing.
        ValueError: damaged files, runs with different classes on one dataset, or ``images`` below 0.

    Example:
        >>> write_report(["runs/uniform", "runs/cawa"], "report.html")  # doctest: +SKIP
        PosixPath('report.html')
    """
    from .page import render  # matplotlib and jinja2 come only with the extra "train"

    if images < 0:
        raise ValueError(f"images must be at least 0, got {images}")
    out = Path(out)
    inputs = run_dirs if isinstance(run_dirs, ReportInputs) else load_inputs(run_dirs)
    page, figures = render(inputs, images=images, png=png)
    make_folder(out.parent)
    for name, content in figures.items():
        with atomic(out.with_name(f"{out.stem}-{name}.png")) as file:
            file.write(content)
    with atomic(out) as file:
        file.write(page.encode())
    return out

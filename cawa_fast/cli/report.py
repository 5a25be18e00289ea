"""``cawa-fast report``."""

from __future__ import annotations

from pathlib import Path

import click

from ..recipes.terminal import open_console, say
from .errors import error_messages


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="Page to write.",
)
@click.option(
    "--images",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="Number of validation images to show per dataset.",
)
@click.option("--png", is_flag=True, help="Also write every figure beside the page, as OUT-FIGURE.png.")
def report(runs: tuple[Path, ...], out: Path, images: int, png: bool) -> None:
    """Compare RUNS in tables and on one self-contained HTML page.

    RUNS are run folders, output folders of `cawa-fast ablate`, or their ablation.json. For each dataset the first run
    is the one that the others are compared with. Of runs with --test-split, the test comes before the validation.
    """
    from ..recipes.report.inputs import ABLATION_FILE, load_inputs
    from ..recipes.report.report import terminal_tables, write_report
    from ..recipes.runs.folder import RunFolder

    def known(path: Path) -> bool:
        return path.suffix == ".json" or (path / ABLATION_FILE).is_file() or RunFolder(path).exists()

    console = open_console()
    with error_messages():
        if len(runs) > 1 and (others := [run for run in runs if not known(run)]):  # as in runs/*
            say(console, f"Not run folders, left out: {', '.join(map(str, others))}")
            runs = tuple(run for run in runs if run not in others)
        inputs = load_inputs(runs)
        for table in terminal_tables(inputs):
            console.print(table)
        page = write_report(inputs, out, images=images, png=png)
    say(console, f"Page: {page}")

"""``cawa-fast ablate``."""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ..recipes.config import TrainConfig
from ..recipes.terminal import open_console, say
from .errors import error_messages
from .options import Numbers, settings_options


@click.command(context_settings={"max_content_width": 110})
@click.option(
    "--rows",
    default="rivals,ladder",
    show_default=True,
    help="What to compare, comma-separated: groups, all, names of rows, or settings (delta=0.5+ratio=none).",
)
@click.option(
    "--seeds", type=Numbers(), default="0,1,2", show_default=True, help="Seeds that every row is trained with."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/ablation"),
    show_default=True,
    help="Folder for the runs and the results.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Number of runs at a time.  [default: one per core, at most 8; on GPUs one per GPU]",
)
@click.option("--against", default="uniform", show_default=True, help="Row that the others are compared with.")
@click.option(
    "--rare",
    default=0.2,
    show_default=True,
    help="A class is rare if its pixel share is below this fraction of an even share.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show the rows, what is finished and the time that the rest takes; train nothing."
)
@functools.partial(settings_options, without=("weighting", "seed"))
def ablate(
    rows: str,
    seeds: tuple[int, ...],
    out: Path,
    jobs: int | None,
    against: str,
    rare: float,
    dry_run: bool,
    **settings: Any,
) -> None:
    """Train rows of settings over several seeds and compare each with the row --against, seed by seed.

    \b
    Groups of rows:
      rivals     the baselines: every class weighting and loss of `cawa-fast train --weighting`
      ladder     the parts of the method, added one at a time
      ratio      scores from maps or from predictions, with each mode of the ratio
      delta, tau, normalize, classes, counts, cam, clip, momentum, every    a sweep of one CAWA setting

    Every run is a folder OUT/ROW-sSEED as `cawa-fast train` writes it. ablation.json and ablation.md beside them hold
    the mean and the standard deviation over the seeds after the last epoch. Rows with equal settings share a run.
    After a stop, a kill or a failure the same command continues: finished runs are not repeated. Settings and data must
    be those of the runs that are there. With --test-split the tables show images first that no rule reads: rules that
    compute weights from the validation images are judged by these.
    """
    from ..recipes.ablation.ablation import Ablation, choose_rows
    from ..recipes.ablation.progress import AblationDisplay, plan_table, plan_text, result_table
    from ..recipes.training.signals import sigterm_interrupts

    console = open_console()
    with error_messages(lambda: "Stopped; all finished epochs are saved. Run the same command to continue."):
        if settings["root"] is not None:
            settings["root"] = str(Path(settings["root"]).resolve())
        chosen = choose_rows([word.strip() for word in rows.split(",") if word.strip()])
        ablation = Ablation(out, TrainConfig(**settings), chosen, seeds, jobs=jobs, against=against, rare=rare)
        if dry_run:
            console.print(plan_table(ablation))
        say(console, plan_text(ablation))
        if dry_run:
            return
        with sigterm_interrupts(), AblationDisplay(console, ablation) as display:
            ablation.run(display)
        result = ablation.results()
        if result is not None:
            console.print(result_table(result))
            say(console, f"Written: {out / 'ablation.md'}, {out / 'ablation.json'}. ")
            say(console, f"See it with `cawa-fast report {shlex.quote(str(out))}`.")
    if ablation.failed:
        for state in ablation.failed:
            say(console, f"{state.name} failed: {state.error}")
        say(console, "Run the same command to try them again.")
        sys.exit(1)

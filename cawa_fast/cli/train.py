"""``cawa-fast train``."""

from __future__ import annotations

import contextlib
import functools
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..recipes.config import TrainConfig
from ..recipes.parallel import cpu_count
from ..recipes.terminal import open_console, say
from .errors import error_messages
from .options import settings_options

if TYPE_CHECKING:
    from ..recipes.training.progress import TrainingDisplay
    from ..recipes.training.trainer import Trainer

PREFLIGHT_SECONDS = 2.0
"""Time for looking at files of each split before the first batch."""


@click.command(context_settings={"max_content_width": 110})
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run.  [default: runs/DATASET-MODEL[-BACKBONE]-WEIGHTING-sSEED]",
)
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir with its stored settings, or begin it.")
@click.option(
    "--tables/--no-tables", default=True, show_default=True, help="Print the table per class after every epoch."
)
@settings_options
@click.pass_context
def train(ctx: click.Context, run_dir: Path | None, resume: bool, tables: bool, **settings: Any) -> None:
    """Train a network. After every validation pass, score the classes and update their weights.

    Writes config.json, dataset.json, metrics.jsonl (one line per epoch), confusion.json, TensorBoard events, latest.pt,
    previous.pt (the epoch before) and best.pt into the run folder. A stopped or killed run continues with --resume. On
    the CPU it ends with the same bits as an uninterrupted run. Classes, files and labels must be those that it was
    begun with; the folder that holds them may be moved (--root). Only one process at a time may train in a folder.

    --test-split names images that no rule reads. Judge rules that read the validation images by these.

    Before the first batch it prints what cawa-fast doctor data would warn of, after a look at as many files as two
    seconds allow.

    Under torchrun the processes share every batch and the validation set. --batch-size is the total over all processes.
    With torchrun --max-restarts N and --resume, a run of which a process was killed goes on by itself.
    """
    from ..recipes.runs.folder import RunFolder
    from ..recipes.training import distributed
    from ..recipes.training.progress import TrainingDisplay
    from ..recipes.training.signals import sigterm_interrupts
    from ..recipes.training.trainer import Trainer

    console = open_console()
    folder: RunFolder | None = None

    def stopped() -> str:
        if console.quiet:
            return ""
        if folder is not None and folder.exists():
            return f"Stopped; all finished epochs are saved. Continue with: {folder.resume_command()}"
        return "Stopped; the run had not begun. Run the same command again."

    with error_messages(stopped):
        if settings["root"] is not None:  # so that the run can be resumed from another folder
            settings["root"] = str(Path(settings["root"]).resolve())
        config = TrainConfig(**settings)
        folder = RunFolder(run_dir or config.default_run_dir())
        with contextlib.ExitStack() as stack:
            stack.enter_context(distributed.process_group(config.resolved_device()))
            console.quiet = distributed.rank() > 0
            if not console.quiet:  # of several processes, only rank 0 writes
                stack.enter_context(folder.locked())
            if folder.exists():
                if not resume:
                    raise ValueError(
                        f"{folder.path} already holds a run; add --resume to continue it, or choose another --run-dir"
                    )
                config = _resumed(ctx, config, folder.read_config(), folder.path)
            elif config.threads is None:  # stored: their number decides the last bits
                config = replace(config, threads=max(1, cpu_count() // distributed.local_world_size()))
            distributed.barrier()  # all have looked before the first one writes
            with sigterm_interrupts(), TrainingDisplay(console, tables=tables) as display:
                trainer = Trainer(config, folder, display)
                if distributed.rank() == 0:
                    _say_what_the_doctor_knows(trainer, display)
                trainer.fit()
        final = trainer.records[-1]
        tested = f"test mIoU {final['test']['miou']:.4f}, " if "test" in final else ""
        say(
            console,
            f"Done: {tested}mIoU {final['miou']:.4f} after {final['epoch']} epochs. "
            f"See it with `cawa-fast report {shlex.quote(str(folder.path))}`.",
        )


def _say_what_the_doctor_knows(trainer: Trainer, display: TrainingDisplay) -> None:
    """Print the warnings of ``cawa-fast doctor data``, and raise for its errors."""
    from ..recipes.datasets import FileDataset
    from ..recipes.datasets.doctor.preflight import preflight
    from ..recipes.datasets.doctor.view import show_preflight

    sets = {split: dataset for split, dataset in trainer.sets.items() if isinstance(dataset, FileDataset)}
    if len(sets) < len(trainer.sets):
        return
    pixels = {split: counts.tolist() for split, counts in trainer.pixels.items()}
    progress = functools.partial(display.prepare, "a sample of the files")
    result = preflight(sets, pixels, seconds=PREFLIGHT_SECONDS, progress=progress)
    show_preflight(result, display.console, trainer.config.dataset, str(trainer.config.root))


def _resumed(ctx: click.Context, given: TrainConfig, stored: TrainConfig, path: Path) -> TrainConfig:
    """The stored settings, with those given now that change no result; others that differ are an error."""
    changed = {}
    for setting in fields(stored):
        if ctx.get_parameter_source(setting.name) is click.core.ParameterSource.DEFAULT:
            continue
        now, then = getattr(given, setting.name), getattr(stored, setting.name)
        if now != then and not setting.metadata["resume"]:
            raise ValueError(
                f"--{setting.name.replace('_', '-')} is {now!r}, but the run in {path} was begun with {then!r}; "
                "leave it out to continue that run, or choose another --run-dir"
            )
        changed[setting.name] = now
    return replace(stored, **changed)

"""``cawa-fast``: train with adaptive class weights, report on runs, look at the installation."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

try:
    import click
    from rich.console import Console

    from ..recipes.config import TrainConfig
    from ..recipes.datasets import FILE_DATASETS
    from ..recipes.parallel import cpu_count
    from .options import Numbers, settings_options
except ImportError as error:  # the core installs without the extra
    raise SystemExit(f"cawa-fast needs {error.name}: pip install 'cawa_fast[train]'") from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cawa_fast")
def main() -> None:
    """Train segmentation networks with class-activation adaptive weights (CAWA).

    \b
    cawa-fast train --epochs 10                          a small network on drawn street scenes
    cawa-fast train --dataset camvid --root CamVid       on your data
    torchrun --nproc-per-node 4 -m cawa_fast.cli train   on several GPUs, or CPU processes
    cawa-fast ablate --epochs 10                         compare weights, losses and settings over seeds
    cawa-fast report runs/a runs/b                       compare runs on one page
    cawa-fast doctor                                     what is installed, and what is missing
    cawa-fast doctor data --dataset camvid --root CamVid what is in a data set, and what is wrong with it
    """


@main.command(context_settings={"max_content_width": 110})
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run.  [default: runs/DATASET-MODEL[-BACKBONE]-WEIGHTING-sSEED]",
)
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir with its own settings, or begin it.")
@click.option(
    "--tables/--no-tables", default=True, show_default=True, help="Print the table per class after every epoch."
)
@settings_options
@click.pass_context
def train(ctx: click.Context, run_dir: Path | None, resume: bool, tables: bool, **settings: Any) -> None:
    """Train a network; after every validation pass the classes are scored and weighted anew.

    Writes config.json, dataset.json, metrics.jsonl (one line an epoch), confusion.json, TensorBoard events, latest.pt
    and best.pt into the run folder. A run that was stopped, or killed, continues with --resume and ends with the same
    bits on the CPU.

    Started by torchrun, its processes share every batch (--batch-size is that of all together) and the validation set.
    """
    from ..recipes.runs.folder import RunFolder
    from ..recipes.training import distributed
    from ..recipes.training.progress import TrainingDisplay
    from ..recipes.training.signals import sigterm_interrupts
    from ..recipes.training.trainer import Trainer

    console = Console(soft_wrap=True)
    folder = None
    try:
        if settings["root"] is not None:  # so that the run can be resumed from another folder
            settings["root"] = str(Path(settings["root"]).resolve())
        config = TrainConfig(**settings)
        folder = RunFolder(run_dir or config.default_run_dir())
        with distributed.process_group(config.resolved_device()):
            console.quiet = distributed.rank() > 0
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
                trainer.fit()
        final = trainer.records[-1]
        console.print(
            f"Done: mIoU {final['miou']:.4f} after {final['epoch']} epochs. "
            f"See it with `cawa-fast report {folder.path}`.",
            highlight=False,
            markup=False,
        )
    except KeyboardInterrupt:
        if folder is not None and folder.exists():
            saved = f"all finished epochs are saved. Continue with: cawa-fast train --resume --run-dir {folder.path}"
        else:
            saved = "nothing was begun yet. Run the same command again."
        console.print(f"\nStopped; {saved}", highlight=False, markup=False)
        sys.exit(130)
    except ImportError as error:
        if "pip install" in str(error):  # says which extra, or more
            raise click.ClickException(str(error)) from error
        raise click.ClickException(f"{error.name} is not installed: pip install 'cawa_fast[train]'") from error
    except (ValueError, OSError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from error


@main.command(context_settings={"max_content_width": 110})
@click.option(
    "--rows",
    default="rivals,ladder",
    show_default=True,
    help="What to compare, comma-separated: groups, all, single rows, settings (delta=0.5+ratio=none).",
)
@click.option("--seeds", type=Numbers(), default="0,1,2", show_default=True, help="Seeds of every row.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/ablation"),
    show_default=True,
    help="Folder of the runs and of the results.",
)
@click.option("--jobs", type=click.IntRange(1), help="Runs at a time.  [default: one per core, at most 8; per GPU]")
@click.option("--against", default="uniform", show_default=True, help="Row that the others are compared with.")
@click.option(
    "--rare", default=0.2, show_default=True, help="Rare are classes with less than this part of an even pixel share."
)
@click.option("--dry-run", is_flag=True, help="Only show the rows, what is done, and how long the rest takes.")
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
    """Train rows of settings over several seeds, and compare them with uniform weights seed by seed.

    \b
    Groups of rows:
      rivals     every class weighting and loss that `cawa-fast train --weighting` knows
      ladder     the method's parts, one after the other
      ratio      scored maps or predictions, and the ratio's modes
      delta, tau, normalize, classes, counts, cam, clip, momentum, every    one setting of CAWA swept

    Every run is a folder OUT/ROW-sSEED as `cawa-fast train` writes it; ablation.json and ablation.md beside them hold
    mean and deviation over seeds after the last epoch. Rows with equal settings share a run. What is done is not run
    again: after a stop, a kill or a failure the same command continues, on the CPU with the same bits.
    """
    from ..recipes.ablation.ablation import Ablation, choose
    from ..recipes.ablation.progress import AblationDisplay, plan_table, plan_text, result_table
    from ..recipes.training.signals import sigterm_interrupts

    console = Console(soft_wrap=True)
    ablation = None
    try:
        if settings["root"] is not None:
            settings["root"] = str(Path(settings["root"]).resolve())
        chosen = choose([word.strip() for word in rows.split(",") if word.strip()])
        ablation = Ablation(out, TrainConfig(**settings), chosen, seeds, jobs=jobs, against=against, rare=rare)
        if dry_run:
            console.print(plan_table(ablation))
        console.print(plan_text(ablation), highlight=False, markup=False)
        if dry_run:
            return
        with sigterm_interrupts(), AblationDisplay(console, ablation) as display:
            ablation.run(display)
        result = ablation.results()
        if result is not None:
            console.print(result_table(result))
            console.print(f"Written: {out / 'ablation.md'}, {out / 'ablation.json'}. ", highlight=False, markup=False)
            console.print(f"See it with `cawa-fast report {out}`.", highlight=False, markup=False)
    except KeyboardInterrupt:
        console.print("\nStopped; all finished epochs are saved. The same command continues.", highlight=False)
        sys.exit(130)
    except ImportError as error:
        raise click.ClickException(f"{error.name} is not installed: pip install 'cawa_fast[train]'") from error
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if ablation.failed:
        for state in ablation.failed:
            console.print(f"{state.name} failed: {state.error}", highlight=False, markup=False)
        console.print("The same command tries them again.", highlight=False)
        sys.exit(1)


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


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page to write.",
)
@click.option(
    "--images", type=click.IntRange(0), default=4, show_default=True, help="Validation images of a data set to show."
)
@click.option("--png", is_flag=True, help="Write every figure beside the page too, as OUT-FIGURE.png.")
def report(runs: tuple[Path, ...], out: Path, images: int, png: bool) -> None:
    """Compare RUNS in tables and on one self-contained HTML page.

    RUNS are run folders (on each data set the first is the baseline), and folders of `cawa-fast ablate`, or the
    ablation.json in them.
    """
    from ..recipes.report.report import ABLATION, load, terminal_tables, write_report
    from ..recipes.runs.folder import RunFolder

    def known(path: Path) -> bool:
        return path.suffix == ".json" or (path / ABLATION).is_file() or RunFolder(path).exists()

    console = Console(soft_wrap=True)
    try:
        if len(runs) > 1 and (others := [run for run in runs if not known(run)]):  # as in runs/*
            console.print(f"Not run folders, left out: {', '.join(map(str, others))}", highlight=False, markup=False)
            runs = tuple(run for run in runs if run not in others)
        material = load(runs)
        for table in terminal_tables(material):
            console.print(table)
        page = write_report(material, out, images=images, png=png)
    except ImportError as error:
        raise click.ClickException(f"{error.name} is not installed: pip install 'cawa_fast[train]'") from error
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    console.print(f"Page: {page}", highlight=False, markup=False)


@main.group(invoke_without_command=True)
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Say what is installed, which back ends are there, and for those that are not, why and what to do.

    `cawa-fast doctor data` does the same for a data set.
    """
    from ..recipes.installation import findings

    if ctx.invoked_subcommand is not None:
        return
    console = Console(soft_wrap=True)
    missing = False
    for group, lines in findings().items():
        console.print(f"[bold]{group}[/]")
        for name, value, advice in lines:
            mark = "[green]✓[/]" if advice is None else "[yellow]![/]"
            console.print(f"  {mark} {name}: {value}", highlight=False)
            if advice is not None:
                missing = True
                console.print(f"      → {advice}", highlight=False, markup=False)
    if not missing:
        console.print("Everything is there.")


def _trees() -> str:
    """The layouts of the data sets, for the help."""
    return "\n\n".join(
        f"\b\n{name}\n" + "\n".join(f"    {line}" for line in cls.tree.splitlines())
        for name, cls in FILE_DATASETS.items()
    )


@doctor.command(
    "data",
    context_settings={"max_content_width": 120},
    epilog=f"Trees under --root:\n\n{_trees()}",
)
@click.option("--dataset", type=click.Choice(sorted(FILE_DATASETS)), required=True, help="What the tree is.")
@click.option("--root", type=click.Path(path_type=Path), required=True, help="Folder of the data set's files.")
@click.option(
    "--split", "splits", multiple=True, default=("train", "val"), show_default=True, help="Split to read; repeatable."
)
@click.option("--strict", is_flag=True, help="Warnings fail, too.")
@click.option("--decode-images", is_flag=True, help="Decode the images, to find those that are cut off. Takes minutes.")
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one per core]")
@click.option(
    "--cache/--no-cache", default=True, show_default=True, help="Use what is known of files that are unchanged."
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write everything here.")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("class-shares.png"),
    show_default=True,
    help="Write the classes' shares as bars here.",
)
@click.option("--no-picture", is_flag=True, help="Write no picture.")
def doctor_data(
    dataset: str,
    root: Path,
    splits: tuple[str, ...],
    strict: bool,
    decode_images: bool,
    workers: int | None,
    cache: bool,
    json_file: Path | None,
    picture: Path,
    no_picture: bool,
) -> None:
    """Check a data set and show what is in it.

    Finds pairs with a missing file, files that cannot be read, sizes that differ, label values that are no class (with
    counts and files), zero that was reduced twice, classes that never occur, the same image in two splits. Shows the
    share of each class in the pixels and in how many images it is. Ends with 0 if there are no errors, and with 1 if
    there are, or with --strict if there are warnings.
    """
    from ..recipes.datasets.doctor.examine import examine
    from ..recipes.datasets.doctor.view import save_picture, show
    from ..recipes.files import atomic
    from ..recipes.training.progress import TrainingDisplay

    console = Console(soft_wrap=True)
    try:
        with TrainingDisplay(console) as display:
            examination = examine(
                dataset,
                root,
                splits,
                progress=lambda split: functools.partial(display.prepare, f"{split} labels"),
                workers=workers,
                cache=cache,
                decode_images=decode_images,
            )
        show(examination, console)
        if json_file is not None:
            with atomic(json_file) as file:
                file.write((json.dumps(examination.as_dict(), indent=1) + "\n").encode())
        if examination.splits and not no_picture:
            save_picture(examination, picture)
            console.print(f"Picture: {picture}", highlight=False, markup=False)
    except KeyboardInterrupt:
        console.print("\nStopped; nothing was written.", highlight=False)
        sys.exit(130)
    except ImportError as error:
        raise click.ClickException(f"{error.name} is not installed: pip install 'cawa_fast[train]'") from error
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    sys.exit(1 if examination.count("error") or (strict and examination.count("warning")) else 0)

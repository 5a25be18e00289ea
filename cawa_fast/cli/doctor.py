"""``cawa-fast doctor`` and ``cawa-fast doctor data``."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import click

from ..recipes.datasets import FILE_DATASETS
from ..recipes.terminal import open_console, say
from .errors import error_messages


@click.group(invoke_without_command=True)
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Check the installation: what is installed, which backends run, and how to get what is missing.

    `cawa-fast doctor data` checks a dataset.
    """
    from ..recipes.installation import findings

    if ctx.invoked_subcommand is not None:
        return
    console = open_console()
    missing = False
    for group, lines in findings().items():
        say(console, (group, "bold"))
        for name, value, advice in lines:
            mark = ("✓", "green") if advice is None else ("!", "yellow")
            say(console, "  ", mark, f" {name}: {value}")
            if advice is not None:
                missing = True
                say(console, f"      → {advice}")
    if not missing:
        say(console, "Everything is installed.")


def _trees() -> str:
    """The expected folder tree of each dataset, for the help text."""
    return "\n\n".join(
        f"\b\n{name}\n" + "\n".join(f"    {line}" for line in cls.tree.splitlines())
        for name, cls in FILE_DATASETS.items()
    )


@doctor.command(
    "data",
    context_settings={"max_content_width": 120},
    epilog=f"Trees under --root:\n\n{_trees()}",
)
@click.option("--dataset", type=click.Choice(sorted(FILE_DATASETS)), required=True, help="Layout of the files.")
@click.option("--root", type=click.Path(path_type=Path), required=True, help="Folder that holds the dataset.")
@click.option(
    "--split",
    "splits",
    multiple=True,
    default=("train", "val"),
    show_default=True,
    help="Split to read; may be given several times.",
)
@click.option("--allow-outside-root", is_flag=True, help="folder, camvid: let list files name files outside --root.")
@click.option("--strict", is_flag=True, help="Exit with status 1 for warnings too.")
@click.option("--decode-images", is_flag=True, help="Decode the images too, to find truncated ones. Takes minutes.")
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one per core]")
@click.option(
    "--cache/--no-cache",
    default=True,
    show_default=True,
    help="Reuse what an earlier check found in files that have not changed.",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all findings to this file."
)
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("class-shares.png"),
    show_default=True,
    help="Write a bar chart of the class shares to this file.",
)
@click.option("--no-picture", is_flag=True, help="Do not write the chart.")
def doctor_data(
    dataset: str,
    root: Path,
    splits: tuple[str, ...],
    allow_outside_root: bool,
    strict: bool,
    decode_images: bool,
    workers: int | None,
    cache: bool,
    json_file: Path | None,
    picture: Path,
    no_picture: bool,
) -> None:
    """Check a dataset and show what it contains.

    Finds images without a label map and label maps without an image, files that are unreadable, compressed lossily or
    left out, sizes that differ within a pair, label values outside the classes (with counts and files), labels that
    were reduced by one twice, classes that never occur, and images that are in two splits. Says what it understood of
    the class list. Shows each class's share of the pixels and the number of images that contain it. Exits with status 1
    if there are errors, or with --strict if there are warnings.
    """
    from ..recipes.datasets.doctor.examine import examine
    from ..recipes.datasets.doctor.view import save_picture, show
    from ..recipes.files import atomic
    from ..recipes.training.progress import TrainingDisplay

    console = open_console()
    if allow_outside_root and not FILE_DATASETS[dataset].reads_lists:
        raise click.ClickException(f"--allow-outside-root: {dataset!r} reads no lists of files; leave it out")
    options = {"allow_outside_root": True} if allow_outside_root else {}
    with error_messages(lambda: "Stopped; nothing was written."):
        with TrainingDisplay(console) as display:
            examination = examine(
                dataset,
                root,
                splits,
                progress=lambda split: functools.partial(display.prepare, f"{split} labels"),
                workers=workers,
                cache=cache,
                decode_images=decode_images,
                **options,
            )
        show(examination, console)
        if json_file is not None:
            with atomic(json_file) as file:
                file.write((json.dumps(examination.as_dict(), indent=1) + "\n").encode())
        if examination.splits and not no_picture:
            save_picture(examination, picture)
            say(console, f"Picture: {picture}")
    sys.exit(1 if examination.count("error") or (strict and examination.count("warning")) else 0)

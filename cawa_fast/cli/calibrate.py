"""``cawa-fast calibrate``."""

from __future__ import annotations

from pathlib import Path

import click

from ..recipes.terminal import open_console, say
from .errors import error_messages


@click.command()
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--checkpoint",
    type=click.Choice(["latest", "best"]),
    default="latest",
    show_default=True,
    help="Network to calibrate: after the last epoch, or of the best one.",
)
@click.option(
    "--strength",
    default=1.0,
    show_default=True,
    help="How far to go towards predicting each class as often as it occurs; inf is all the way.",
)
@click.option(
    "--images",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Most validation images to fit on. Their logits are kept in memory.",
)
def calibrate(run: Path, checkpoint: str, strength: float, images: int) -> None:
    """Balance the classes of the finished RUN, by constants in the classifier's bias.

    Fits one constant per class on the validation images, so that the network decides for each class about as often as
    it occurs, and writes the network with the new bias as calibrated.pt into the run folder, with calibration.json
    beside it. Inference costs the same. Shows what is gained on the test images, if the run has some (--test-split),
    and on the validation images, where the gain is too optimistic. Calibrate on images that are like those which the
    network will see: where they differ, the constants can do harm.
    """
    from ..recipes.calibrate import calibrate_run
    from ..recipes.terminal import PlainTable
    from ..recipes.training.progress import TrainingDisplay, percent

    console = open_console()
    with error_messages(lambda: "Stopped; nothing was written."):
        with TrainingDisplay(console) as display:
            result = calibrate_run(
                run,
                checkpoint=checkpoint,
                strength=strength,
                images=images,
                progress=lambda split, done, total: display.prepare(f"{split} images", done, total),
            )
        table = PlainTable(f"Fitted on {result.fitted} validation images; in %, Δ in points")
        table.add_names("", result.class_names)
        for heading in ("offset", *(f"{split} {when}" for split in ("test", "val") for when in ("IoU", "after", "Δ"))):
            if heading == "offset" or heading.split()[0] in result.scores:
                table.add_numbers(heading)
        splits = [split for split in ("test", "val") if split in result.scores]

        def cells(before: float | None, after: float | None) -> list[str]:
            known = before is not None and after is not None
            return [percent(before), percent(after), f"{100 * (after - before):+.2f}" if known else ""]  # type: ignore[operator]

        for index, name in enumerate(result.class_names):
            line = [name, f"{result.offset[index]:+.2f}"]
            for split in splits:
                both = result.scores[split]
                line += cells(both["before"]["iou"][index], both["after"]["iou"][index])
            table.add_row(*line, end_section=index + 1 == len(result.class_names))
        for key, name in (("miou", "mIoU"), ("rare_iou", "mIoU of rare classes"), ("pixel_accuracy", "pixel accuracy")):
            line = [name, ""]
            for split in splits:
                line += cells(result.scores[split]["before"][key], result.scores[split]["after"][key])
            table.add_row(*line)
        console.print(table)
        say(console, f"Written: {result.file}")

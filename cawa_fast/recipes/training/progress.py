"""The terminal output of a training run: a progress bar with rate and remaining time, and a table after each epoch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..terminal import PlainTable, plain_column, say
from ..text import one_line

if TYPE_CHECKING:
    from ..config import TrainConfig
    from .trainer import Trainer


class _ImageRate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("-- img/s" if not task.speed else f"{task.speed:.0f} img/s", style="progress.data.speed")


class TrainingDisplay:
    """Shows the progress of training in the terminal; where the output is no terminal, one line per epoch.

    Implements :class:`~cawa_fast.recipes.training.trainer.TrainingProgress`.

    Args:
        console: where to print.
        tables: print the table of classes after every epoch; otherwise only after the last.
    """

    def __init__(self, console: Console, *, tables: bool = True) -> None:
        self.console, self.tables = console, tables
        self._progress = Progress(
            plain_column(),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _ImageRate(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: Any = None
        self._reading: dict[str, Any] = {}
        self._last_weight: list[float] | None = None

    def __enter__(self) -> TrainingDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def prepare(self, what: str, done: int, total: int) -> None:
        if what not in self._reading:
            self._reading[what] = self._progress.add_task(f"reading {one_line(what)}", total=total)
        self._progress.update(self._reading[what], completed=done)
        if done == total:
            self._progress.remove_task(self._reading.pop(what))

    def begin(self, config: TrainConfig, trainer: Trainer) -> None:
        self._trainer = trainer
        images_per_epoch = len(trainer.train_loader) * config.batch_size + len(trainer.val_set)
        images_per_epoch += 0 if trainer.test_set is None else len(trainer.test_set)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        say(
            self.console,
            (config.dataset, "bold"),
            f": {len(trainer.train_set)} training, {len(trainer.val_set)} validation"
            f"{'' if trainer.test_set is None else f', {len(trainer.test_set)} test'} images, "
            f"{trainer.train_set.num_classes} classes. ",
            (config.model, "bold"),
            f": {parameters / 1e6:.2f} M parameters on {trainer.device}. Weights: ",
            (config.weighting, "bold"),
            f". Run folder: {trainer.folder.path}",
        )
        if trainer.epochs_done:
            for line in (f"Continuing after epoch {trainer.epochs_done} of {config.epochs}.", *trainer.notes):
                say(self.console, line)
            self._last_weight = trainer.records[-1]["weight"]
        total = images_per_epoch * (config.epochs - trainer.epochs_done)
        self._task = self._progress.add_task(config.weighting, total=total)
        self._first_epoch, self._started = trainer.epochs_done, time.monotonic()

    def advance(self, phase: str, epoch: int, images: int) -> None:
        description = f"{self._trainer.config.weighting} {phase} {epoch}/{self._trainer.config.epochs}"
        self._progress.update(self._task, advance=images, description=description)

    def epoch_done(self, record: dict[str, Any]) -> None:
        config = self._trainer.config
        done = record["epoch"] - self._first_epoch
        left = (config.epochs - record["epoch"]) * (time.monotonic() - self._started) / done
        tested = f"test mIoU {record['test']['miou']:.4f}  " if "test" in record else ""
        remaining = "" if self.console.is_terminal else f"  {left:.0f} s left"
        if self.tables or record["epoch"] == config.epochs:
            self.console.print(epoch_table(record, self._trainer.train_set.class_names, self._last_weight))
        say(
            self.console,
            f"epoch {record['epoch']}/{config.epochs}  loss {record['train_loss']:.4f}  mIoU {record['miou']:.4f}  "
            f"{tested}"
            f"pixel accuracy {record['pixel_accuracy']:.4f}  {record['seconds']['total']:.2f} s  "
            f"AWA {100 * record['awa_overhead']:.2f} %{remaining}",
        )
        self._last_weight = record["weight"]


def epoch_table(record: dict[str, Any], class_names: tuple[str, ...], last_weight: list[float] | None) -> Table:
    """The record of an epoch as a table: IoU, accuracy, CSPS, weight and its change by class, and offsets.

    Where the weights come from a sample, CSPS has its standard error. A class whose error is too large keeps its weight
    and has "kept" in the column of changes.
    """
    table = PlainTable(f"Validation after epoch {record['epoch']}")
    table.add_names("Class", class_names)
    offsets = record.get("offset")
    for name in ("IoU", "Acc", "CSPS", "Weight", "Change", *(("Offset",) if offsets else ())):
        table.add_numbers(name)
    none_held = [False] * len(class_names)  # records of older versions have no "held"
    for index, name in enumerate(class_names):
        weight = record["weight"][index]
        error = record.get("csps_error", [None] * len(class_names))[index]
        change = 0.0 if last_weight is None else weight - last_weight[index]
        table.add_row(
            name,
            percent(record["iou"][index]),
            percent(record["accuracy"][index]),
            percent(record["csps"][index]) + ("" if error is None else f" ± {100 * error:.2f}"),
            f"{weight:.3f}",
            Text("kept", "yellow")
            if record.get("held", none_held)[index]
            else Text(f"{change:+.3f}" if change else "", "green" if change > 0 else "red"),
            *((f"{offsets[index]:+.2f}",) if offsets else ()),
        )
    return table


def percent(value: float | None) -> str:
    """A share in percent with two decimals, as MMSegmentation prints it; a dash where it is undefined."""
    return "–" if value is None else f"{100 * value:.2f}"

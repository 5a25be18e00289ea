"""The terminal output of an ablation: the plan, a progress bar over the epochs of all runs, and the results."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..terminal import PlainTable, plain_column, say
from ..text import one_line
from .ablation import Ablation, State
from .results import METRIC_NAMES, difference_text, mean_text, shown_metrics

# Period over which rich measures the speed. Its default is 30 s, while an epoch may take minutes.
_SPEED_SECONDS = 1800.0


class _EpochRate(ProgressColumn):
    def render(self, task: Task) -> Text:
        if "miou" in task.fields:
            miou = task.fields["miou"]
            return Text("" if miou is None else f"mIoU {100 * miou:.1f}")
        return Text(f"{60 * task.speed:.3g} epochs/min" if task.speed else "-- epochs/min", style="progress.data.speed")


class AblationDisplay:
    """Shows the progress of an ablation in the terminal; where the output is no terminal, one line per run.

    Implements :class:`~cawa_fast.recipes.ablation.ablation.AblationProgress`.

    Args:
        console: where to print.
        ablation: the ablation.
    """

    def __init__(self, console: Console, ablation: Ablation) -> None:
        self.console, self._states = console, ablation.states
        self._progress = Progress(
            plain_column(),
            BarColumn(bar_width=None),
            plain_column("{task.completed:.1f}/{task.total:.0f}"),
            _EpochRate(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=_SPEED_SECONDS,
        )
        self._total, self._begun_with = self._epochs(total=True), self._epochs()
        self._all = self._progress.add_task("all epochs", total=self._total)
        self._progress.update(self._all, completed=self._begun_with)
        self._tasks: dict[str, TaskID] = {}
        self._started = time.monotonic()

    def __enter__(self) -> AblationDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, state: State) -> None:
        self._progress.update(self._all, completed=self._epochs())
        if state.status == "running":
            if state.name not in self._tasks:
                self._tasks[state.name] = self._progress.add_task(
                    f"  {one_line(state.name)}", total=state.config.epochs, miou=None
                )
            self._progress.update(self._tasks[state.name], completed=state.epoch, miou=state.miou)
            return
        if state.name in self._tasks:
            self._progress.remove_task(self._tasks.pop(state.name))
        ended = sum(other.status in ("done", "failed") for other in self._states.values())
        what = f"mIoU {100 * state.miou:.2f}" if state.status == "done" and state.miou is not None else "FAILED"
        line = f"{ended}/{len(self._states)} {state.name}: {what}{self._remaining()}"
        say(self.console, line if state.error is None else f"{line}: {state.error}")

    def _epochs(self, total: bool = False) -> float:
        return sum(state.config.epochs if total else state.epoch for state in self._states.values())

    def _remaining(self) -> str:
        done = self._epochs() - self._begun_with
        if self.console.is_terminal or done <= 0:  # in a terminal the bar shows it
            return ""
        left = sum(state.config.epochs - state.epoch for state in self._states.values() if state.status != "failed")
        return f"  {duration((time.monotonic() - self._started) * left / done)} left"


def duration(seconds: float) -> str:
    """A number of seconds as text.

    >>> duration(59), duration(600), duration(7300)
    ('59 s', '10 min', '2 h 2 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def plan_table(ablation: Ablation) -> Table:
    """The rows, the settings that they change, and the progress of their runs."""
    table = PlainTable("Rows")
    for heading in ("group", "row", "settings", "runs"):
        table.add_text(heading)
    group = ""
    for row in ablation.plan.rows:
        if row.group != group and group:
            table.add_section()
        settings = ", ".join(f"{name}={value}" for name, value in row.settings.items())
        runs = _runs_text(row.name, [ablation.states[name] for name in ablation.plan.folders[row.name].values()])
        table.add_row(row.group if row.group != group else "", row.name, settings, runs)
        group = row.group
    return table


def _runs_text(row: str, states: list[State]) -> str:
    done = sum(state.status == "done" for state in states)
    begun = [
        f"seed {state.config.seed} at epoch {state.epoch:.0f}"
        for state in states
        if state.epoch and state.status != "done"
    ]
    parts = [f"{done} of {len(states)} done", *(begun if done < len(states) else ())]
    shared = states[0].name.rpartition("-s")[0]
    return ", ".join(parts if shared == row else [f"shared with {shared}", *parts])


def plan_text(ablation: Ablation) -> str:
    """The number of remaining runs and epochs, and the estimated time."""
    waiting = ablation.waiting
    epochs = sum(state.config.epochs - state.epoch for state in waiting)
    text = (
        f"{len(waiting)} of {len(ablation.states)} runs to do, {epochs:.0f} epochs, {ablation.jobs} at a time with "
        f"{ablation.base.threads} threads each, in {ablation.out}"
    )
    if ablation.without_files:
        text += (
            f". Older versions began {len(ablation.without_files)} runs without a record of their files: only their "
            "classes and numbers of images were compared with the data"
        )
    left = ablation.seconds_left()
    if not waiting:
        return text
    if left is None:
        return f"{text}. The time is not known before the first epoch"
    return f"{text}: about {duration(left)} at the speed so far"


def result_table(result: dict[str, Any]) -> Table:
    """The results as a table for the terminal; ``result`` is the content of ``ablation.json``."""
    table = PlainTable(f"After the last epoch, in %; Δ to {result['against']} seed by seed, in points")
    table.add_text("row")
    metrics = shown_metrics(result["rows"])[:2]  # of the test images, if there are any
    names = [METRIC_NAMES[metric] for metric in metrics]
    for heading in (*names, *(f"Δ {name}" for name in names)):
        table.add_numbers(heading, no_wrap=False)
    for row in result["rows"]:
        cells = [mean_text(row["summary"][metric]) for metric in metrics]
        cells += [difference_text(row["paired"][metric]) for metric in metrics]
        last = row is result["rows"][-1] or row["group"] != result["rows"][result["rows"].index(row) + 1]["group"]
        table.add_row(row["name"], *cells, end_section=last)
    return table

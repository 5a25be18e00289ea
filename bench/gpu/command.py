"""``python -m bench gpu``: runs the steps in order, within the given time."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch

from .. import options
from ..files import RESULTS
from ..measure import machine
from . import report, smi, steps
from .rows import ROWS
from .runner import Run


@dataclass(frozen=True)
class Step:
    """A step of the command.

    Attributes:
        name: as ``--only`` takes it.
        share: of the time that is left, relative to the shares of the later steps; they get what it leaves over. The
            build's share is twice what it takes, because the other steps depend on it.
        least: seconds under which the step is skipped.
        run: the step; its arguments are the run, the seconds it may take, and the dictionary for what it finds.
    """

    name: str
    share: float
    least: float
    run: Callable[[Run, float, dict[str, Any]], None]


STEPS = (
    Step("build", 100, 10, steps.build_step),
    Step("limits", 10, 8, steps.limits_step),
    Step("tests", 38, 15, steps.tests_step),
    Step("profile", 18, 8, steps.profile_step),
    Step("benchmarks", 68, 15, steps.benchmarks_step),
    Step("epoch", 38, 15, steps.epoch_step),
    Step("sanitizer", 20, 12, steps.sanitizer_step),
    Step("sweep", 8, 10, steps.sweep_step),
)


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of gpu.json, gpu.md and gpu.log.  [default: bench/results for all steps; else a temporary one]",
)
@click.option("--minutes", type=click.FloatRange(0.1), default=8.0, show_default=True, help="Time for all steps.")
@click.option("--rehearse", is_flag=True, help="A trial on a CPU: Triton's interpreter, tiny sizes, no measurement.")
@click.option("--only", default="", help=f"Steps to run, comma-separated: {', '.join(step.name for step in STEPS)}.")
@options.show_list
def gpu(out: Path | None, minutes: float, rehearse: bool, only: str, show_list: bool) -> None:
    """Everything that needs a GPU: build, limits, tests, profile, benchmarks, epochs, sanitizer, tile tables.

    \b
    python -m bench gpu                            all of it, in 8 minutes
    python -m bench gpu --only limits,benchmarks   some steps, which share the time
    python -m bench gpu --rehearse                 does it run? (on a CPU, a minute)

    A step that fails does not stop the others; the exit status is then 1. The files are written after every step.
    """
    wanted = select_steps(only)
    if show_list:
        for step in wanted:
            click.echo(f"step {step.name}")
        for row in ROWS:
            click.echo(f"{row.key:32} {row.title}")
        return
    if not rehearse and not torch.cuda.is_available():
        raise click.ClickException("torch sees no GPU here; --rehearse runs the same code on the CPU")
    if out is None:
        whole = wanted == STEPS and not rehearse
        out = RESULTS if whole else Path(tempfile.mkdtemp(prefix="bench-gpu-"))
    signal.signal(signal.SIGTERM, _interrupted)
    run = Run(out, minutes, rehearse, _new_result(minutes, rehearse))
    with steps.importable_kernels() as note:
        if note:
            run.say(note)
        ok = execute(run, wanted)
    if run.report_failed:
        ok = False
        click.echo((out / "gpu.md").read_text(encoding="utf-8"))
    else:
        click.echo("\n" + report.gpu_summary(run.result))
    click.echo(f"\nWritten: {out}/gpu.json, gpu.md and gpu.log, in {run.elapsed():.0f} s")
    raise SystemExit(0 if ok else 1)


def select_steps(only: str) -> tuple[Step, ...]:
    """The steps named in ``only``, in their order; all if it is empty.

    Raises:
        click.BadParameter: there is no such step.
    """
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in [step.name for step in STEPS]:
            raise click.BadParameter(f"no step {name!r}: {', '.join(step.name for step in STEPS)}", param_hint="--only")
    return tuple(step for step in STEPS if not names or step.name in names)


def execute(run: Run, wanted: tuple[Step, ...]) -> bool:
    """Run the steps and write the files after each; returns whether none failed."""
    for place, step in enumerate(wanted):
        seconds = share_of_time(wanted[place:], run.remaining())
        found: dict[str, Any] = {"status": "ok", "budget": round(seconds, 1)}
        run.result["steps"][step.name] = found
        if seconds < step.least and not run.rehearse:
            found.update(status="skipped", note=f"no time left: {seconds:.0f} s")
            run.say(f"{step.name}: {found['note']}")
            run.publish()
            continue
        run.say(f"{step.name}, at most {seconds:.0f} s")
        begin = run.elapsed()
        try:
            step.run(run, seconds, found)
        except Exception as error:
            found.update(status="failed", note=str(error) or type(error).__name__)
        except BaseException:
            found.update(status="failed", note="interrupted")
            found["seconds"] = round(run.elapsed() - begin, 1)
            run.publish()
            raise
        found["seconds"] = round(run.elapsed() - begin, 1)
        run.publish()
        run.say(f"{step.name}: {report.outcome(found)}")
    for hidden in run.out.glob(".*.json"):
        hidden.unlink()
    return all(found["status"] != "failed" for found in run.result["steps"].values())


def share_of_time(left: tuple[Step, ...], seconds: float) -> float:
    """Seconds for the first of the steps that are left."""
    return max(seconds, 0) * left[0].share / sum(step.share for step in left)


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # an exception, so that running processes are ended and the results written


def _new_result(minutes: float, rehearse: bool) -> dict[str, Any]:
    described = machine(torch.get_num_threads()) | {"gpu": {} if rehearse else smi.query(smi.IDENTITY)}
    described["cuda"] = torch.version.cuda
    return {"benchmark": "gpu", "rehearsal": rehearse, "minutes": minutes, "machine": described, "steps": {}}

"""An ablation: rows of settings, each trained with several seeds, in several processes.

Every run is an ordinary run folder ``OUT/<row>-s<seed>``. Two files beside the folders hold the results,
``ablation.json`` and ``ablation.md``.

**ablation.json**, one object::

    format            1
    command           the command that makes these results, without paths
    settings          the settings that all rows share, as in config.json, without seed, weighting and paths
    versions          {"cawa_fast": ..., "torch": ...}
    epochs            epochs of each run
    seeds             [0, 1, 2]
    against           the row that the others are compared with, "uniform"
    class_names       C names
    train_pixels      C numbers: pixels per class in the training set
    rare              {"part": 0.2, "classes": [indices]}, see rare_classes; "part" is --rare
    groups            {key: heading}, in the order of the tables
    rows              [row, ...], in the order of the tables

A row::

    name              unique: "uniform", "ladder-csps", "delta=0.4"
    group             a key of groups
    title             its name in tables and figures
    settings          the settings that it changes: {"weighting": "cawa", "delta": 0.4}
    runs              one per seed, see below; rows with equal settings share their runs
    summary           {METRIC | "seconds_per_epoch" | "awa_share": {"mean", "sd" (null with one seed), "n"} or null}
    paired            {METRIC: {"differences": {seed: row minus against}, "mean", "sd", "n", "low", "high" (95 % t
                       interval of the mean), "better" (differences above 0)} or null}

METRIC is "miou", "rare_iou" or "pixel_accuracy", or one of them with "test_" before it: of the images that nothing in
a run reads (``--test-split``), null without such images.

A run has ``seed``, ``run`` (the name of its folder), ``status`` ("done", "failed", "unfinished") and ``error`` (null or
the reason). A run that is done also has ``epochs``, its METRICs, ``iou`` (by class; ``test_iou`` with test images),
``dead`` (classes with IoU 0), ``seconds_per_epoch`` and ``awa_share`` (time for the adaptive weights as a share of the
rest of an epoch). Values are those after the last epoch, as shares in [0, 1]; null where a value is undefined.

Both files keep the rows and seeds of earlier calls with the same folder and settings.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ... import __version__
from ..config import TrainConfig
from ..files import atomic, make_folder
from ..json_values import parse_json, read_utf8
from ..parallel import cpu_count
from ..runs.compare import RARE, rare_classes
from ..runs.contents import check_begun
from ..runs.folder import RunFolder
from ..runs.lock import locked
from ..runs.read import Run, load_run
from .begun import check_all_data, check_same_data, check_settings
from .pool import Pool
from .results import final_values, markdown, with_statistics
from .rows import CATALOGUE, CUSTOM, DEFAULT_ROWS, GROUPS, AblationRow, Plan, choose_rows, make_plan

__all__ = [
    "CATALOGUE",
    "DEFAULT_ROWS",
    "GROUPS",
    "RARE",
    "Ablation",
    "AblationRow",
    "State",
    "choose_rows",
    "rare_classes",
]

_OF_A_RUN = ("seed", "weighting")
"""Settings that differ between the runs of an ablation."""

_HEADINGS = GROUPS | {CUSTOM: "Other settings"}


@dataclass
class State:
    """The progress of a run.

    Attributes:
        name: the name of its folder.
        config: its settings.
        epoch: epochs done, with a fraction while it runs.
        status: "waiting", "running", "done" or "failed".
        miou: after the last finished epoch.
        seconds: mean time of an epoch, where known.
        pid: its process, while it runs.
        error: why it failed.
    """

    name: str
    config: TrainConfig
    epoch: float = 0
    status: str = "waiting"
    miou: float | None = None
    seconds: float | None = None
    pid: int | None = None
    error: str | None = None


class AblationProgress(Protocol):
    """A callback that reports the progress of an ablation."""

    def update(self, state: State) -> None:
        """A run has begun, advanced or ended."""


class Ablation:
    """Rows of settings, each trained with several seeds.

    Args:
        out: folder for the runs and the results.
        base: the settings that all rows share. Its ``weighting`` and ``seed`` are not used.
        rows: the rows to compare; see :func:`choose_rows`.
        seeds: each at least 0, none twice.
        jobs: runs at a time; default: one per core, at most 8, or one per GPU.
        against: the row that the others are compared with; it is trained even if it is not among ``rows``.
        rare: ``part`` of :func:`rare_classes`.

    Attributes:
        without_files: runs of older versions, which have no record of their files, if runs are to be trained.

    Raises:
        ValueError: an argument is out of range, or a folder holds a run with different settings or data.

    Example:
        >>> rows = choose_rows(["cawa"])
        >>> ablation = Ablation("runs/ablation", TrainConfig(epochs=1, train_images=8), rows, seeds=(0, 1))
        >>> list(ablation.states)
        ['uniform-s0', 'cawa-s0', 'uniform-s1', 'cawa-s1']
    """

    def __init__(
        self,
        out: str | Path,
        base: TrainConfig,
        rows: Sequence[AblationRow],
        seeds: Sequence[int] = (0, 1, 2),
        *,
        jobs: int | None = None,
        against: str = "uniform",
        rare: float = RARE,
    ) -> None:
        if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must be at least one number from 0 on, none twice; got {list(seeds)}")
        if jobs is not None and jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {jobs}")
        rare_classes([1], rare)  # raises if it is out of range
        self.out, self.rare = Path(out), rare
        device = base.resolved_device()
        base_rows = choose_rows([against])
        if len(base_rows) > 1:
            raise ValueError(f"against must be one row, but {against!r} is {len(base_rows)}")
        self.against = base_rows[0]
        if all(row.name != self.against.name for row in rows):
            rows = [self.against, *rows]
        base = replace(base, weighting="uniform", seed=0)
        count = len(make_plan(base, rows, seeds).configs)
        self._devices = _devices(base, device)
        self.jobs = min(count, jobs or (len(self._devices) if device.type == "cuda" else min(cpu_count(), 8)))
        self._threads_given = base.threads is not None
        self.base = base if self._threads_given else replace(base, threads=max(1, cpu_count() // self.jobs))
        self.plan: Plan = make_plan(self.base, rows, seeds)
        self._earlier = self._read_earlier()
        self.states = {name: self._state(name, config) for name, config in self.plan.configs.items()}
        earlier = [run["run"] for row in self._earlier["rows"] for run in row["runs"]]
        names = dict.fromkeys([*self.states, *earlier])
        self.without_files = check_all_data(self.out, names, base.root) if self.waiting else []

    @property
    def waiting(self) -> list[State]:
        """The runs that are not done."""
        return [state for state in self.states.values() if state.status != "done"]

    @property
    def failed(self) -> list[State]:
        """The runs that ended with an error in this call."""
        return [state for state in self.states.values() if state.status == "failed"]

    def seconds_left(self) -> float | None:
        """Estimated seconds until all runs are done; None while no epoch has been timed.

        The remaining epochs, each at the mean time of its own run or else of all runs, divided by the jobs.
        """
        known = [state.seconds for state in self.states.values() if state.seconds is not None]
        if not known:
            return None
        mean = sum(known) / len(known)
        left = sum((state.config.epochs - state.epoch) * (state.seconds or mean) for state in self.waiting)
        return left / max(min(self.jobs, len(self.waiting)), 1)

    def run(self, progress: AblationProgress) -> None:
        """Train all runs that are not done, and write the results after each of them.

        If a run fails, the others continue, and :attr:`failed` names it. ``KeyboardInterrupt`` ends the processes,
        writes the results so far and is raised again. The next call continues.

        Raises:
            ValueError: another ablation is running in the same folder.
        """
        make_folder(self.out)
        what, advice = f"another cawa-fast ablate is running in {self.out}", "wait for it, or choose another --out"
        with locked(self.out / ".lock", what, advice, keep=True):
            self.write()
            devices = [self._devices[index % len(self._devices)] for index in range(self.jobs)]
            configs = {state.name: state.config for state in self.waiting}
            try:
                with contextlib.closing(Pool(self.out, devices).run(configs)) as events:
                    for name, event in events:
                        self._apply(self.states[name], event)
                        progress.update(self.states[name])
            finally:
                self.write()

    def _apply(self, state: State, event: dict[str, Any]) -> None:
        state.epoch = event.get("epoch", state.epoch)
        state.miou = event.get("miou", state.miou)
        state.pid = event.get("pid", state.pid)
        if event["event"] == "start":
            state.status = "running"
        elif event["event"] == "end":
            state.pid, state.status = None, "failed"
            state.error = event["error"] or "ended before its last epoch"
            with contextlib.suppress(ValueError):  # the files are damaged: the run has failed
                done = self._state(state.name, state.config)
                state.epoch, state.miou, state.seconds = done.epoch, done.miou, done.seconds
                if done.status == "done":
                    state.status, state.error = "done", None
            self.write()

    def _state(self, name: str, config: TrainConfig) -> State:
        """The progress of a run by its files, with the settings that it was begun with."""
        folder = RunFolder(self.out / name)
        if not folder.exists():
            return State(name, config)
        stored = folder.read_config()
        check_settings(folder, stored, config, () if self._threads_given else ("threads",))
        state = State(name, replace(config, threads=stored.threads))  # the number of threads affects the last bits
        with contextlib.suppress(OSError, ValueError):  # no epoch was finished, or resuming writes the file again
            run = load_run(folder.path)
            state.epoch, state.miou = run.epochs[-1], run.final["miou"]
            state.seconds = run.seconds()["total"]
            state.status = "done" if state.epoch >= config.epochs else "waiting"
        return state

    def _shared_settings(self) -> dict[str, Any]:
        hidden = {setting.name for setting in fields(self.base) if setting.metadata["resume"]} | set(_OF_A_RUN)
        return {name: value for name, value in self.base.as_dict().items() if name not in hidden}

    def _read_earlier(self) -> dict[str, Any]:
        """The rows in ``ablation.json`` from earlier calls; none if there is no such file."""
        file = self.out / "ablation.json"
        try:
            earlier = parse_json(read_utf8(file))
            check_begun(earlier, "")
            kept = {
                "rows": [{k: row[k] for k in ("name", "group", "title", "settings", "runs")} for row in earlier["rows"]]
            }
            then = earlier["settings"]
        except FileNotFoundError:
            return {"rows": []}
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}); delete it. The runs are not lost") from error
        # through JSON, which turns tuples into lists
        now = json.loads(json.dumps(self._shared_settings()))
        free = () if self._threads_given else ("threads",)
        if other := [name for name in now if name not in free and now[name] != then.get(name, now[name])]:
            name = other[0]
            raise ValueError(
                f"{self.out} holds an ablation with {name}={then[name]!r}, not {now[name]!r}; choose another --out, or "
                f"continue with the old --{name.replace('_', '-')}"
            )
        return kept

    def results(self) -> dict[str, Any] | None:
        """The content of ``ablation.json``; None while no run has finished an epoch."""
        names: dict[str, tuple[AblationRow, dict[int, str]]] = {}
        for row in self._earlier["rows"]:
            runs = {run["seed"]: run["run"] for run in row["runs"]}
            names[row["name"]] = AblationRow(row["name"], row["group"], row["title"], row["settings"]), runs
        for chosen in self.plan.rows:
            runs = names[chosen.name][1] if chosen.name in names else {}
            names[chosen.name] = chosen, runs | self.plan.folders[chosen.name]

        finished = {}
        for name in sorted({name for _, runs in names.values() for name in runs.values()}):
            with contextlib.suppress(OSError, ValueError):
                finished[name] = load_run(self.out / name)
        if not finished:
            return None
        dataset = finished[min(finished, key=lambda name: (not name.startswith(self.against.name), name))].dataset
        check_same_data(finished.values())
        rare = rare_classes(dataset["train_pixels"], self.rare)
        catalogue = [row.name for row in CATALOGUE]
        rows = []
        for row, runs in sorted(
            names.values(), key=lambda item: catalogue.index(n) if (n := item[0].name) in catalogue else len(catalogue)
        ):
            epochs = row.settings.get("epochs", self.base.epochs)
            entries = [self._entry(seed, runs[seed], finished.get(runs[seed]), epochs, rare) for seed in sorted(runs)]
            shown = {"name": row.name, "group": row.group, "title": row.title, "settings": row.settings}
            rows.append({**shown, "runs": entries})
        return {
            "format": 1,
            "command": self._command(rows),
            "settings": self._shared_settings(),
            "versions": {"cawa_fast": __version__, "torch": torch.__version__},
            "epochs": self.base.epochs,
            "seeds": sorted({seed for _, runs in names.values() for seed in runs}),
            "against": self.against.name,
            "class_names": dataset["class_names"],
            "train_pixels": dataset["train_pixels"],
            "rare": {"part": self.rare, "classes": rare},
            "groups": {key: text for key, text in _HEADINGS.items() if any(row["group"] == key for row in rows)},
            "rows": with_statistics(rows, self.against.name),
        }

    def write(self) -> None:
        """Write ``ablation.json`` and ``ablation.md`` with the results so far, if there are any."""
        result = self.results()
        if result is None:
            return
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        for name, content in (("ablation.json", text), ("ablation.md", markdown(result, result["groups"]))):
            with atomic(self.out / name) as file:
                file.write(content.encode())

    def _entry(self, seed: int, name: str, run: Run | None, epochs: int, rare: list[int]) -> dict[str, Any]:
        entry: dict[str, Any] = {"seed": seed, "run": name, "status": "unfinished", "error": None}
        if run is not None and run.epochs[-1] >= epochs:
            return entry | {"status": "done"} | final_values(run, rare)
        state = self.states.get(name)
        if state is not None and state.status == "failed":
            entry |= {"status": "failed", "error": state.error}
        return entry

    def _command(self, rows: list[dict[str, Any]]) -> str:
        """The command that makes these results, without options that no result depends on."""
        names = [row["name"] for row in rows]
        chosen: list[str] = []
        for group in GROUPS:
            whole = [row.name for row in CATALOGUE if row.group == group]
            chosen += [group] if set(whole) <= set(names) else [name for name in whole if name in names]
        chosen += [row["name"] for row in rows if row["group"] == CUSTOM]
        seeds = sorted({run["seed"] for row in rows for run in row["runs"]})
        words = ["cawa-fast", "ablate", "--rows", ",".join(chosen), "--seeds", ",".join(map(str, seeds))]
        words += [] if self.against.name == "uniform" else ["--against", self.against.name]
        words += [] if self.rare == RARE else ["--rare", str(self.rare)]
        for setting in fields(self.base):
            value = getattr(self.base, setting.name)
            if setting.name in (*_OF_A_RUN, "threads") or setting.metadata["resume"] or value == setting.default:
                continue
            option = f"--{setting.name.replace('_', '-')}"
            if isinstance(value, tuple):
                value = ("x" if isinstance(value[0], int) else ",").join(f"{part:g}" for part in value)
            words += [option] if value is True else [option, str(value)]
        return shlex.join(words)


def _devices(base: TrainConfig, device: torch.device) -> list[str]:
    """The devices over which the processes are distributed."""
    if device.type == "cuda" and device.index is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [base.device]

"""Many runs on equal terms: rows of settings, each over several seeds, in several processes.

Every run is an ordinary run folder ``OUT/<row>-s<seed>``; two files beside them say what was found.

**ablation.json**, one object::

    format            1
    command           what makes it again, without places
    settings          the settings that all rows share, as config.json has them, without seed, weighting, and places
    versions          {"cawa_fast": ..., "torch": ...}
    epochs            per run
    seeds             [0, 1, 2]
    against           the row that others are compared with, "uniform"
    class_names       C names
    train_pixels      C pixels per class in the training set
    rare              {"part": 0.2, "classes": [indices]}, see rare_classes
    groups            {key: heading}, in the order of the tables
    rows              [row, ...], in the order of the tables

A row::

    name              unique: "uniform", "ladder-csps", "delta=0.4"
    group             key of groups
    title             for tables and figures
    settings          what it changes: {"weighting": "cawa", "delta": 0.4}
    runs              one per seed, see below. Rows with equal settings name the same folders
    summary           {"miou" | "rare_iou" | "pixel_accuracy" | "seconds_per_epoch" | "awa_share":
                       {"mean", "sd" (null with one seed), "n"} or null}
    paired            {"miou" | "rare_iou" | "pixel_accuracy": {"differences": {seed: row less against}, "mean", "sd",
                       "n", "low", "high" (95 % t interval of the mean), "better" (differences above 0)} or null}

A run: ``seed``, ``run`` (the folder's name), ``status`` ("done", "failed", "unfinished"), ``error`` (null, or why), and
if it is done ``epochs``, ``miou``, ``rare_iou``, ``pixel_accuracy``, ``iou`` (by class), ``dead`` (classes with IoU 0),
``seconds_per_epoch`` and ``awa_share`` (what the adaptive weights add to an epoch's time). Values are those after the
last epoch, as shares in [0, 1]; null where there is none.

Rows and seeds of earlier calls with the same folder and settings stay in both files.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ... import __version__
from ..config import TrainConfig
from ..files import atomic
from ..parallel import cpu_count
from ..runs.compare import RARE, rare_classes
from ..runs.folder import RunFolder
from ..runs.read import Run, load_run
from .pool import Pool
from .results import final_values, markdown, with_statistics
from .rows import CATALOGUE, CUSTOM, DEFAULT_ROWS, GROUPS, Plan, Row, choose, make_plan

__all__ = ["CATALOGUE", "DEFAULT_ROWS", "GROUPS", "RARE", "Ablation", "Row", "State", "choose", "rare_classes"]

_OF_A_RUN = ("seed", "weighting")
"""Settings that are a run's own."""

_HEADINGS = GROUPS | {CUSTOM: "Other settings"}


@dataclass
class State:
    """How far a run is.

    Attributes:
        name: of its folder.
        config: its settings.
        epoch: epochs done; parts of one while it runs.
        status: "waiting", "running", "done" or "failed".
        miou: after the last finished epoch.
        seconds: of an epoch, mean of those that are known.
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


class Watcher(Protocol):
    """What is told when a run begins, advances, or ends."""

    def update(self, state: State) -> None: ...


class Ablation:
    """Rows of settings, each trained for several seeds.

    Args:
        out: the folder of the runs and of the results.
        base: the settings that all rows share. Its ``weighting`` and ``seed`` are not used.
        rows: what to compare; see :func:`choose`.
        seeds: each at least 0, none twice.
        jobs: processes at a time; default: a core each, at most 8 (on GPUs: one for each).
        against: the row that others are compared with; it is run even if it is not among ``rows``.
        rare: see :func:`rare_classes`.

    Raises:
        ValueError: an argument is out of range, or a folder holds a run with other settings.

    Example:
        >>> ablation = Ablation("runs/ablation", TrainConfig(epochs=1, train_images=8), choose(["cawa"]), seeds=(0, 1))
        >>> list(ablation.states)
        ['uniform-s0', 'cawa-s0', 'uniform-s1', 'cawa-s1']
    """

    def __init__(
        self,
        out: str | Path,
        base: TrainConfig,
        rows: Sequence[Row],
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
        rare_classes([1], rare)
        self.out, self.rare = Path(out), rare
        device = base.resolved_device()
        base_rows = choose([against])
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

    @property
    def waiting(self) -> list[State]:
        """The runs that are not done."""
        return [state for state in self.states.values() if state.status != "done"]

    @property
    def failed(self) -> list[State]:
        """The runs that ended with an error in this call."""
        return [state for state in self.states.values() if state.status == "failed"]

    def seconds_left(self) -> float | None:
        """An estimate: the epochs left, at the mean time of those that are known, over the jobs; None if none is."""
        known = [state.seconds for state in self.states.values() if state.seconds is not None]
        if not known:
            return None
        mean = sum(known) / len(known)
        left = sum((state.config.epochs - state.epoch) * (state.seconds or mean) for state in self.waiting)
        return left / max(min(self.jobs, len(self.waiting)), 1)

    def run(self, watcher: Watcher) -> None:
        """Train what is not done, and write the results after every run that ends.

        A run that fails is remembered in :attr:`failed`; the others go on. On ``KeyboardInterrupt`` the processes are
        ended, the results so far written, and it is raised again: the next call continues.

        Raises:
            ValueError: another process works in the same folder.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with _locked(self.out):
            self.write()
            devices = [self._devices[index % len(self._devices)] for index in range(self.jobs)]
            configs = {state.name: state.config for state in self.waiting}
            try:
                with contextlib.closing(Pool(self.out, devices).run(configs)) as events:
                    for name, event in events:
                        self._apply(self.states[name], event)
                        watcher.update(self.states[name])
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
            with contextlib.suppress(ValueError):  # damaged: then it has failed
                done = self._state(state.name, state.config)  # what the files say
                state.epoch, state.miou, state.seconds = done.epoch, done.miou, done.seconds
                if done.status == "done":
                    state.status, state.error = "done", None
            self.write()

    # ---------------------------------------------------------------------------------------------------- folders

    def _state(self, name: str, config: TrainConfig) -> State:
        """How far the run is, by its files; with the settings that it was begun with."""
        folder = RunFolder(self.out / name)
        if not folder.exists():
            return State(name, config)
        stored = folder.read_config()
        for setting in fields(config):
            own_choice = setting.name == "threads" and not self._threads_given
            now, then = getattr(config, setting.name), getattr(stored, setting.name)
            if now != then and not setting.metadata["resume"] and not own_choice:
                raise ValueError(
                    f"{folder.path} was begun with {setting.name}={then!r}, not {now!r}; choose another --out, "
                    f"continue with --{setting.name.replace('_', '-')} as it was, or delete the folder to run it anew"
                )
        state = State(name, replace(config, threads=stored.threads))  # their number decides the last bits
        with contextlib.suppress(OSError, ValueError):  # no epoch was finished, or the file is made again on resuming
            run = load_run(folder.path)
            state.epoch, state.miou = run.epochs[-1], run.final["miou"]
            state.seconds = run.seconds()["total"]
            state.status = "done" if state.epoch >= config.epochs else "waiting"
        return state

    def _shared_settings(self) -> dict[str, Any]:
        hidden = {setting.name for setting in fields(self.base) if setting.metadata["resume"]} | set(_OF_A_RUN)
        return {name: value for name, value in self.base.as_dict().items() if name not in hidden}

    def _read_earlier(self) -> dict[str, Any]:
        """``ablation.json`` of earlier calls, whose rows and seeds stay; empty if there is none."""
        file = self.out / "ablation.json"
        try:
            earlier = json.loads(file.read_text())
            kept = {
                "rows": [{k: row[k] for k in ("name", "group", "title", "settings", "runs")} for row in earlier["rows"]]
            }
            then = earlier["settings"]
        except FileNotFoundError:
            return {"rows": []}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is damaged ({error!r}); delete it, the runs are not lost") from error
        # JSON has no tuples
        now = json.loads(json.dumps(self._shared_settings()))
        free = () if self._threads_given else ("threads",)
        if other := [name for name in now if name not in free and now[name] != then.get(name, now[name])]:
            name = other[0]
            raise ValueError(
                f"{self.out} holds an ablation with {name}={then[name]!r}, not {now[name]!r}; choose another --out, or "
                f"continue with --{name.replace('_', '-')} as it was"
            )
        return kept

    # ---------------------------------------------------------------------------------------------------- results

    def results(self) -> dict[str, Any] | None:
        """What ``ablation.json`` holds; None as long as no run has read its data."""
        names: dict[str, tuple[Row, dict[int, str]]] = {}
        for row in self._earlier["rows"]:
            runs = {run["seed"]: run["run"] for run in row["runs"]}
            names[row["name"]] = Row(row["name"], row["group"], row["title"], row["settings"]), runs
        for chosen in self.plan.rows:
            runs = names[chosen.name][1] if chosen.name in names else {}
            names[chosen.name] = chosen, runs | self.plan.folders[chosen.name]

        finished = {}
        for name in {name for _, runs in names.values() for name in runs.values()}:
            with contextlib.suppress(OSError, ValueError):
                finished[name] = load_run(self.out / name)
        if not finished:
            return None
        dataset = finished[min(finished, key=lambda name: (not name.startswith(self.against.name), name))].dataset
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
        """Write ``ablation.json`` and ``ablation.md`` of what is there, if there is anything."""
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
        """The call that makes these results, without what no result depends on."""
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
    """The devices that processes take turns with."""
    if device.type == "cuda" and device.index is None:
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [base.device]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of the folder: both would write the same runs."""
    try:
        import fcntl
    except ImportError:  # no POSIX
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"another cawa-fast ablate works in {folder}; wait for it, or choose another --out"
            ) from None
        yield

"""The step "benchmarks": measures unit after unit, and publishes after each."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..baselines import MEANING, Implementation
from ..measure import ratio
from ..rows import Row
from .awa import measure_adaptive
from .rows import REHEARSED, ROWS, Unit, implementation_on, inputs_of, rehearsed, scored_maps, units_of
from .state import State
from .timing import Machine, UncapturableError, first_line, replayed, samples

AWA = "awa"
"""The piece, and key of the result, that holds the cost of adaptive weights."""

ROUNDS = 7
_SLOW = 0.2  # seconds of one call from which on an implementation is called once and takes no turns
_IN_TURNS = 3.0  # seconds of a unit in which implementations take turns; then no further round begins

Found = dict[str, Any]


def run_benchmarks(state: State, machine: Machine) -> None:
    """Measure everything that is not in ``state`` yet, until its time is up."""
    units = plan(state.rehearse)
    important = sum(1 for unit in units if unit.kind == "baselines" and unit.row.targets)

    def piece(unit: Unit) -> None:
        try:
            _measure_unit(unit, state, machine)
        finally:
            names = {name for row in state.data["rows"].values() for name in row["contenders"]}
            state.data["meaning"] = {name: text for name, text in MEANING.items() if name in names}

    def adaptive() -> None:
        state.data[AWA] = measure_adaptive(machine, state.rehearse)

    pieces: dict[str, Callable[[], None]] = {unit.name: functools.partial(piece, unit) for unit in units[:important]}
    pieces[AWA] = adaptive
    pieces |= {unit.name: functools.partial(piece, unit) for unit in units[important:]}
    state.data["planned"] = len({*pieces, *state.data.get("done", [])})
    state.complete(pieces, machine, lambda: state.remaining() >= 4)


def warm_up(state: State, machine: Machine) -> None:
    """Compile the rows' baselines while other steps run; later torch.compile finds them in its cache."""
    for row in [row for row in ROWS if row.compiled and row.targets]:
        if state.remaining() < 5:
            break
        implementation_on(machine, row, row.compiled[0], inputs_of(row, machine)[:1]).run()
        print(f"{row.key}: compiled, {state.remaining():.0f} s left", flush=True)
        machine.release()


def plan(rehearse: bool) -> list[Unit]:
    """All units; for a rehearsal few of each kind, because the interpreter is slow."""
    if not rehearse:
        return units_of(ROWS)
    kept: list[Unit] = []
    for unit in units_of(tuple(rehearsed(row) for row in ROWS if row.key in REHEARSED)):
        if unit.kind in ("baselines", "torchmetrics") or unit.kind not in [other.kind for other in kept]:
            kept.append(unit)
    return kept


def _measure_unit(unit: Unit, state: State, machine: Machine) -> None:
    row = unit.row
    given = inputs_of(row, machine)
    found = state.data["rows"].setdefault(row.key, _empty(row, len(given)))
    backend = "eager" if state.rehearse else "inductor"  # of torch.compile, whose C++ takes half a minute on a CPU
    first = unit.kind == "baselines"
    ours: list[Implementation] = []
    others: list[Implementation] = []
    for name in ("ours", *(("ours again",) if first else ()), *unit.names):
        try:
            made = implementation_on(machine, row, name, given, backend)
            seconds = _warmed(machine, made)
        except Exception as error:
            if name == "ours":
                raise
            found["failed"][name] = first_line(error)
            machine.release()
            machine.synchronize()
            continue
        if name == "ours":
            ours = [made]
        elif seconds > _SLOW:  # its turns would use up the time of all
            found["contenders"][name] = {"median": seconds, "seconds": [seconds]}
        else:
            others.append(made)
    rounds = 2 if state.rehearse else ROUNDS
    until = time.monotonic() + min(_IN_TURNS, max(state.remaining() / 4, 1.0))
    measured = samples(machine, [*ours, *others], rounds, until)
    for name, values in measured.items():
        if name != "ours" or first:
            found["contenders"][name] = {"median": statistics.median(values), "seconds": values}
    for name in measured.keys() - {"ours"}:
        found["faster"][name] = ratio(measured[name], measured["ours"])
    if first:
        together = [name for name in measured if name.startswith("eager")]
        if together:
            best = [min(values) for values in zip(*(measured[name] for name in together), strict=True)]
            found["faster"]["best eager"] = ratio(best, measured["ours"])
        if row.operator == "cam_counts":  # only the maps of present classes must be read
            found["floor"] = asdict(row.floor(gather=True, maps=scored_maps(given[0], row.classes)))
    state.publish()
    for made in [*(ours if first else []), *others]:
        if made.name != "ours again":
            found["contenders"][made.name]["peak_bytes"] = machine.peak(made)
    if first:
        # last: a failed capture may leave the device in a state from which only a new process recovers
        graphed = [*ours, *(made for made in others if made.name == "labels" or _captured(row, made.name))]
        for made in graphed:
            _replay(made, found, machine, rounds)


def _empty(row: Row, copies: int) -> Found:
    return {
        "title": row.title,
        "operator": row.operator,
        "copies": copies,
        "contenders": {},
        "faster": {},
        "graph": {},
        "failed": {},
        "floor": asdict(row.floor(gather=True)),
    }


def _captured(row: Row, name: str) -> bool:
    """Whether PyTorch is captured too: its losses are, but its counting (``bincount``) waits for the device."""
    return row.operator == "cross_entropy" and name in ("eager", "eager, channels_last")


def _warmed(machine: Machine, made: Implementation) -> float:
    """Seconds of a second call; the first one compiles."""
    for _ in range(2):
        seconds = machine.clock(made, 1)
    machine.synchronize()
    return seconds


def _replay(made: Implementation, found: Found, machine: Machine, rounds: int) -> None:
    try:
        found["graph"][made.name] = replayed(machine, made, rounds)
    except UncapturableError as error:
        found["failed"][f"graph of {made.name}"] = str(error)

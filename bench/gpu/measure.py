"""The benchmarks' process: measures unit after unit, and publishes after each, so that what is done stays done."""

from __future__ import annotations

import statistics
import time
import traceback
from typing import Any

from ..baselines import MEANING, Contender
from ..floors import Floor
from ..measure import ratio
from .awa import KEY as AWA
from .awa import measure as measure_awa
from .rows import REHEARSED, ROWS, Row, Unit, contender, problems, scored_maps, shrunk, units
from .state import State
from .timing import Machine, UncapturableError, first_line, replayed, samples

ROUNDS = 7
_SLOW = 0.2  # seconds of one call, from which on a contender is called once and not in turns
_IN_TURNS = 3.0  # seconds of a piece, in which contenders take turns; fewer rounds rather than more

Found = dict[str, Any]


def run(state: State, machine: Machine) -> None:
    """Measure all that is not in ``state`` yet, until its time is up.

    A unit during which the process died is not tried again.
    """
    rows: Found = state.data.setdefault("rows", {})
    failed: Found = state.data.setdefault("failed", {})
    done: list[str] = state.data.setdefault("done", [])
    begun = state.data.pop("begun", None)
    if begun is not None and begun not in done:
        failed[begun] = "the process ended while this was measured; see the log"
        done.append(begun)
    todo = [unit for unit in _plan(state.rehearse) if unit.name not in done]
    state.data["planned"] = len(done) + len(todo) + (AWA not in done)
    goals = sum(1 for unit in todo if unit.kind == "rivals" and unit.row.targets)
    for place, unit in enumerate([*todo[:goals], None, *todo[goals:]]):
        name = AWA if unit is None else unit.name
        if name in done:
            continue
        if state.remaining() < 4:
            state.data["note"] = f"out of time before {name}"
            break
        state.data["begun"] = name
        state.publish()
        begin = time.monotonic()
        try:
            if unit is None:
                state.data["awa"] = measure_awa(machine, state.rehearse)
            else:
                _measure(unit, rows, machine, state)
        except Exception as error:
            failed[name] = first_line(error)
            traceback.print_exc()
        print(f"{name}: {time.monotonic() - begin:.1f} s ({place})", flush=True)
        done.append(name)
        del state.data["begun"]
        names = {contender for row in rows.values() for contender in row["contenders"]}
        state.data["meaning"] = {contender: text for contender, text in MEANING.items() if contender in names}
        state.publish()
        machine.release()
        machine.synchronize()  # a device that has failed ends this process; the next one goes on behind this unit


def warm_up(state: State, machine: Machine) -> None:
    """Compile what the rows are compared with, beside other steps: torch.compile finds it in its cache later."""
    for row in [row for row in ROWS if row.compiled and row.targets]:
        if state.remaining() < 5:
            break
        contender(row, row.compiled[0], machine, problems(row, machine)[:1]).run()
        print(f"{row.key}: compiled, {state.remaining():.0f} s left", flush=True)
        machine.release()


def _plan(rehearse: bool) -> list[Unit]:
    rows = ROWS
    if rehearse:
        rows = tuple(shrunk(row) for row in ROWS if row.key in REHEARSED)
        # each kind of unit, few times: the interpreter is slow
        kept: list[Unit] = []
        for unit in units(rows):
            if unit.kind in ("rivals", "torchmetrics") or unit.kind not in [other.kind for other in kept]:
                kept.append(unit)
        return kept
    return units(rows)


def _measure(unit: Unit, rows: Found, machine: Machine, state: State) -> None:
    row = unit.row
    given = problems(row, machine)
    found = rows.setdefault(row.key, _empty(row, len(given)))
    backend = "eager" if state.rehearse else "inductor"  # of torch.compile, whose C++ takes a CPU half a minute
    first = unit.kind == "rivals"
    ours: list[Contender] = []
    rivals: list[Contender] = []
    for name in ("ours", *(("ours again",) if first else ()), *unit.names):
        try:
            made = contender(row, name, machine, given, backend)
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
        elif seconds > _SLOW:  # in turns it would use up everyone's time
            found["contenders"][name] = {"median": seconds, "seconds": [seconds]}
        else:
            rivals.append(made)
    rounds = 2 if state.rehearse else ROUNDS
    until = time.monotonic() + min(_IN_TURNS, max(state.remaining() / 4, 1.0))
    measured = samples(machine, [*ours, *rivals], rounds, until)
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
        if row.operator == "cam_counts":  # only the maps of the classes that are there must be read
            found["floor"] = _as_dict(row.floor(scored_maps(given[0], row.classes)))
    state.publish()
    for made in [*(ours if first else []), *rivals]:
        if made.name != "ours again":
            found["contenders"][made.name]["peak_bytes"] = machine.peak(made)
    if first:
        # last: a failed capture may leave the device in a state from which only a new process recovers
        graphed = [*ours, *(made for made in rivals if made.name == "labels" or _captured(row, made.name))]
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
        "floor": _as_dict(row.floor()),
    }


def _as_dict(floor: Floor) -> dict[str, int]:
    return {"bytes": floor.bytes, "exponentials": floor.exponentials, "fmas": floor.fmas}


def _captured(row: Row, name: str) -> bool:
    """Whether PyTorch's way is captured too: of the losses. Its counting waits for the device (``bincount``)."""
    return row.operator == "cross_entropy" and name in ("eager", "eager, channels_last")


def _warmed(machine: Machine, made: Contender) -> float:
    """Seconds of a second call; the first one compiles."""
    for _ in range(2):
        seconds = machine.clock(made, 1)
    machine.synchronize()
    return seconds


def _replay(made: Contender, found: Found, machine: Machine, rounds: int) -> None:
    try:
        found["graph"][made.name] = replayed(machine, made, rounds)
    except UncapturableError as error:
        found["failed"][f"graph of {made.name}"] = str(error)

"""The step "sweep": times every configuration of ``kernels/_tiling.py`` and writes a patch with the best ones first.

It needs two names of that file. ``TABLES`` maps a kernel's name to its possible configurations, the default first.
``forced(name, configuration)`` is a context manager under which that kernel runs with that configuration.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import math
import statistics
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..rows import Row
from .rows import ROWS, implementation_on, inputs_of, rehearsed
from .state import State
from .timing import Machine, UncapturableError, first_line, replayed, samples

_SWEPT = (
    *("resize-ce-150-x4", "resize-ce-19-x4", "confusion-19", "confusion-150", "cam-19", "cam-150"),
    *("resize-ce-150-x4-bf16", "resize-ce-19-x4-bf16", "ce-19", "ce-150", "ce-19-bf16", "ce-150-bf16"),
)

_GAIN = 1.02
"""How much faster a configuration must be to come first; timing the same one twice differs by less."""

Found = dict[str, Any]
Configuration = dict[str, int]


def tiling() -> tuple[Any | None, str]:
    """The module and an empty text, or None and the reason why there is nothing to sweep."""
    try:
        module = importlib.import_module("cawa_fast.kernels._tiling")
    except ImportError as error:
        return None, f"skipped: no tables ({first_line(error)})"
    missing = [name for name in ("TABLES", "forced") if not hasattr(module, name)]
    return (None, f"skipped: no tables (_tiling has no {' and no '.join(missing)})") if missing else (module, "")


def uses(kernel: str, row: Row) -> bool:
    """Whether a row's time may depend on a kernel, judged by its name.

    A kernel whose name contains no operator is swept on the CAM counts, where it has the largest share of the time.
    """
    operators = {
        "confusion_matrix": ("confusion", "argmax"),
        "cam_counts": ("cam", "maximum", "count"),
        "cross_entropy": ("cross_entropy", "loss", "softmax"),
    }
    named = [operator for operator, words in operators.items() if any(word in kernel for word in words)]
    if not named:
        return row.operator == "cam_counts"
    return row.operator in named and (row.operator != "cross_entropy" or row.same_size == ("same" in kernel))


def run_sweep(state: State, machine: Machine) -> None:
    """Time the configurations of every kernel on every row that uses it, until the time is up."""
    module, why = tiling()
    if module is None:
        state.data["note"] = why
        state.publish()
        return
    rows = [row for key in _SWEPT for row in ROWS if row.key == key]
    if state.rehearse:
        rows = [rehearsed(row) for row in rows if row.key in ("resize-ce-19-x4", "confusion-19", "cam-19")]
    time_configurations(module.TABLES, module.forced, rows, state, machine)
    source = Path(module.__file__).read_text(encoding="utf-8")
    state.data["tables"] = dict(module.TABLES)
    state.data["order"] = best(state.data["times"], module.TABLES)
    state.data["patch"] = patch(source, state.data["order"])
    state.publish()


def time_configurations(
    tables: dict[str, list[Configuration]], forced: Any, rows: Iterable[Row], state: State, machine: Machine
) -> None:
    """Fill ``state.data["times"][kernel][row]`` with seconds per configuration, None where it failed."""
    seconds: Found = state.data.setdefault("times", {})
    failed: Found = state.data.setdefault("failed", {})
    for row in rows:
        kernels = [name for name, configurations in tables.items() if len(configurations) > 1 and uses(name, row)]
        if not kernels:
            continue
        given = inputs_of(row, machine)
        for kernel in kernels:
            configurations = tables[kernel][: 2 if state.rehearse else None]
            times: list[float | None] = []
            for configuration in configurations:
                if state.remaining() < 3:
                    state.data["note"] = f"out of time before {kernel} on {row.key}"
                    return
                try:
                    times.append(_time(forced(kernel, configuration), row, given, machine))
                except Exception as error:
                    failed[f"{kernel} {configuration} on {row.key}"] = first_line(error)
                    times.append(None)
                    machine.release()
                    machine.synchronize()
            seconds.setdefault(kernel, {})[row.key] = times
            state.publish()
            print(f"{kernel} on {row.key}: {times}", flush=True)


def _time(forced: AbstractContextManager[Any], row: Row, given: list[Any], machine: Machine) -> float:
    with forced:
        made = implementation_on(machine, row, "ours", given)
        machine.clock(made, 1)
        try:
            return replayed(machine, made, 5)
        except UncapturableError:
            return statistics.median(samples(machine, [made], 5)["ours"])


def best(times: Found, tables: dict[str, list[Configuration]]) -> dict[str, list[int]]:
    """Per kernel the places of its configurations in the order they should have.

    Configurations are ranked by their slowdown against each row's best one, as geometric mean over the rows. One that
    failed on a row comes last. The order stays as it is where the gain would be within the noise.
    """
    order = {}
    for kernel, by_row in times.items():
        losses = [0.0] * len(tables[kernel])
        for measured in by_row.values():
            known = [time for time in measured if time is not None]
            for place in range(len(losses)):
                time = measured[place] if place < len(measured) else None
                losses[place] += math.inf if time is None else math.log(time / min(known)) / len(by_row)
        ranked = sorted(range(len(losses)), key=losses.__getitem__)
        gain = losses[0] - losses[ranked[0]]  # infinite where the present one failed; not a number where all did
        order[kernel] = ranked if gain > math.log(_GAIN) else list(range(len(losses)))
    return order


def patch(source: str, order: dict[str, list[int]]) -> str:
    """A unified diff of ``kernels/_tiling.py`` that puts the best configurations first; empty if they are first.

    Where ``TABLES`` is not written as a dictionary of lists, the result is the wanted order in words.
    """
    moved = {kernel: places for kernel, places in order.items() if places and places[0] != 0}
    if not moved:
        return ""
    found = _lists(source)
    if not moved.keys() <= found.keys():
        return "\n".join(f"{kernel}: configuration {places[0]} first" for kernel, places in moved.items())
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    data = source.encode()

    def span(node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    changes = []
    for kernel, places in moved.items():
        spans = [span(element) for element in found[kernel].elts]
        first = data[slice(*spans[places[0]])]
        # the best moves to the front and those before it one place back; the text between them stays
        texts = [first, *(data[slice(*spans[place])] for place in range(places[0]))]
        changes += [(*spans[place], text) for place, text in enumerate(texts)]
    for start, end, text in sorted(changes, reverse=True):
        data = data[:start] + text + data[end:]
    new = data.decode().splitlines(keepends=True)
    return "".join(difflib.unified_diff(lines, new, "a/kernels/_tiling.py", "b/kernels/_tiling.py"))


def _lists(source: str) -> dict[str, ast.List]:
    """The values of ``TABLES`` in the source that are written as lists, by kernel."""
    for node in ast.parse(source).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if not any(isinstance(target, ast.Name) and target.id == "TABLES" for target in targets):
            continue
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            return {
                str(key.value): element
                for key, element in pairs
                if isinstance(key, ast.Constant) and isinstance(element, ast.List)
            }
    return {}

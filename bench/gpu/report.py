"""The results of ``python -m bench gpu`` in Markdown, and in a few lines for the console."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..epoch import report as epoch
from ..table import aligned, mebibytes, milliseconds, times
from .goals import Goal, goals, limit_share, our_seconds
from .rows import ROWS

Found = dict[str, Any]
Cells = list[str]

_OWN_COLUMNS = ("eager", "eager, channels_last", "compile")
_NOT_RIVALS = ("ours", "ours again", "copy")
SUMMARY_CHARACTERS = 9500

STEPS = ("build", "limits", "tests", "profile", "benchmarks", "epoch", "sanitizer", "sweep")
"""The steps of :mod:`.command`, by name."""


def markdown(result: Found) -> str:
    """The whole ``gpu.md``."""
    parts = [f"# {title(result)}", ""]
    if result["rehearsal"]:
        parts += ["**Sizes are tiny and kernels interpreted. Nothing here is a measurement.**", ""]
    parts += [machine_line(result), ""]
    if result.get("note"):
        parts += [f"**{result['note']}**", ""]
    parts += [steps_table(result)]
    steps = result["steps"]
    if steps.get("benchmarks", {}).get("rows"):
        parts += ["## Benchmarks", "", benchmark_table(result), *_notes(result)]
    sections = {"epoch": _epoch, "profile": _profile, "tests": _tests, "sanitizer": _sanitizer, "limits": _limits}
    for name, section in (sections | {"sweep": _sweep}).items():
        if name in steps:
            parts += [f"## {name.capitalize()}", "", *section(steps[name]), ""]
    return "\n".join(parts).rstrip() + "\n"


def title(result: Found) -> str:
    """What was measured on."""
    if result["rehearsal"]:
        return "GPU benchmark: a rehearsal on a CPU"
    return f"GPU benchmark: {result['machine']['gpu'].get('name', 'unknown device')}"


def machine_line(result: Found) -> str:
    """Device and versions."""
    machine, limits = result["machine"], result["steps"].get("limits", {})
    gpu, device = machine["gpu"], limits.get("device", {})
    words = [
        gpu.get("name"),
        f"compute capability {gpu['compute_cap']}" if "compute_cap" in gpu else None,
        f"{device['multiprocessors']} multiprocessors" if device else None,
        f"{device['l2_bytes'] / 2**20:.0f} MiB L2" if device else None,
        f"driver {gpu['driver_version']}" if "driver_version" in gpu else None,
        f"CUDA {machine['cuda']}" if machine["cuda"] else None,
        f"torch {machine['torch']}",
        f"triton {limits['triton']}" if "triton" in limits else None,
        f"Python {machine['python']}",
        f"commit {machine['commit'] or 'unknown'}",
        machine["date"],
    ]
    return ", ".join(str(word) for word in words if word) + "."


def outcome(found: Found) -> str:
    """How a step ended, in one line."""
    text = f"{found['status']} after {found.get('seconds', 0):.0f} s"
    if "counts" in found:
        text += ": " + ", ".join(f"{number} {kind}" for kind, number in found["counts"].items())
    return text + (f" ({' '.join(str(found['note']).split())[:300]})" if found.get("note") else "")


def steps_table(result: Found) -> str:
    """How the steps ended, and those that were left out."""
    rows = [[name, outcome(found)] for name, found in result["steps"].items()]
    rows += [[name, "not run"] for name in STEPS if name not in result["steps"]]
    return aligned(("step", "outcome"), rows, ("step", "outcome"))


# ------------------------------------------------------------------------------------------------------- benchmarks


def _rows(result: Found) -> list[tuple[str, Found]]:
    """The measured rows in the table's order."""
    rows = result["steps"].get("benchmarks", {}).get("rows", {})
    return [(row.key, rows[row.key]) for row in ROWS if row.key in rows]


def benchmark_table(result: Found) -> str:
    """All rows with all columns."""
    limits = result["steps"].get("limits", {})
    columns = [
        *("operator, shape", "ours, ms", "in a graph", "eager, ms", "channels_last", "compile", "other rivals, ms"),
        *("× eager", "× compile", "of the limit", "goals", "memory ours / eager, MiB"),
    ]
    lines = []
    for key, row in _rows(result):
        lines.append(
            [
                row["title"],
                milliseconds(_median(row, "ours")),
                milliseconds(row["graph"].get("ours")),
                milliseconds(_median(row, "eager")),
                milliseconds(_median(row, "eager, channels_last")),
                milliseconds(_median(row, "compile")),
                _others(row),
                times(row["faster"].get("best eager")),
                times(row["faster"].get("compile")),
                _limit(row, limits),
                "; ".join(_goal(goal) for goal in goals(key, row, limits)),
                " / ".join(mebibytes(_peak(row, name)) for name in ("ours", "eager")),
            ]
        )
    text = aligned(columns, lines, ("operator, shape", "other rivals, ms", "goals"))
    awa = result["steps"]["benchmarks"].get("awa")
    return text + ("\n" + "\n".join(awa_lines(awa)) + "\n" if awa else "")


def _median(row: Found, name: str) -> float | None:
    found = row["contenders"].get(name)
    return None if found is None else found["median"]


def _peak(row: Found, name: str) -> int | None:
    return row["contenders"].get(name, {}).get("peak_bytes")


def _others(row: Found) -> str:
    texts = []
    for name, found in row["contenders"].items():
        if name in _OWN_COLUMNS or name in _NOT_RIVALS:
            continue
        faster = row["faster"].get(name) or found["median"] / (_median(row, "ours") or float("inf"))
        texts.append(f"{name} {milliseconds(found['median'])}: {times(faster)}")
    texts += [f"{name}: –" for name in row["failed"] if not name.startswith("graph of")]
    return "; ".join(texts)


def _limit(row: Found, limits: Found) -> str:
    found = limit_share(row, limits)
    return "–" if found is None else f"{100 * found[0]:.0f} % of {found[1]}"


def _goal(goal: Goal) -> str:
    mark = {True: " ✓", False: " ✗", None: " –"}[goal.met]
    return goal.text + mark


def awa_lines(awa: Found) -> list[str]:
    """The cost of adaptive weights against the forward pass."""
    size = f"{awa['images']}×3×{awa['size'][0]}×{awa['size'][1]}"
    lines = [f"Adaptive weights in validation, {awa['network']}, {size}:", ""]
    for kind in ("float32", "bfloat16"):
        found = awa[kind]
        observe, step, forward = found["observe"], found["step"], found["forward"]
        every, once = (observe + step) / forward, (observe + step / awa["batches"]) / forward
        graph = milliseconds(found.get("observe_graph"))
        lines.append(
            f"- {kind}: forward {milliseconds(forward)} ms; observe {milliseconds(observe)} ms ({graph} in a graph), "
            f"step {milliseconds(step)} ms; together {100 * once:.2f} % of the forward pass with a step after "
            f"{awa['batches']:g} batches (goal: under 1 %{' ✓' if once < 0.01 else ' ✗'}), {100 * every:.2f} % with a "
            f"step after every batch{' ✓' if every < 0.01 else ' ✗'}."
        )
    return lines


def _notes(result: Found) -> list[str]:
    step = result["steps"]["benchmarks"]
    spread = [abs(row["faster"]["ours again"] - 1) for _, row in _rows(result) if "ours again" in row["faster"]]
    lines = [
        "",
        "Times are medians of rounds in which all contenders of a row took turns, by CUDA events, over as many inputs "
        "in turn as exceed the L2 cache twice; ratios are medians of the rounds' own, against the fastest form of "
        "eager. Cross-entropy is forward and backward, with class weights. In a graph: the same calls replayed by a "
        "CUDA graph, without the gaps that Python leaves. The limit is the longest of the times that the fewest bytes, "
        "exponentials and multiply-adds take at the measured rates (bench/floors.py), against the graph's time where "
        "there is one. Memory is what one call adds at its highest, results included.",
        "",
    ]
    if spread:
        lines += [f"The same code timed twice differs by {100 * max(spread):.1f} % at most.", ""]
    failed = [f"{row['title']}, {name}: {why}" for _, row in _rows(result) for name, why in row["failed"].items()]
    failed += [f"{name}: {why}" for name, why in step.get("failed", {}).items()]
    grouped = Counter(text.rpartition(", ")[2] if "No module named" in text else text for text in failed)
    lines += [f"- {text}" + (f" ({number} rows)" if number > 1 else "") for text, number in grouped.items()]
    lines += [f"- {name}: {text}." for name, text in step.get("meaning", {}).items()]
    return [*lines, ""]


# --------------------------------------------------------------------------------------------------- other sections


def _epoch(step: Found) -> list[str]:
    rows = step.get("rows", {}).values()
    columns = ("network", "data", "PyTorch", "ours", "ours + CAWA", "net", "marginal", "rounds")
    body = [
        [
            row["network"],
            f"{row['data']}, C={row['classes']}, {row['batch']}×{row['crop'][0]}×{row['crop'][1]}",
            *(epoch.time(row["seconds"][name]["total"]) for name in "ade"),
            epoch.spread(row["net"]),
            epoch.spread(row["marginal"], 2),
            str(row["rounds"]),
        ]
        for row in rows
    ]
    lines = [f"{outcome(step)}.", ""]
    if body:
        lines += [
            "A whole epoch of training and validation, float32. net: with the library and adaptive weights against "
            "plain PyTorch without; marginal: what observing and the step add to the rest. Least … most of the rounds.",
            "",
            aligned(columns, body, columns[:2]),
        ]
        parts = [part for part, *_ in epoch.PARTS if part != "awa"] + ["observe", "step"]
        body = [
            [
                row["key"],
                name,
                *(f"{row['seconds'][name][part]:.3g}" if part in row["seconds"][name] else "–" for part in parts),
            ]
            for row in rows
            for name in "ade"
        ]
        lines += ["", "Seconds by part (a: PyTorch, d: ours, e: ours + CAWA):", ""]
        lines += [aligned(("row", "", *parts), body, ("row", ""))]
    return [*lines, *_failed(step)]


def _profile(step: Found) -> list[str]:
    lines = [f"{outcome(step)}. Times in µs per call; the host's until the call returns.", ""]
    body, kernels = [], []
    for key, row in step.get("rows", {}).items():
        for name in ("ours", "eager"):
            if name not in row:
                continue
            found = row[name]
            device = sum(seconds for *_, seconds in found["kernels"])
            times = [*(f"{1e6 * seconds:.0f}" for seconds in (found["host"], found["wall"], device))]
            body.append([key, name, *times, f"{sum(launches for _, launches, _ in found['kernels']):.0f}"])
        kernels += ["", f"{row['title']}:", ""]
        for kernel, launches, seconds in row.get("ours", {}).get("kernels", [])[:12]:
            together = f" in {launches:.0f} launches" if launches != 1 else ""
            kernels.append(f"- {1e6 * seconds:.1f}{together}: `{kernel}`")
    columns = ("row", "", "host", "wall", "kernels", "launches")
    return [*lines, *([aligned(columns, body, columns[:2]), *kernels] if body else []), *_failed(step)]


def _failed(step: Found) -> list[str]:
    return ["", *(f"- {name}: {why}" for name, why in step.get("failed", {}).items())]


def _tests(step: Found) -> list[str]:
    lines = [outcome(step) + "."]
    if step.get("progress"):
        lines.append(f"No report; the last progress was {step['progress']}.")
    failures = step.get("failures", [])
    by_message: dict[str, list[str]] = {}
    for failure in failures:
        by_message.setdefault(failure["message"], []).append(failure["name"])
    for message, names in sorted(by_message.items(), key=lambda entry: -len(entry[1])):
        lines += ["", f"{len(names)} × `{message.replace('`', '')}`:", "", *(f"- {name}" for name in names)]
    return lines


def _sanitizer(step: Found) -> list[str]:
    lines = [f"{outcome(step)}{': ' + step['calls'] if 'calls' in step else ''}."]
    for tool, found in step.get("tools", {}).items():
        lines += [
            "",
            f"{tool}: {found['summary'] or 'no summary'} ({found['calls'] or 'calls not counted'}, {found['end']})",
        ]
        if found["errors"] != 0:
            lines += ["", "```", *found["first"], "```"]
    return lines


def _limits(step: Found) -> list[str]:
    if "bytes" not in step:
        return [outcome(step) + "."]
    lines = [
        f"- copy within the device: {step['bytes'] / 1e12:.3f} TB/s, read plus written",
        f"- exponentials: {step['exponentials'] / 1e12:.3f} T/s",
        f"- multiply-adds: {step['fmas'] / 1e12:.2f} T/s",
        f"- launch of an empty kernel: {1e6 * step['launch']:.2f} µs from Python",
    ]
    if "exponentials_per_clock" in step:
        lines[1] += f", {step['exponentials_per_clock']:.1f} per clock and multiprocessor"
        lines[2] += f", {step['fmas_per_clock']:.1f} per clock and multiprocessor"
    if "launch_in_graph" in step:
        lines[3] += f", {1e6 * step['launch_in_graph']:.2f} µs in a graph"
    lines += [f"- {name} under load: {value:g}" for name, value in step.get("clock", {}).items() if name != "name"]
    return lines


def _sweep(step: Found) -> list[str]:
    lines = [outcome(step) + "."]
    tables = step.get("tables", {})
    for kernel, by_row in step.get("times", {}).items():
        columns = ("configuration, µs", *by_row)
        body = [
            [
                ", ".join(f"{name}={value}" for name, value in configuration.items()),
                *(f"{1e6 * row[i]:.1f}" if i < len(row) and row[i] is not None else "–" for row in by_row.values()),
            ]
            for i, configuration in enumerate(tables.get(kernel, []))
        ]
        if body:
            lines += ["", f"{kernel}:", "", aligned(columns, body, columns[:1]).rstrip()]
    if "patch" in step:
        lines += [
            "",
            *(["```diff", step["patch"].rstrip(), "```"] if step["patch"] else ["The tables are best as is."]),
        ]
    return [*lines, *_failed(step)]


def summary(result: Found) -> str:
    """What matters, in few lines: shown last."""
    limits = result["steps"].get("limits", {})
    lines = [title(result), machine_line(result), ""]
    lines += [f"{name:10} {outcome(found)}" for name, found in result["steps"].items()]
    failures = result["steps"].get("tests", {}).get("failures", [])
    lines += [f"  {failure['name'][-70:]}: {failure['message'][:90]}" for failure in failures[:12]]
    lines += [f"  {line}" for line in _limits(limits)[:4]] if "bytes" in limits else []
    for key, row in result["steps"].get("epoch", {}).get("rows", {}).items():
        net, marginal = epoch.spread(row["net"]), epoch.percent(row["marginal"]["median"], 2)
        lines.append(f"epoch of {key}: net {net}, marginal {marginal}")
    rows = []
    for key, row in _rows(result):
        found = goals(key, row, limits)
        ours = our_seconds(row)
        rows.append(
            [
                key,
                milliseconds(_median(row, "ours")),
                milliseconds(ours if "ours" in row["graph"] else None),
                times(row["faster"].get("best eager")),
                times(row["faster"].get("compile")),
                _limit(row, limits),
                "".join({True: "✓", False: "✗", None: "–"}[goal.met] for goal in found),
                "; ".join(_goal(goal) for goal in found if not goal.met)[:90],
            ]
        )
    if rows:
        columns = ("row", "ms", "graph", "× eager", "× comp", "limit", "goals", "not reached")
        lines += ["", aligned(columns, rows, ("row", "goals", "not reached")).rstrip()]
    awa = result["steps"].get("benchmarks", {}).get("awa")
    lines += ["", *awa_lines(awa)] if awa else []
    for key, row in result["steps"].get("profile", {}).get("rows", {}).items():
        if "ours" in row:
            top = ", ".join(f"{name[:24]} {1e6 * seconds:.0f}" for name, _, seconds in row["ours"]["kernels"][:4])
            lines.append(f"{key}: host {1e6 * row['ours']['host']:.0f} µs, {top}")
    order = result["steps"].get("sweep", {}).get("order", {})
    moved = [f"{kernel} {places[0]}" for kernel, places in order.items() if places[0] != 0]
    lines += [f"sweep: better first: {', '.join(moved) or 'none'}"] if order else []
    return "\n".join(lines)[:SUMMARY_CHARACTERS]

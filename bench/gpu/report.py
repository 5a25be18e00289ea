"""The result of ``python -m bench gpu``: the page ``gpu.md``, and the summary that the command prints last."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..epoch.report import PARTS, total
from ..table import (
    Column,
    markdown_table,
    median_of,
    milliseconds,
    peaks_of,
    percent,
    spread,
    times,
)
from .goals import Goal, goals, limit_share
from .rows import ROWS

Found = dict[str, Any]

_OWN_COLUMNS = ("eager", "eager, channels_last", "compile")
_NO_BASELINES = ("ours", "ours again", "copy")
_MARKS = {True: "✓", False: "✗", None: "–"}
SUMMARY_CHARACTERS = 9500

STEPS = ("build", "limits", "tests", "profile", "benchmarks", "epoch", "sanitizer", "sweep")
"""The names of the steps of :mod:`.command`."""


def gpu_page(result: Found) -> str:
    """The whole ``gpu.md``."""
    parts = [f"# {title(result)}", ""]
    if result["rehearsal"]:
        parts += ["**Sizes are tiny and kernels interpreted. Nothing here is a measurement.**", ""]
    parts += [f"{device_line(result)} Made by `python -m bench gpu`.", ""]
    if result.get("note"):
        parts += [f"**{result['note']}**", ""]
    parts += [steps_table(result)]
    steps = result["steps"]
    if steps.get("benchmarks", {}).get("rows"):
        parts += ["## Benchmarks", "", *_benchmarks(result)]
    sections = {"epoch": _epoch, "profile": _profile, "tests": _tests, "sanitizer": _sanitizer, "limits": _limits}
    for name, section in (sections | {"sweep": _sweep}).items():
        if name in steps:
            parts += [f"## {name.capitalize()}", "", *section(steps[name]), ""]
    return "\n".join(parts).rstrip() + "\n"


def title(result: Found) -> str:
    """The benchmark and the device."""
    if result["rehearsal"]:
        return "GPU benchmark: a rehearsal on a CPU"
    return f"GPU benchmark: {result['machine']['gpu'].get('name', 'unknown device')}"


def device_line(result: Found) -> str:
    """Device, versions, commit and date, as far as they are known."""
    machine, limits = result["machine"], step_of_result(result, "limits")
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
    """How the steps ended, and which were not run."""
    rows = [(name, outcome(found)) for name, found in result["steps"].items()]
    rows += [(name, "not run") for name in STEPS if name not in result["steps"]]
    columns = (Column("step", lambda row: row[0], left=True), Column("outcome", lambda row: row[1], left=True))
    return markdown_table(columns, rows)


def step_of_result(result: Found, name: str) -> Found:
    """What a step has found; empty if it did not run."""
    found: Found = result["steps"].get(name, {})
    return found


# ------------------------------------------------------------------------------------------------------- benchmarks


def measured_rows(result: Found) -> dict[str, Found]:
    """The measured rows by key, in the table's order."""
    rows = step_of_result(result, "benchmarks").get("rows", {})
    return {row.key: rows[row.key] for row in ROWS if row.key in rows}


def benchmark_columns(result: Found) -> dict[str, Column]:
    """By title the columns about a row, which is a pair of its key and its measurements."""
    limits = step_of_result(result, "limits")
    profiles = step_of_result(result, "profile").get("rows", {})

    def limit(pair: tuple[str, Found]) -> str:
        found = limit_share(pair[1], limits)
        return "–" if found is None else f"{100 * found[0]:.0f} % of {found[1]}"

    columns = (
        Column("operator, shape", lambda pair: pair[1]["title"], left=True),
        Column("row", lambda pair: pair[0], left=True),
        Column("ours, ms", lambda pair: milliseconds(median_of(pair[1], "ours"))),
        Column("in a graph, ms", lambda pair: milliseconds(pair[1]["graph"].get("ours"))),
        Column("host, ms", lambda pair: milliseconds(profiles.get(pair[0], {}).get("ours", {}).get("host"))),
        Column("eager, ms", lambda pair: milliseconds(median_of(pair[1], "eager"))),
        Column("channels_last", lambda pair: milliseconds(median_of(pair[1], "eager, channels_last"))),
        Column("compile", lambda pair: milliseconds(median_of(pair[1], "compile"))),
        Column("other baselines, ms", lambda pair: _others(pair[1]), left=True),
        Column("× eager", lambda pair: times(pair[1]["faster"].get("best eager"))),
        Column("× compile", lambda pair: times(pair[1]["faster"].get("compile"))),
        Column("of the limit", limit),
        Column("goals", lambda pair: "; ".join(map(_goal, goals(pair[0], pair[1], limits))), left=True),
        Column("met", lambda pair: "".join(_MARKS[goal.met] for goal in goals(pair[0], pair[1], limits)), left=True),
        Column("not met", lambda pair: _not_met(goals(pair[0], pair[1], limits)), left=True),
        Column("memory ours / eager, MiB", lambda pair: peaks_of(pair[1], "ours", "eager")),
    )
    return {column.title: column for column in columns}


_IN_PAGE = (
    *("operator, shape", "ours, ms", "in a graph, ms", "eager, ms", "channels_last", "compile", "other baselines, ms"),
    *("× eager", "× compile", "of the limit", "goals", "memory ours / eager, MiB"),
)
_IN_SUMMARY = ("row", "ours, ms", "in a graph, ms", "× eager", "× compile", "of the limit", "met", "not met")


def benchmark_table(result: Found, titles: tuple[str, ...], keys: tuple[str, ...] | None = None) -> str:
    """Some columns of the measured rows, or of those with certain ``keys`` in their order."""
    columns, rows = benchmark_columns(result), measured_rows(result)
    shown = [(key, rows[key]) for key in (rows if keys is None else keys) if key in rows]
    return markdown_table([columns[title] for title in titles], shown)


def _others(row: Found) -> str:
    texts = []
    for name, found in row["contenders"].items():
        if name in _OWN_COLUMNS or name in _NO_BASELINES:
            continue
        faster = row["faster"].get(name) or found["median"] / (median_of(row, "ours") or float("inf"))
        texts.append(f"{name} {milliseconds(found['median'])}: {times(faster)}")
    texts += [f"{name}: –" for name in row["failed"] if not name.startswith("graph of")]
    return "; ".join(texts)


def _goal(goal: Goal) -> str:
    return f"{goal.text} {_MARKS[goal.met]}"


def _not_met(found: list[Goal]) -> str:
    return "; ".join(_goal(goal) for goal in found if not goal.met)[:90]


def adaptive_lines(found: Found | None) -> list[str]:
    """The cost of adaptive weights against the forward pass, as a list; empty if it was not measured."""
    if not found:
        return []
    size = f"{found['images']}×3×{found['size'][0]}×{found['size'][1]}"
    lines = [f"Adaptive weights in validation, {found['network']}, {size}:", ""]
    for kind in ("float32", "bfloat16"):
        observe, step, forward = (found[kind][name] for name in ("observe", "step", "forward"))
        every, once = (observe + step) / forward, (observe + step / found["batches"]) / forward
        graph = milliseconds(found[kind].get("observe_graph"))
        lines.append(
            f"- {kind}: forward {milliseconds(forward)} ms; observe {milliseconds(observe)} ms ({graph} in a graph), "
            f"step {milliseconds(step)} ms; together {100 * once:.2f} % of the forward pass with a step after "
            f"{found['batches']:g} batches (goal: under 1 % {_MARKS[once < 0.01]}), {100 * every:.2f} % with a step "
            f"after every batch {_MARKS[every < 0.01]}."
        )
    return lines


def _benchmarks(result: Found) -> list[str]:
    step, rows = result["steps"]["benchmarks"], measured_rows(result)
    lines = [benchmark_table(result, _IN_PAGE), *adaptive_lines(step.get("awa"))]
    lines += [
        "",
        "Times are medians of rounds, by CUDA events. In each round all implementations of a row take turns, on as "
        "many inputs in turn as exceed the L2 cache twice; ratios are medians of the rounds' own ratios, against the "
        "fastest form of eager. Cross-entropy is forward and backward, with class weights. In a graph: the same calls "
        "replayed by a CUDA graph, without the gaps that Python leaves. The limit is the longest of the times that "
        "the fewest bytes, exponentials and multiply-adds take at the measured rates (bench/floors.py). It is compared "
        "with the graph's time where there is one. Memory is the peak that one call adds, results included.",
        "",
    ]
    noise = [abs(row["faster"]["ours again"] - 1) for row in rows.values() if "ours again" in row["faster"]]
    if noise:
        lines += [f"The same code timed twice differs by {100 * max(noise):.1f} % at most.", ""]
    failed = [f"{row['title']}, {name}: {why}" for row in rows.values() for name, why in row["failed"].items()]
    failed += [f"{name}: {why}" for name, why in step.get("failed", {}).items()]
    grouped = Counter(text.rpartition(", ")[2] if "No module named" in text else text for text in failed)
    lines += [f"- {text}" + (f" ({number} rows)" if number > 1 else "") for text, number in grouped.items()]
    lines += [f"- {name}: {text}." for name, text in step.get("meaning", {}).items()]
    return [*lines, ""]


# --------------------------------------------------------------------------------------------------- other sections


def _epoch(step: Found) -> list[str]:
    rows = list(step.get("rows", {}).values())
    lines = [f"{outcome(step)}.", ""]
    if rows:
        columns = (
            Column("network", lambda row: row["network"], left=True),
            Column(
                "data",
                lambda row: f"{row['data']}, C={row['classes']}, {row['batch']}×{row['crop'][0]}×{row['crop'][1]}",
                left=True,
            ),
            *map(total, "ade"),
            Column("net", lambda row: spread(row["net"])),
            Column("marginal", lambda row: spread(row["marginal"], 2)),
            Column("rounds", lambda row: str(row["rounds"])),
        )
        keys = [Column("row", lambda line: line[0], left=True), Column("", lambda line: line[1], left=True)]
        keys += [_part(part) for part in (*(part for part, *_ in PARTS if part != "awa"), "observe", "step")]
        lines += [
            "A whole epoch of training and validation, float32. net: with the library and adaptive weights, compared "
            "with plain PyTorch without them. marginal: what `observe` and `step` add to the rest. In brackets the "
            "least … the most of the rounds.",
            "",
            markdown_table(columns, rows),
            "",
            "Seconds by part (a: PyTorch, d: ours, e: ours + CAWA):",
            "",
            markdown_table(keys, [(row["key"], name, row["seconds"][name]) for row in rows for name in "ade"]),
        ]
    return [*lines, *_failed(step)]


def _part(name: str) -> Column:
    return Column(name, lambda line: f"{line[2][name]:.3g}" if name in line[2] else "–")


def _profile(step: Found) -> list[str]:
    measured = [(key, name, row[name]) for key, row in step.get("rows", {}).items() for name in row if name != "title"]
    columns = (
        Column("row", lambda line: line[0], left=True),
        Column("", lambda line: line[1], left=True),
        Column("host", lambda line: f"{1e6 * line[2]['host']:.0f}"),
        Column("wall", lambda line: f"{1e6 * line[2]['wall']:.0f}"),
        Column("kernels", lambda line: f"{1e6 * sum(seconds for *_, seconds in line[2]['kernels']):.0f}"),
        Column("launches", lambda line: f"{sum(launches for _, launches, _ in line[2]['kernels']):.0f}"),
    )
    lines = [f"{outcome(step)}. Times in µs per call; the host's until the call returns.", ""]
    if measured:
        lines.append(markdown_table(columns, measured))
    for row in step.get("rows", {}).values():
        lines += ["", f"{row['title']}:", ""]
        for kernel, launches, seconds in row.get("ours", {}).get("kernels", [])[:12]:
            together = f" in {launches:.0f} launches" if launches != 1 else ""
            lines.append(f"- {1e6 * seconds:.1f}{together}: `{kernel}`")
    return [*lines, *_failed(step)]


def _failed(step: Found) -> list[str]:
    return ["", *(f"- {name}: {why}" for name, why in step.get("failed", {}).items())]


def _tests(step: Found) -> list[str]:
    lines = [outcome(step) + "."]
    if step.get("progress"):
        lines.append(f"No report; the last progress was {step['progress']}.")
    by_message: dict[str, list[str]] = {}
    for failure in step.get("failures", []):
        by_message.setdefault(failure["message"], []).append(failure["name"])
    for message, names in sorted(by_message.items(), key=lambda entry: -len(entry[1])):
        lines += ["", f"{len(names)} × `{message.replace('`', '')}`:", "", *(f"- {name}" for name in names)]
    return lines


def _sanitizer(step: Found) -> list[str]:
    lines = [f"{outcome(step)}{': ' + step['calls'] if 'calls' in step else ''}."]
    for tool, found in step.get("tools", {}).items():
        counted = found["calls"] or "calls not counted"
        lines += ["", f"{tool}: {found['summary'] or 'no summary'} ({counted}, {found['end']})"]
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
    return lines + [
        f"- {name} under load: {value:g}" for name, value in step.get("clock", {}).items() if name != "name"
    ]


def _sweep(step: Found) -> list[str]:
    lines = [outcome(step) + "."]
    for kernel, by_row in step.get("times", {}).items():
        columns = [Column("configuration, µs", lambda pair: _configuration(pair[1]), left=True)]
        columns += [_swept(key, seconds) for key, seconds in by_row.items()]
        body = markdown_table(columns, enumerate(step.get("tables", {}).get(kernel, [])))
        lines += ["", f"{kernel}:", "", body.rstrip()] if body else []
    if "patch" in step:
        patch = ["```diff", step["patch"].rstrip(), "```"] if step["patch"] else ["The tables are best as is."]
        lines += ["", *patch]
    return [*lines, *_failed(step)]


def _configuration(values: dict[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _swept(row: str, seconds: list[float | None]) -> Column:
    """The times of the configurations on a row, which may be incomplete."""
    known = {place: value for place, value in enumerate(seconds) if value is not None}
    return Column(row, lambda pair: f"{1e6 * known[pair[0]]:.1f}" if pair[0] in known else "–")


def gpu_summary(result: Found) -> str:
    """The most important results in few lines, for the console."""
    limits, benchmarks = step_of_result(result, "limits"), step_of_result(result, "benchmarks")
    lines = [title(result), device_line(result), ""]
    lines += [f"{name:10} {outcome(found)}" for name, found in result["steps"].items()]
    failures = step_of_result(result, "tests").get("failures", [])
    lines += [f"  {failure['name'][-70:]}: {failure['message'][:90]}" for failure in failures[:12]]
    lines += [f"  {line}" for line in _limits(limits)[:4]] if "bytes" in limits else []
    for key, row in step_of_result(result, "epoch").get("rows", {}).items():
        lines.append(f"epoch of {key}: net {spread(row['net'])}, marginal {percent(row['marginal']['median'], 2)}")
    if benchmarks.get("rows"):
        lines += ["", benchmark_table(result, _IN_SUMMARY).rstrip()]
    lines += ["", *adaptive_lines(benchmarks.get("awa"))] if benchmarks.get("awa") else []
    for key, row in step_of_result(result, "profile").get("rows", {}).items():
        if "ours" in row:
            top = ", ".join(f"{name[:24]} {1e6 * seconds:.0f}" for name, _, seconds in row["ours"]["kernels"][:4])
            lines.append(f"{key}: host {1e6 * row['ours']['host']:.0f} µs, {top}")
    order = step_of_result(result, "sweep").get("order", {})
    moved = [f"{kernel} {places[0]}" for kernel, places in order.items() if places[0] != 0]
    lines += [f"sweep: better first: {', '.join(moved) or 'none'}"] if order else []
    return "\n".join(lines)[:SUMMARY_CHARACTERS]

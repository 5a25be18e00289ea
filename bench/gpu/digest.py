"""The section of the project's README about a GPU: main rows, epochs, findings."""

from __future__ import annotations

from typing import Any

from ..table import Column, duration, markdown_table, median_of, percent
from .goals import limit_share
from .report import adaptive_lines, benchmark_table, measured_rows, step_of_result
from .rows import ROWS

Found = dict[str, Any]

EQUAL_SIZES = {"float32": ("ce-19", "ce-150"), "bfloat16": ("ce-19-bf16", "ce-150-bf16")}
RESIZED = ("resize-ce-19-x4", "resize-ce-150-x4", "resize-ce-19-x4-bf16", "resize-ce-150-x4-bf16")
COUNTS = ("confusion-19", "confusion-150", "cam-19", "cam-150")
MAIN = (*EQUAL_SIZES["float32"], *EQUAL_SIZES["bfloat16"], *RESIZED, *COUNTS)
"""Keys of :data:`bench.gpu.rows.ROWS`, in the table's order."""

_TITLES = (
    *("operator, shape", "ours, ms", "in a graph, ms", "host, ms", "eager, ms", "× eager", "of the limit"),
    "memory ours / eager, MiB",
)
_EPOCH_COLUMNS = (
    Column("network, data", lambda row: f"{row['network']}, {row['data']}, {row['classes']} classes", left=True),
    Column("plain PyTorch", lambda row: duration(row["seconds"]["a"]["total"])),
    Column("cawa_fast with CAWA", lambda row: duration(row["seconds"]["e"]["total"])),
    Column("net", lambda row: percent(row["net"]["median"])),
    Column("adaptive weights", lambda row: percent(row["marginal"]["median"], 2)),
    Column("rounds", lambda row: str(row["rounds"])),
)
_BOUND = 1.25  # a call that takes so many times its time in a graph waits for the host


def gpu_section(result: Found, details: str) -> str:
    """The whole section; ``details`` is the path of the page."""
    return f"{about(result)} ([all rows, each kernel's time, what the columns mean]({details})):\n\n{digest(result)}"


def about(result: Found) -> str:
    """Device, versions and date."""
    machine, limits = result["machine"], step_of_result(result, "limits")
    versions = [f"CUDA {machine['cuda']}", f"torch {machine['torch']}"]
    versions += [f"triton {limits['triton']}"] if "triton" in limits else []
    return ", ".join([machine["gpu"].get("name", "unknown device"), *versions, machine["date"]])


def digest(result: Found) -> str:
    """A table of the main rows, one of epochs, and a list of findings."""
    epochs = markdown_table(_EPOCH_COLUMNS, step_of_result(result, "epoch").get("rows", {}).values())
    parts = [benchmark_table(result, _TITLES, MAIN), epochs, "".join(f"{line}\n" for line in _findings(result))]
    return "\n".join(part for part in parts if part)


def _findings(result: Found) -> list[str]:
    """List items: bandwidth at equal sizes, the host's time, and the cost of adaptive weights."""
    limits = step_of_result(result, "limits")
    rows = {key: row for key, row in measured_rows(result).items() if key in MAIN}
    lines, shares = [], []
    for dtype, keys in EQUAL_SIZES.items():
        found = [limit_share(rows[key], limits) for key in keys if key in rows]
        values = [100 * share for share, _ in filter(None, found)]
        if values:
            shares.append(f"{_range(values, '.0f')} % in {dtype}")
    if shares:
        lines.append(f"- Equal sizes, of a copy's bandwidth: {', '.join(shares)}.")
    losses = [row.key for row in ROWS if row.operator == "cross_entropy" and row.key in rows]
    profiles = step_of_result(result, "profile").get("rows", {})
    hosts = [1000 * profiles[key]["ours"]["host"] for key in losses if "ours" in profiles.get(key, {})]
    if hosts:
        lines.append(f"- The host needs {_range(hosts, '.2f')} ms for cross-entropy, forward and backward.")
    ratios = [(median_of(row, "ours") or 0) / row["graph"]["ours"] for row in rows.values() if "ours" in row["graph"]]
    if ratios:
        waiting = sum(ratio > _BOUND for ratio in ratios)
        lines.append(
            f"- {waiting} of {len(ratios)} rows take over {100 * (_BOUND - 1):.0f} % longer as calls than in a graph: "
            "the host leaves gaps between the kernels."
        )
    if adaptive := adaptive_lines(step_of_result(result, "benchmarks").get("awa")):
        title, _, *kinds = adaptive
        lines += [f"- {title}", *(f"  {kind}" for kind in kinds)]
    return lines


def _range(values: list[float], form: str) -> str:
    least, most = (f"{value:{form}}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"

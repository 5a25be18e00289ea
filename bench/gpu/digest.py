"""The result of ``python -m bench gpu`` in the few lines that README.md has: main rows, epochs, findings."""

from __future__ import annotations

from typing import Any

from ..epoch import report as epoch
from ..table import aligned, mebibytes, milliseconds, times
from .goals import limit_share
from .report import awa_lines
from .rows import ROWS

Found = dict[str, Any]

EQUAL_SIZES = {"float32": ("ce-19", "ce-150"), "bfloat16": ("ce-19-bf16", "ce-150-bf16")}
RESIZED = ("resize-ce-19-x4", "resize-ce-150-x4", "resize-ce-19-x4-bf16", "resize-ce-150-x4-bf16")
COUNTS = ("confusion-19", "confusion-150", "cam-19", "cam-150")
MAIN = (*EQUAL_SIZES["float32"], *EQUAL_SIZES["bfloat16"], *RESIZED, *COUNTS)
"""Rows of :data:`bench.gpu.rows.ROWS`, in the table's order."""

_BOUND = 1.25  # a call that takes so many times what it takes in a graph waits for the host


def about(result: Found) -> str:
    """Device, versions and date."""
    machine, limits = result["machine"], result["steps"].get("limits", {})
    versions = [f"CUDA {machine['cuda']}", f"torch {machine['torch']}"]
    versions += [f"triton {limits['triton']}"] if "triton" in limits else []
    return ", ".join([machine["gpu"].get("name", "unknown device"), *versions, machine["date"]])


def digest(result: Found) -> str:
    """Markdown: a table of the main rows, one of epochs, and a list of what was found beside."""
    parts = [_operators(result), _epochs(result), "".join(f"{line}\n" for line in _findings(result))]
    return "\n".join(part for part in parts if part)


def _rows(result: Found) -> list[tuple[str, Found]]:
    rows = result["steps"].get("benchmarks", {}).get("rows", {})
    return [(key, rows[key]) for key in MAIN if key in rows]


def _host(result: Found, key: str) -> float | None:
    """Seconds of the host's for a call."""
    rows = result["steps"].get("profile", {}).get("rows", {})
    found = rows.get(key, {}).get("ours")
    return None if found is None else float(found["host"])


def _operators(result: Found) -> str:
    limits = result["steps"].get("limits", {})
    columns = [
        *("operator, shape", "ours, ms", "in a graph, ms", "host, ms", "eager, ms", "× eager", "of the limit"),
        "memory ours / eager, MiB",
    ]
    body = []
    for key, row in _rows(result):
        ours, eager = (row["contenders"].get(name, {}) for name in ("ours", "eager"))
        share = limit_share(row, limits)
        body.append(
            [
                row["title"],
                milliseconds(ours.get("median")),
                milliseconds(row["graph"].get("ours")),
                milliseconds(_host(result, key)),
                milliseconds(eager.get("median")),
                times(row["faster"].get("best eager")),
                "–" if share is None else f"{100 * share[0]:.0f} % of {share[1]}",
                " / ".join(mebibytes(found.get("peak_bytes")) for found in (ours, eager)),
            ]
        )
    return aligned(columns, body, columns[:1]) if body else ""


def _epochs(result: Found) -> str:
    columns = ("network, data", "plain PyTorch", "cawa_fast with CAWA", "net", "adaptive weights", "rounds")
    body = [
        [
            f"{row['network']}, {row['data']}, {row['classes']} classes",
            epoch.time(row["seconds"]["a"]["total"]),
            epoch.time(row["seconds"]["e"]["total"]),
            epoch.percent(row["net"]["median"]),
            epoch.percent(row["marginal"]["median"], 2),
            str(row["rounds"]),
        ]
        for row in result["steps"].get("epoch", {}).get("rows", {}).values()
    ]
    return aligned(columns, body, columns[:1]) if body else ""


def _findings(result: Found) -> list[str]:
    """List items: bandwidth at equal sizes, what the host costs, and what adaptive weights cost."""
    rows, limits = dict(_rows(result)), result["steps"].get("limits", {})
    lines, shares = [], []
    for dtype, keys in EQUAL_SIZES.items():
        found = [limit_share(rows[key], limits) for key in keys if key in rows]
        values = [100 * share for share, _ in filter(None, found)]
        if values:
            shares.append(f"{_range(values, '.0f')} % in {dtype}")
    if shares:
        lines.append(f"- Equal sizes, of a copy's bandwidth: {', '.join(shares)}.")
    described = {row.key: row for row in ROWS}
    hosts = [_host(result, key) for key in rows if described[key].operator == "cross_entropy"]
    taken = [1000 * host for host in hosts if host is not None]
    if taken:
        lines.append(f"- The host needs {_range(taken, '.2f')} ms for cross-entropy, forward and backward.")
    ratios = [
        row["contenders"]["ours"]["median"] / row["graph"]["ours"] for row in rows.values() if "ours" in row["graph"]
    ]
    if ratios:
        waiting = sum(ratio > _BOUND for ratio in ratios)
        lines.append(
            f"- {waiting} of {len(ratios)} rows take over {100 * (_BOUND - 1):.0f} % longer as calls than in a graph: "
            "the host leaves gaps between the kernels."
        )
    awa = result["steps"].get("benchmarks", {}).get("awa")
    if awa:
        about, _, *kinds = awa_lines(awa)
        lines += [f"- {about}", *(f"  {kind}" for kind in kinds)]
    return lines


def _range(values: list[float], form: str) -> str:
    least, most = (f"{value:{form}}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"

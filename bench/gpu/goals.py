"""The goals of the rows, compared with what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..floors import Floor, Limits
from ..rows import Target
from ..table import mebibytes
from .rows import ROWS

Found = dict[str, Any]

_LIMITS = ("bytes", "exponentials")
_SLACK = 1 << 20  # bytes: losses, tables of C values, the allocator's rounding
_BY_KEY = {row.key: row for row in ROWS}


@dataclass(frozen=True)
class Goal:
    """A goal in words with the measured value, and whether it is met; None where nothing was measured."""

    text: str
    met: bool | None


def our_seconds(row: Found) -> float | None:
    """Our time in a graph, or by events where it cannot be captured."""
    found = row["graph"].get("ours") or row["contenders"].get("ours", {}).get("median")
    return None if found is None else float(found)


def limit_share(row: Found, limits: Found) -> tuple[float, str] | None:
    """The floor's share of our time, and which kind of work bounds it; None without limits."""
    ours = our_seconds(row)
    floor = _floor(row)
    if ours is None or "bytes" not in limits:
        return None
    measured = _rates(limits)
    return floor.seconds(measured) / ours, floor.bound(measured)


def goals(key: str, row: Found, limits: Found) -> list[Goal]:
    """The goals of the row ``key`` of :data:`bench.gpu.rows.ROWS`, measured as ``row``."""
    described = _BY_KEY[key]
    found = [_goal(target, row, limits) for target in described.targets]
    if described.memory is not None:
        found.append(_memory(described.memory, row))
    return found


def _goal(target: Target, row: Found, limits: Found) -> Goal:
    assert target.least is not None
    if target.baseline in _LIMITS:
        text = f"≥{100 * target.least:.0f} % of {target.baseline}"
        ours = our_seconds(row)
        if ours is None or "bytes" not in limits:
            return Goal(text, None)
        value = _floor(row).parts(_rates(limits))[target.baseline] / ours
        return Goal(f"{text}: {100 * value:.0f} %", value >= target.least)
    text = f"{'≤' if target.within else '≥'}{target.least:g}x {target.baseline}"
    faster = row["faster"].get("best eager" if target.baseline == "eager" else target.baseline)
    if faster is None:
        alone = row["contenders"].get(target.baseline)  # it was too slow to take turns
        ours = row["contenders"].get("ours")
        if alone is None or ours is None:
            reason = row["failed"].get(target.baseline, "not measured")
            return Goal(f"{text} ({reason[:60]})", None)
        faster = alone["median"] / ours["median"]
    if not target.within:
        return Goal(f"{text}: {faster:.3g}x", faster >= target.least)
    value = 1 / faster
    in_graph = [row["graph"].get(name) for name in ("ours", target.baseline)]
    if all(in_graph):  # by events, gaps between launches would hide the time of kernels that take microseconds
        value = in_graph[0] / in_graph[1]
    return Goal(f"{text}: {value:.3g}x", value <= target.least)


def _memory(allowed: int, row: Found) -> Goal:
    text = f"memory ≤{mebibytes(allowed)} MiB"
    peak = row["contenders"].get("ours", {}).get("peak_bytes")
    if peak is None:
        return Goal(text, None)
    return Goal(f"{text}: {mebibytes(peak)}", peak <= allowed + _SLACK)


def _rates(limits: Found) -> Limits:
    return Limits(limits["bytes"], limits["exponentials"], limits["fmas"])


def _floor(row: Found) -> Floor:
    """The row's floor as it was recorded."""
    return Floor(**row["floor"])

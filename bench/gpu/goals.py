"""What was to be reached, against what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..cpu.rows import Target
from ..floors import Floor, Limits
from ..table import mebibytes
from .rows import ROWS

Found = dict[str, Any]

_LIMITS = ("bytes", "exponentials")
_SLACK = 1 << 20  # bytes: losses, tables of C values, the allocator's rounding
_BY_KEY = {row.key: row for row in ROWS}


@dataclass(frozen=True)
class Goal:
    """A goal, in words with the value that was measured, and whether it is met; None where nothing was measured."""

    text: str
    met: bool | None


def our_seconds(row: Found) -> float | None:
    """Our time in a graph, or where it cannot be captured by events."""
    found = row["graph"].get("ours") or row["contenders"].get("ours", {}).get("median")
    return None if found is None else float(found)


def limit_share(row: Found, limits: Found) -> tuple[float, str] | None:
    """The floor's share of our time, and what it consists of; None without limits."""
    ours = our_seconds(row)
    floor = _floor(row)
    if ours is None or "bytes" not in limits:
        return None
    rates = _rates(limits)
    return floor.seconds(rates) / ours, floor.bound(rates)


def goals(key: str, row: Found, limits: Found) -> list[Goal]:
    """The goals of the row ``key`` of :data:`bench.gpu.rows.ROWS`, measured as ``row``."""
    described = _BY_KEY[key]
    found = [_goal(target, row, limits) for target in described.targets]
    if described.memory is not None:
        found.append(_memory(described.memory, row))
    return found


def _goal(target: Target, row: Found, limits: Found) -> Goal:
    assert target.least is not None
    if target.rival in _LIMITS:
        text = f"≥{100 * target.least:.0f} % of {target.rival}"
        ours = our_seconds(row)
        if ours is None or "bytes" not in limits:
            return Goal(text, None)
        value = _floor(row).parts(_rates(limits))[target.rival] / ours
        return Goal(f"{text}: {100 * value:.0f} %", value >= target.least)
    text = f"{'≤' if target.within else '≥'}{target.least:g}x {target.rival}"
    faster = row["faster"].get("best eager" if target.rival == "eager" else target.rival)
    if faster is None:
        alone = row["contenders"].get(target.rival)  # too slow to take turns
        ours = row["contenders"].get("ours")
        if alone is None or ours is None:
            reason = row["failed"].get(target.rival, "not measured")
            return Goal(f"{text} ({reason[:60]})", None)
        faster = alone["median"] / ours["median"]
    if not target.within:
        return Goal(f"{text}: {faster:.3g}x", faster >= target.least)
    value = 1 / faster
    in_graph = [row["graph"].get(name) for name in ("ours", target.rival)]
    if all(in_graph):  # launches would hide what kernels of microseconds take
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
    """The row's floor; CAM counts need only the maps of the classes that are there."""
    floor = row["floor"]
    return Floor(floor["bytes"], floor["exponentials"], floor["fmas"])

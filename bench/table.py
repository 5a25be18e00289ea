"""The table of a CPU result: Markdown and on the console. Everything comes from the result file."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cawa_fast.recipes.files import atomic

ROOT = Path(__file__).parents[1]
_OWN_COLUMNS = ("eager", "compile")  # the rivals that have columns; the others share one
_MIB = 1024**2

Result = dict[str, Any]
Cells = list[str]


# ---------------------------------------------------------------------------------------------------------- cells


def milliseconds(seconds: float | None) -> str:
    """In ms with three digits; a dash for None."""
    if seconds is None:
        return "–"
    value = 1000 * seconds
    if value < 0.1:
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def times(value: float | None) -> str:
    """A ratio with three digits; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.2f}x" if value < 9.95 else f"{value:.1f}x" if value < 99.5 else f"{value:.0f}x"


def mebibytes(size: float | None) -> str:
    """Bytes in MiB; a dash for None."""
    if size is None:
        return "–"
    return "<1" if size < _MIB else f"{size / _MIB:.0f}"


def _median(row: Result, name: str) -> float | None:
    found = row["contenders"].get(name)
    return None if found is None else found["median"]


def _peak(row: Result, name: str) -> str:
    return mebibytes(row["contenders"].get(name, {}).get("peak_bytes"))


def _others(row: Result) -> str:
    """The rivals without columns: time, and how much faster ours is (for a copy: how many copies ours takes)."""
    within = {target["rival"]: target["value"] for target in row["targets"] if target["within"]}
    texts = []
    for name, faster in row["faster"].items():
        if name in _OWN_COLUMNS or (name == "copy" and name not in within):  # the copy is for the floor alone
            continue
        time = f"{name} {milliseconds(_median(row, name))}"
        texts.append(f"{time}: {within[name]:.2f} of it" if name in within else f"{time}: {times(faster)}")
    texts += [f"{name} alone: {times(value)}" for name, value in row["machine_scaling"].items()]
    return "; ".join(texts)


def _goals(row: Result, which: str) -> str:
    texts = []
    for target in row["targets"]:
        if target[which] is not None:
            sign, mark = ("≤" if target["within"] else "≥"), ("✓" if target[f"{which}_met"] else "✗")
            texts.append(f"{sign}{target[which]:g}x {target['rival']} {mark}")
    return ", ".join(texts)


_COLUMNS: dict[str, Any] = {
    "operator, shape": lambda row: row["title"],
    "ours, ms": lambda row: milliseconds(_median(row, row["ours"])),
    "eager, ms": lambda row: milliseconds(_median(row, "eager")),
    "compile, ms": lambda row: milliseconds(_median(row, "compile")),
    "× eager": lambda row: times(row["faster"].get("eager")),
    "× compile": lambda row: times(row["faster"].get("compile")),
    "other rivals, ms: ratio": _others,
    "at least": lambda row: _goals(row, "least"),
    "aim": lambda row: _goals(row, "aim"),
    "memory ours / eager, MiB": lambda row: (
        _peak(row, row["ours"]) + (f" / {_peak(row, 'eager')}" if "eager" in row["contenders"] else "")
    ),
    "floor, ms": lambda row: milliseconds(row["floor"]["seconds"]),
    "of the floor": lambda row: f"{100 * row['floor']['share']:.{0 if row['floor']['share'] > 0.1 else 1}f} %",
}
_LEFT = ("operator, shape", "other rivals, ms: ratio", "at least", "aim")
_CONSOLE_COLUMNS = ("operator, shape", "ours, ms", "× eager", "× compile", "at least", "aim", "of the floor")


def _cells(result: Result, columns: Sequence[str]) -> list[Cells]:
    return [[_COLUMNS[name](row) for name in columns] for row in result["rows"]]


# --------------------------------------------------------------------------------------------------------- tables


def markdown_table(result: Result, columns: Sequence[str] = tuple(_COLUMNS)) -> str:
    """The rows of ``result`` as a Markdown table whose columns line up as plain text too."""
    return aligned(columns, _cells(result, columns), _LEFT)


def aligned(columns: Sequence[str], rows: Sequence[Cells], left: Sequence[str]) -> str:
    """A Markdown table whose columns line up as plain text too; those named in ``left`` to the left."""
    cells = [list(columns), *rows]
    widths = [max(3, *(_width(line[i]) for line in cells)) for i in range(len(columns))]
    lines = []
    for line in cells:
        padded = []
        for name, cell, width in zip(columns, line, widths, strict=True):
            space = " " * (width - _width(cell))
            padded.append(cell + space if name in left else space + cell)
        lines.append(f"| {' | '.join(padded)} |")
    rule = [
        "-" * width if name in left else "-" * (width - 1) + ":" for name, width in zip(columns, widths, strict=True)
    ]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return "\n".join(lines) + "\n"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def rich_table(result: Result) -> Table:
    """The same for the console, which is seldom wide enough for all columns: what matters most."""
    table = Table(title=machine_line(result), title_justify="left")
    for name in _CONSOLE_COLUMNS:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=name not in _LEFT)
    for line in _cells(result, _CONSOLE_COLUMNS):
        table.add_row(*(re.sub("([✓✗])", _colour, cell) for cell in line))
    return table


def _colour(mark: re.Match[str]) -> str:
    return f"[{'green' if mark[1] == '✓' else 'red'}]{mark[1]}[/]"


def machine_line(result: Result) -> str:
    """The machine, threads, instruction set and versions in one line."""
    machine = result["machine"]
    ours = machine["instruction_set"] or ("instruction set unknown" if machine["compiler"] else "no compiled operators")
    return (
        f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, {ours} "
        f"(PyTorch: {machine['torch_instruction_set']}), torch {machine['torch']}, "
        f"commit {machine['commit'] or 'unknown'}, {machine['date']}"
    )


def markdown(result: Result) -> str:
    """The whole ``.md`` file: machine, table, and what its columns mean."""
    settings = result["settings"]
    lines = ["# CPU benchmark", "", f"{machine_line(result)}.", ""]
    if settings["quick"]:
        lines += ["**A trial with `--quick`: heights and widths are an eighth. Not a measurement.**", ""]
    contenders = [f"- {name}: {meaning}." for name, meaning in result["meaning"].items()]
    rate = result["exponentials_per_second"] / 1e9
    return "\n".join(
        [
            *lines,
            markdown_table(result),
            f"Times are medians of {settings['rounds']} rounds in which all contenders of a row took turns; ratios are "
            "medians of the rounds' own. Cross-entropy is forward and backward, with class weights.",
            "",
            *contenders,
            "- memory: the resident memory that one call adds at its highest; the gradient is in it, inputs are not. "
            "Measured in a process of its own.",
            f"- floor: the longer of moving the bytes (logits read, gradient written, labels read, at the speed of "
            f"`out.copy_(logits)` in the same rounds) and {rate:.2f} billion exponentials a second (the faster of "
            "`torch.exp` and `torch.exp2` within the cache, same threads). The interpolation is not in it.",
            "",
        ]
    )


# ---------------------------------------------------------------------------------------------------------- files


def write(result: Result, out: Path) -> None:
    """``out`` with ``.json`` and ``.md``; whoever reads meanwhile sees the old files or the new, whole."""
    write_text(out.with_name(out.name + ".json"), json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(out.with_name(out.name + ".md"), markdown(result))


def write_text(path: Path, text: str) -> None:
    """Write a file under another name, then rename it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under another name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(content)

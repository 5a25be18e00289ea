"""The result of ``python -m bench cpu`` as a page and as tables."""

from __future__ import annotations

from typing import Any

from ..table import Column, machine_line, markdown_table, median_of, milliseconds, peaks_of, times

Found = dict[str, Any]

_OWN_COLUMNS = ("eager", "compile")  # the other baselines share one column


def _others(row: Found) -> str:
    """The baselines without a column: time, and how much faster ours is (for a copy: how many copies ours takes)."""
    within = {target["rival"]: target["value"] for target in row["targets"] if target["within"]}
    texts = []
    for name, faster in row["faster"].items():
        if name in _OWN_COLUMNS or (name == "copy" and name not in within):  # such a copy serves the floor only
            continue
        time = f"{name} {milliseconds(median_of(row, name))}"
        texts.append(f"{time}: {within[name]:.2f} of it" if name in within else f"{time}: {times(faster)}")
    texts += [f"{name} alone: {times(value)}" for name, value in row["machine_scaling"].items()]
    return "; ".join(texts)


def _goals(row: Found, which: str) -> str:
    texts = []
    for target in row["targets"]:
        if target[which] is not None:
            sign, mark = ("≤" if target["within"] else "≥"), ("✓" if target[f"{which}_met"] else "✗")
            texts.append(f"{sign}{target[which]:g}x {target['rival']} {mark}")
    return ", ".join(texts)


COLUMNS = (
    Column("operator, shape", lambda row: row["title"], left=True),
    Column("ours, ms", lambda row: milliseconds(median_of(row, row["ours"]))),
    Column("eager, ms", lambda row: milliseconds(median_of(row, "eager"))),
    Column("compile, ms", lambda row: milliseconds(median_of(row, "compile"))),
    Column("× eager", lambda row: times(row["faster"].get("eager"))),
    Column("× compile", lambda row: times(row["faster"].get("compile"))),
    Column("other baselines, ms: ratio", _others, left=True),
    Column("at least", lambda row: _goals(row, "least"), left=True),
    Column("aim", lambda row: _goals(row, "aim"), left=True),
    Column(
        "memory ours / eager, MiB",
        lambda row: peaks_of(row, row["ours"], *(["eager"] if "eager" in row["contenders"] else [])),
    ),
    Column("floor, ms", lambda row: milliseconds(row["floor"]["seconds"])),
    Column("of the floor", lambda row: f"{100 * row['floor']['share']:.{0 if row['floor']['share'] > 0.1 else 1}f} %"),
)
_ON_CONSOLE = ("operator, shape", "ours, ms", "× eager", "× compile", "at least", "aim", "of the floor")
CONSOLE_COLUMNS = [column for column in COLUMNS if column.title in _ON_CONSOLE]
README_COLUMNS = [column for column in COLUMNS if column.title not in ("aim", "floor, ms", "of the floor")]
_NOT_IN_README = ("bfloat16-", "threads-")  # rows against ourselves


def cpu_page(result: Found) -> str:
    """``cpu.md``: machine, table, and what its columns mean."""
    settings, rate = result["settings"], result["exponentials_per_second"] / 1e9
    trial = ["**A trial with `--quick`: heights and widths are an eighth. Not a measurement.**", ""]
    return "\n".join(
        [
            "# CPU benchmark",
            "",
            f"{machine_line(result['machine'])}. Made by `python -m bench cpu`.",
            "",
            *(trial if settings["quick"] else []),
            markdown_table(COLUMNS, result["rows"]),
            f"Times are medians of {settings['rounds']} rounds. In each round all implementations of a row take turns; "
            "ratios are medians of the rounds' own ratios. Cross-entropy is forward and backward, with class weights.",
            "",
            *(f"- {name}: {meaning}." for name, meaning in result["meaning"].items()),
            "- memory: the peak resident memory that one call adds. It includes the gradient and not the inputs, and "
            "is measured in a process of its own.",
            "- floor: the longer of two times. One is that of moving the bytes (logits read, gradient written, labels "
            "read) at the speed of `out.copy_(logits)` in the same rounds; the other that of computing the "
            f"exponentials at {rate:.2f} billion a second (the faster of `torch.exp` and `torch.exp2` within the "
            "cache, same threads). With a resize, four exponentials per class serve up to 16 pixels. It does not "
            "include multiplications and additions.",
            "",
        ]
    )


def cpu_section(result: Found, details: str) -> str:
    """The section of the project's README; ``details`` is the path of the page."""
    shown = [row for row in result["rows"] if not row["key"].startswith(_NOT_IN_README)]
    about = f"{machine_line(result['machine'])} ([all rows and columns, what they mean]({details})):"
    return f"{about}\n\n{markdown_table(README_COLUMNS, shown)}"

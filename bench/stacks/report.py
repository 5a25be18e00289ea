"""The result of ``python -m bench stacks`` as a page and as the table of docs/frameworks.md."""

from __future__ import annotations

from typing import Any

from ..table import Column, machine_line, markdown_table, median_of, milliseconds, peaks_of, times

Found = dict[str, Any]


def _shape(row: Found) -> str:
    height, width = row["size"]
    return f"{row['network']}, {row['images']}×{height}×{width}, C={row['classes']}"


COLUMNS = (
    Column("stack", lambda row: row["stack"], left=True),
    Column("network, images", _shape, left=True),
    Column("compared with", lambda row: f"`{row['own']}`" if "(" in row["own"] else row["own"], left=True),
    Column("new lines", lambda row: str(row["lines"])),
    Column("own, ms", lambda row: milliseconds(median_of(row, "own"))),
    Column("ours, ms", lambda row: milliseconds(median_of(row, "ours"))),
    Column("×", lambda row: times(row["faster"])),
    Column("memory own / ours, MiB", lambda row: peaks_of(row, "own", "ours")),
    Column("loss differs by", lambda row: f"{row['difference']:.0e}" if row["difference"] else "0"),
    Column("not fused", lambda row: row["not_fused"], left=True),
)
CONSOLE_COLUMNS = [Column("row", lambda row: row["key"]), *(column for column in COLUMNS[4:] if not column.left)]


def stacks_section(result: Found, details: str) -> str:
    """The table of docs/frameworks.md; ``details`` is the path of the page."""
    return f"{machine_line(result['machine'])} ([settings]({details})):\n\n{markdown_table(COLUMNS, result['rows'])}"


def stacks_page(result: Found) -> str:
    """``stacks.md``: machine, table, and what its columns mean."""
    trial = ["**A trial with `--quick`: two images of 64 x 64 pixels. Not a measurement.**", ""]
    missing = [f"- {key}: not measured, since it is not installed here." for key in result["missing"]]
    return "\n".join(
        [
            "# A training step in other frameworks",
            "",
            f"{machine_line(result['machine'])}. Made by `python -m bench stacks`.",
            "",
            *(trial if result["quick"] else []),
            markdown_table(COLUMNS, result["rows"]),
            "- own, ours: forward, loss, backward and a step of SGD, with the loss that it is compared with, and with "
            "this library's. Both take turns in one process; medians of up to "
            f"{result['rounds']} rounds, and the median of the rounds' own ratios.",
            "- memory: the peak resident memory that a step adds, measured in a process of its own.",
            "- loss differs by: the relative difference of the two losses of one network, with class weights of 1.",
            "- new lines: those marked in the example.",
            "- not fused: what works on full-resolution logits all the same.",
            "- Networks have random weights, images are noise, and labels are drawn scenes, some pixels ignored.",
            *missing,
            "",
        ]
    )

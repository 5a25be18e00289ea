"""The measured tables of README.md, made from the result files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from . import table
from .gpu.digest import about, digest

UNMEASURED = "Not measured yet."
_BLOCK = re.compile(r"(<!-- table: (?P<path>[^ ]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_CPU_COLUMNS = (
    "operator, shape",
    "ours, ms",
    "eager, ms",
    "compile, ms",
    "× eager",
    "× compile",
    "other rivals, ms: ratio",
    "at least",
    "memory ours / eager, MiB",
)
_NOT_SHOWN = ("bfloat16-", "threads-")  # rows against ourselves: only in the result's own table


def updated(text: str, root: Path = table.ROOT) -> str:
    """``text`` with every table block made anew from the result file that it names, as far as there is one."""

    def block(match: re.Match[str]) -> str:
        file = root / match["path"]
        if not file.exists():
            return f"{match[1]}{UNMEASURED}\n{match[3]}"
        result = json.loads(file.read_text(encoding="utf-8"))
        details = match["path"].removesuffix(".json") + ".md"
        made = {"cpu": _cpu, "gpu": _gpu}[result["benchmark"]]
        return f"{match[1]}{made(result, details)}{match[3]}"

    return _BLOCK.sub(block, text)


def _cpu(result: dict[str, Any], details: str) -> str:
    shown = [row for row in result["rows"] if not row["key"].startswith(_NOT_SHOWN)]
    body = table.markdown_table({**result, "rows": shown}, _CPU_COLUMNS)
    return f"{table.machine_line(result)} ([all rows and columns, what they mean]({details})):\n\n{body}"


def _gpu(result: dict[str, Any], details: str) -> str:
    return f"{about(result)} ([all rows, each kernel's time, what the columns mean]({details})):\n\n{digest(result)}"


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; fail if README.md is not up to date.")
def readme(check: bool) -> None:
    """Take the result files into the tables of README.md."""
    path = table.ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = updated(old)
    if check and new != old:
        raise click.ClickException("README.md differs from the result files; run `python -m bench readme`")
    if new != old:
        table.write_text(path, new)
    click.echo("README.md is up to date." if check or new == old else "README.md is rewritten.")

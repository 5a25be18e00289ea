"""``python -m bench readme``: the measured tables of README.md, made from the result files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from .cpu.report import cpu_section
from .files import ROOT, write_text
from .gpu.digest import gpu_section

UNMEASURED = "Not measured yet."
_BLOCK = re.compile(r"(<!-- table: (?P<path>[^ ]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_SECTIONS = {"cpu": cpu_section, "gpu": gpu_section}


def updated(text: str, root: Path = ROOT) -> str:
    """``text`` with every table block made again from the result file that it names, if that file exists."""

    def block(match: re.Match[str]) -> str:
        file = root / match["path"]
        if not file.exists():
            return f"{match[1]}{UNMEASURED}\n{match[3]}"
        result = json.loads(file.read_text(encoding="utf-8"))
        section = _SECTIONS[result["benchmark"]](result, match["path"].removesuffix(".json") + ".md")
        return f"{match[1]}{section}{match[3]}"

    return _BLOCK.sub(block, text)


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; fail if README.md is not up to date.")
def readme(check: bool) -> None:
    """Copy the tables of the result files into README.md."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = updated(old)
    if check and new != old:
        raise click.ClickException("README.md differs from the result files; run `python -m bench readme`")
    if new != old:
        write_text(path, new)
    click.echo("README.md is up to date." if check or new == old else "README.md is rewritten.")

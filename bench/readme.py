"""``python -m bench readme``: the measured tables of README.md and docs/frameworks.md, made from the result files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from .cpu.report import cpu_section
from .files import ROOT, write_text
from .gpu.digest import gpu_section
from .stacks.report import stacks_section

UNMEASURED = "Not measured yet."
_BLOCK = re.compile(r"(<!-- table: (?P<path>[^ ]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_SECTIONS = {"cpu": cpu_section, "gpu": gpu_section, "stacks": stacks_section}
PAGES = ("README.md", "docs/frameworks.md")


def updated(text: str, root: Path = ROOT, page: str = "README.md") -> str:
    """``text`` with every table block made again from the result file that it names, if that file exists.

    Args:
        text: of the page.
        root: of the paths of result files.
        page: path of the page, from which its links lead.
    """

    def block(match: re.Match[str]) -> str:
        file = root / match["path"]
        if not file.exists():
            return f"{match[1]}{UNMEASURED}\n{match[3]}"
        result = json.loads(file.read_text(encoding="utf-8"))
        details = "../" * page.count("/") + match["path"].removesuffix(".json") + ".md"
        section = _SECTIONS[result["benchmark"]](result, details)
        return f"{match[1]}{section}{match[3]}"

    return _BLOCK.sub(block, text)


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; fail if a page is not up to date.")
def readme(check: bool) -> None:
    """Copy the tables of the result files into README.md and docs/frameworks.md."""
    for page in PAGES:
        path = ROOT / page
        old = path.read_text(encoding="utf-8")
        new = updated(old, page=page)
        if check and new != old:
            raise click.ClickException(f"{page} differs from the result files; run `python -m bench readme`")
        if new != old:
            write_text(path, new)
        click.echo(f"{page} is up to date." if check or new == old else f"{page} is rewritten.")

"""Renders the page from its inputs."""

from __future__ import annotations

import re

import jinja2

from ..runs.compare import share_text
from ..runs.read import by_dataset
from ..text import one_line, readable
from .ablation_section import make_ablation_section
from .dataset_section import make_dataset_section
from .figure_writer import FigureWriter
from .figures import run_style, seconds_text
from .gallery import AGREEMENT, heat_gradient
from .inputs import ReportInputs
from .overview import make_overview


def render(inputs: ReportInputs, *, images: int, png: bool) -> tuple[str, dict[str, bytes]]:
    """The page's HTML, and its figures as PNG files by name; none without ``png``."""
    writer = FigureWriter(png)
    ablations = []
    for number, ablation in enumerate(inputs.ablations, start=1):
        writer.prefix = f"ablation{number if len(inputs.ablations) > 1 else ''}-"
        ablations.append(make_ablation_section(writer, ablation))
    sections = []
    groups = by_dataset(inputs.runs)
    for group in groups:
        dataset = group[0].config["dataset"]
        name = re.sub(r"[^a-z0-9]+", "-", dataset.lower())
        writer.prefix = f"{name}-" if len(groups) > 1 else ""
        sections.append(make_dataset_section(writer, group, images, inputs.rare_part(dataset)))

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: one_line(value) if type(value) is str else value,  # Markup stays
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["run_style"] = run_style
    page = environment.get_template("report.html.j2").render(
        ablations=ablations,
        sections=sections,
        overview=make_overview(inputs.runs),
        heat_gradient=heat_gradient(),
        agreement=AGREEMENT,
        seconds=seconds_text,
        share=share_text,
    )
    return readable(page), writer.files

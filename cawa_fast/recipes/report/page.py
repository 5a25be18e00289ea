"""The report's page: what is shown, and the template that shows it."""

from __future__ import annotations

import re

import jinja2

from ..runs.compare import share_text
from ..runs.read import by_dataset
from .ablation_section import make_ablation
from .dataset_section import make_chapter
from .figure_writer import FigureWriter
from .figures import Colours, repeats, seconds_text
from .gallery import AGREEMENT, heat_gradient
from .inputs import ReportInputs
from .overview import make_overview


def render(inputs: ReportInputs, *, images: int, png: bool) -> tuple[str, dict[str, bytes]]:
    """The page, and with ``png`` its figures as PNG files by name."""
    groups = by_dataset(inputs.runs)
    most_runs = max((len(group) for group in groups), default=0)
    class_lists = [group[0].dataset["class_names"] for group in groups]
    class_lists += [ablation["class_names"] for ablation in inputs.ablations]
    writer = FigureWriter(Colours(max(most_runs, 2), max(map(len, class_lists))), png)

    ablations = []
    for number, ablation in enumerate(inputs.ablations, start=1):
        writer.prefix = f"ablation{number if len(inputs.ablations) > 1 else ''}-"
        ablations.append(make_ablation(writer, ablation))
    chapters = []
    for group in groups:
        name = re.sub(r"[^a-z0-9]+", "-", group[0].config["dataset"].lower())
        writer.prefix = f"{name}-" if len(groups) > 1 else ""
        chapters.append(make_chapter(writer, group, images))

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["repeats"] = repeats
    page = environment.get_template("report.html.j2").render(
        ablations=ablations,
        chapters=chapters,
        overview=make_overview(inputs.runs),
        colours=writer.colours,
        heat_gradient=heat_gradient(),
        agreement=AGREEMENT,
        seconds=seconds_text,
        share=share_text,
    )
    return page, writer.files

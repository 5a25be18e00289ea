"""Turns figures into images on the page, and into PNG files beside it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from markupsafe import Markup
from matplotlib.figure import Figure

from ..text import one_line
from .figures import to_png, to_svg


@dataclass
class FigureWriter:
    """Turns figures into images on the page, and into PNG files beside it.

    Attributes:
        png: whether to make PNG files.
        prefix: begins the names of the files, and tells the sections of the page apart.
        files: the PNG files made so far, by name.
    """

    png: bool
    prefix: str = ""
    files: dict[str, bytes] = field(default_factory=dict)

    def chart(self, name: str, alt: str, figure: Figure) -> Markup:
        """The figure as an image for the page; it becomes a PNG file, too."""
        self.save(name, figure)
        return self.image(alt, figure)

    def image(self, alt: str, figure: Figure) -> Markup:
        """The figure as an ``<img>`` that holds its SVG; ``alt`` describes it to those who cannot see it."""
        uri = f"data:image/svg+xml;base64,{base64.b64encode(to_svg(figure)).decode()}"
        width, height = figure.get_size_inches() * 72
        tag = '<img class="chart" width="{:.0f}" height="{:.0f}" alt="{}" src="{}">'
        return Markup(tag).format(width, height, one_line(alt), uri)

    def save(self, name: str, figure: Figure) -> None:
        """Make a PNG file of the figure."""
        if self.png:
            self.files[self.prefix + name] = to_png(figure)

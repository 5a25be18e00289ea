"""Draws figures for the page, and keeps those that are to be files too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup
from matplotlib.figure import Figure

from .figures import Colours, Paint, to_png, to_svg

WIDE, NARROW, HALF, PANEL = 960, 360, 470, 230
"""Widths in CSS pixels: of the page, of a phone, of half the page, of one chart among many."""


@dataclass
class FigureWriter:
    """Draws charts for the page, and keeps those that are to be files too.

    Attributes:
        colours: of the page.
        png: whether to make files.
        prefix: of all names, unlike that of other parts of the page.
        files: what was made, by name.
    """

    colours: Colours
    png: bool
    prefix: str = ""
    files: dict[str, bytes] = field(default_factory=dict)

    def chart(
        self, name: str, alt: str, draw: Callable[[Paint, int], Figure], widths: Sequence[int], *, file: bool = True
    ) -> list[Markup]:
        """SVG of the chart in each of ``widths`` pixels; ``draw(paint, width)`` makes it."""
        if self.png and file:
            self.save(name, draw(self.paint, widths[0]))
        return [
            Markup(to_svg(draw(self.colours.stand_in, width), self.colours, f"{self.prefix}{name}-{width}", alt))
            for width in widths
        ]

    def save(self, name: str, figure: Figure) -> None:
        """Keep the figure as a PNG file."""
        if self.png:
            self.files[self.prefix + name] = to_png(figure, self.colours)

    def paint(self, name: str) -> str:
        """A file's colours."""
        return self.colours.light[name]

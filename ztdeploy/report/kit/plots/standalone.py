"""A plot as a file of its own, for documents that show images."""

from __future__ import annotations

from dataclasses import dataclass

from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.plots.frame import SVG, WIDTH
from ztdeploy.report.kit.styles import PLOT_STYLE, style

_MARGIN = 10.0
_FONT = 'font-family:system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif'


def standalone(plot: Markup, width: float, height: float) -> str:
    """An SVG document with its own style, on its own paper: legible on a page of any colour.

    Args:
        plot: what `frame.svg` drew.
        width, height: its size, in its own units.
    """
    across, down = width + 2 * _MARGIN, height + 2 * _MARGIN
    place = f'x="{_MARGIN:g}" y="{_MARGIN:g}" width="{width:g}" height="{height:g}"'
    inner = Markup(plot.replace("<svg ", f"<svg {place} ", 1))
    # Not every viewer lets a style sheet size an inner drawing, and those that do must not take a page's size for it.
    sizes = Markup(f"svg{{{_FONT}}}.plot{{width:{width:g}px;height:{height:g}px}}")
    drawn = element(
        "svg",
        style(*PLOT_STYLE),
        element("style", sizes),
        element("rect", width=across, height=down, rx=8.0, class_="paper"),
        inner,
        xmlns=SVG,
        viewBox=f"0 0 {across:g} {down:g}",
        width=across,
        height=down,
    )
    return f"{drawn}\n"


@dataclass(frozen=True)
class Figure:
    """A plot of a page that is a file of its own as well."""

    name: str  #: of its file, without a suffix
    title: str
    text: str
    plot: Markup
    height: float

    @property
    def file(self) -> str:
        return f"{self.name}.svg"

    def document(self) -> str:
        return standalone(self.plot, WIDTH, self.height)

"""Whole files: an HTML page without scripts or network, whose policy forbids both; and a plot as an SVG of its own."""

from __future__ import annotations

import re
from importlib.resources import files

from ztdeploy.report.kit.markup import Child, Markup, element, fragment
from ztdeploy.report.kit.plots.frame import SVG

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MARGIN = 10.0
CLOSING = "</main></body></html>\n"
_FONT = 'font-family:system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif'


def document(title: str, *children: Child) -> str:
    """The whole page, which is well-formed XML as well."""
    return f"{opening(title)}{fragment(*children)}{CLOSING}"


def opening(title: str) -> str:
    """All that stands in front of the children of `main`; `CLOSING` stands behind them."""
    head = element(
        "head",
        fragment(
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            element("title", title),
            _style("plots.css", "style.css"),
        ),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}<body><main>'


def standalone(plot: Markup) -> str:
    """A plot with its own style, on its own paper: legible on a page of any colour.

    Args:
        plot: what `frame.svg` drew.
    """
    found = re.search(r'viewBox="0 0 (\S+) (\S+)"', plot)
    assert found is not None
    width, height = float(found[1]), float(found[2])
    across, down = width + 2 * _MARGIN, height + 2 * _MARGIN
    place = f'x="{_MARGIN:g}" y="{_MARGIN:g}" width="{width:g}" height="{height:g}"'
    # Not every viewer lets a style sheet size an inner drawing, and those that do must not take a page's size for it.
    sizes = Markup(f"svg{{{_FONT}}}.plot{{width:{width:g}px;height:{height:g}px}}")
    drawn = element(
        "svg",
        _style("plots.css"),
        element("style", sizes),
        element("rect", width=across, height=down, rx=8.0, class_="paper"),
        Markup(plot.replace("<svg ", f"<svg {place} ", 1)),
        xmlns=SVG,
        viewBox=f"0 0 {across:g} {down:g}",
        width=across,
        height=down,
    )
    return f"{drawn}\n"


def _style(*names: str) -> Markup:
    """Style sheets, which lie beside this file: colours and marks of plots, and the rest of a page."""
    texts = [files("ztdeploy.report.kit").joinpath(name).read_text(encoding="utf-8") for name in names]
    return element("style", Markup("".join(texts)))

"""Style sheets, which lie beside this file: colours and marks of plots, and the rest of a page."""

from __future__ import annotations

from importlib.resources import files

from ztdeploy.report.kit.markup import Markup, element

PLOT_STYLE = ("plots.css",)
PAGE_STYLE = ("plots.css", "style.css")


def style(*names: str) -> Markup:
    texts = [files("ztdeploy.report.kit").joinpath(name).read_text(encoding="utf-8") for name in names]
    return element("style", Markup("".join(texts)))

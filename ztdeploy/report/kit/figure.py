"""A plot with its caption, plots side by side, a legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ztdeploy.report.kit.document import standalone
from ztdeploy.report.kit.markup import Markup, element


@dataclass(frozen=True)
class Figure:
    """A plot, or what stands in its place, with its caption."""

    title: str
    text: str
    plot: Markup | None  #: None: there is nothing to draw, and the figure is left out
    name: str = ""  #: of a file of its own, without a suffix

    def draw(self) -> Markup:
        return element("figure", element("figcaption", self.title, element("span", self.text)), self.plot)

    @property
    def file(self) -> str:
        return f"{self.name}.svg"

    def document(self) -> str:
        assert self.plot is not None
        return standalone(self.plot)


def plots(*figures: Figure | None) -> Markup | None:
    """As many beside one another as fit; None where there are none."""
    drawn = [one.draw() for one in figures if one is not None and one.plot is not None]
    return element("div", drawn, class_="plots") if drawn else None


def beside(drawn: Markup | None, table: Markup | None) -> Markup | None:
    """A plot, and right of it what it is made of; below it on a narrow page."""
    return element("div", drawn, element("div", table), class_="beside") if drawn and table else (drawn or table)


def legend(keys: Sequence[tuple[Markup, str]]) -> Markup:
    """
    Args:
        keys: a mark, and what it stands for.
    """
    return element("ul", [element("li", mark, element("span", text)) for mark, text in keys], class_="legend")


def section(title: str, *children: Markup | Iterable[Markup] | None, quiet: str = "") -> Markup:
    """A part of a page under its heading.

    Args:
        quiet: a sentence below the heading.
    """
    return element("section", element("h2", title), element("p", quiet, class_="quiet") if quiet else None, children)


def notes(found: dict[str, str]) -> Markup:
    """How to read a page: terms with their explanations."""
    listed = [(element("dt", name), element("dd", text)) for name, text in found.items()]
    return section("How to read this", element("dl", listed, class_="notes"))

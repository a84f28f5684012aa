"""A plot with its caption, plots side by side, a legend."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from ztdeploy.core.text import html_text
from ztdeploy.report.kit.document import standalone
from ztdeploy.report.kit.markup import Markup, element

_FEW_COLOURS = 64


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


def swatch(kind: str) -> Markup:
    """A square of a colour, for a legend.

    Args:
        kind: classes of plots.css.
    """
    square = element("rect", x=1.0, y=1.0, width=12.0, height=12.0, rx=2.0, class_=kind)
    return element("svg", square, viewBox="0 0 14 14", class_="key", aria_hidden="true")


def folded(title: str, sheet: Markup | None) -> Markup | None:
    """What only some readers want to see."""
    return None if sheet is None else element("details", element("summary", title), sheet)


def section(title: str, *children: Markup | Iterable[Markup] | None, quiet: str = "") -> Markup:
    """A part of a page under its heading.

    Args:
        quiet: a sentence below the heading.
    """
    return element("section", element("h2", title), element("p", quiet, class_="quiet") if quiet else None, children)


def verdict(decision: str, headline: str, lines: Iterable[str] = (), where: str | None = None) -> Markup:
    """What to do, in a box at the top of a page.

    Args:
        decision: in a word or two; it gives the box its colour.
        headline: a sentence.
        lines: what it stands on.
        where: what the verdict is of, where there are several.
    """
    return element(
        "section",
        None if where is None else element("p", where, class_="where"),
        element("p", headline, class_="headline"),
        element("p", " ".join(lines)),
        class_=f"verdict {decision.replace(' ', '-')}",
    )


def trust(lines: Sequence[str], fine: str | None = None) -> Markup | None:
    """What limits how far the figures can be believed, or `fine` where nothing does."""
    shown = lines or ([fine] if fine else [])
    kind = "trust" if lines else "trust fine"
    return element("ul", [element("li", line) for line in shown], class_=kind) if shown else None


def photograph(picture: Image.Image, words: str) -> Markup:
    """A picture inside of the page; one of few colours is sharper and smaller without the losses of JPEG.

    Args:
        words: what it shows, for those who cannot see it.
    """
    file, few = io.BytesIO(), picture.getcolors(_FEW_COLOURS) is not None
    if few:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.save(file, "JPEG", quality=90, subsampling=0)
    data, kind = base64.b64encode(file.getvalue()).decode(), "png" if few else "jpeg"
    # An attribute of `element` has at most so many characters.
    return Markup(f'<img src="data:image/{kind};base64,{data}" alt="{html_text(words)}"/>')


def notes(found: dict[str, str]) -> Markup:
    """How to read a page: terms with their explanations."""
    listed = [(element("dt", name), element("dd", text)) for name, text in found.items()]
    return section("How to read this", element("dl", listed, class_="notes"))

"""A plot with its caption, plots side by side, a legend."""

from __future__ import annotations

from collections.abc import Sequence

from ztdeploy.report.kit.markup import Markup, element


def figure(title: str, text: str, plot: Markup | None) -> Markup | None:
    """None where there is no plot."""
    if plot is None:
        return None
    return element("figure", element("figcaption", title, element("span", text)), plot)


def plots(*figures: Markup | None) -> Markup | None:
    """As many beside one another as fit; None where there are none."""
    return element("div", figures, class_="plots") if any(figures) else None


def beside(drawn: Markup | None, table: Markup | None) -> Markup | None:
    """A plot, and right of it what it is made of; below it on a narrow page."""
    return element("div", drawn, element("div", table), class_="beside") if drawn and table else (drawn or table)


def legend(keys: Sequence[tuple[Markup, str]]) -> Markup:
    """
    Args:
        keys: a mark, and what it stands for.
    """
    return element("ul", [element("li", mark, element("span", text)) for mark, text in keys], class_="legend")

"""The one way in which text becomes HTML or SVG: every name and value is escaped, whatever it is.

Names come from bundles and reports of others. What is not `Markup` is text, and text is never markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from ztdeploy.core.text import html_text


class Markup(str):
    """Text that is HTML already; only this module and files of our own make it."""

    __slots__ = ()


Child: TypeAlias = "str | int | Iterable[Child] | None"
#: Elements that hold nothing; they are closed all the same, so that the page is well-formed XML as well.
_EMPTY = frozenset({"meta", "br", "line", "rect", "circle", "path", "polyline"})


def element(tag: str, *children: Child, **attributes: str | float | None) -> Markup:
    """One element: `element("td", "<b>", data_value=3)` is `<td data-value="3">&lt;b&gt;</td>`.

    Args:
        tag: a name out of the source code, never out of a file.
        children: markup as it is, everything else as text; None is left out, sequences are taken apart.
        attributes: a trailing underscore is dropped, others become hyphens; None leaves an attribute out.
    """
    listed = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html_text(_text(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY and not children:
        return Markup(f"<{tag}{listed}/>")
    return Markup(f"<{tag}{listed}>{fragment(*children)}</{tag}>")


def fragment(*children: Child) -> Markup:
    """Children side by side, without an element around them."""
    return Markup("".join(map(_rendered, children)))


def _rendered(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, (str, int)):
        return html_text(str(child))
    return fragment(*child)


def _text(value: str | float) -> str:
    """Coordinates need no more than hundredths; whole numbers no decimal point."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

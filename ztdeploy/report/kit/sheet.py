"""Tables of the page: every figure carries its unrounded value, and a wide one scrolls in its own box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ztdeploy.report.kit.figures import decimals_for, fixed
from ztdeploy.report.kit.markup import Child, Markup, element


@dataclass(frozen=True)
class Cell:
    text: Child
    value: float | None = None  #: unrounded, where it is a number
    kind: str = ""  #: classes
    heading: bool = False  #: whether it names its row

    def draw(self) -> Markup:
        exact = None if self.value is None else repr(self.value)
        if self.heading:
            return element("th", self.text, class_=self.kind or None, data_value=exact, scope="row")
        return element("td", self.text, class_=self.kind or None, data_value=exact)


def number(text: str, value: float | None, kind: str = "") -> Cell:
    return Cell(text, value, f"num {kind}".rstrip())


def column(values: Sequence[float | None], digits: int = 3) -> list[Cell]:
    """Numbers that line up: one number of decimals for all."""
    decimals = decimals_for(values, digits)
    return [number(fixed(value, decimals), value) for value in values]


def sheet(
    name: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, chosen: int | None = None
) -> Markup | None:
    """A table in a box that scrolls; None without rows.

    Args:
        name: what it is, for those who cannot see it.
        chosen: the position of a row that stands out.
    """
    if not rows:
        return None
    kinds = ["num" if "num" in cell.kind else None for cell in rows[0]]
    top = [element("th", head, class_=kind, scope="col") for head, kind in zip(heads, kinds, strict=True)]
    body = [
        element("tr", [cell.draw() for cell in cells], class_="chosen" if position == chosen else None)
        for position, cells in enumerate(rows)
    ]
    table = element("table", element("thead", element("tr", top)) if any(heads) else None, element("tbody", body))
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=name)

"""Tables: one description of the columns, drawn on the page or written as Markdown.

On the page every figure carries its unrounded value, and a wide table scrolls in its own box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ztdeploy.core.text import markdown_text
from ztdeploy.report.kit.markup import Markup, element, fragment
from ztdeploy.report.kit.numbers import Estimated, decimals_for, estimate, fixed

Item = TypeVar("Item")
#: Rows up to which a narrow page shows a card for each.
_MOST_CARDS = 8


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None  #: unrounded, where it is a number
    kind: str = ""  #: classes
    heading: bool = False  #: whether it names its row

    def draw(self, head: str) -> Markup:
        """
        Args:
            head: of its column; a narrow page shows it beside the text.
        """
        return element(
            "th" if self.heading else "td",
            self.text,
            class_=self.kind or None,
            data_value=None if self.value is None else repr(self.value),
            data_head=None if self.heading else head or None,
            scope="row" if self.heading else None,
        )


def number(text: str, value: float | None, kind: str = "") -> Cell:
    return Cell(text, value, f"num {kind}".rstrip())


@dataclass(frozen=True)
class Column(Generic[Item]):
    """A column of a table, from the items that its rows stand for: text, or a number with its unrounded value."""

    head: str
    text: Callable[[Item], str] | None = None
    value: Callable[[Item], float | None] | None = None
    show: Callable[[float | None], str] | None = None  #: how a value reads, where `text` does not say it
    kind: str | Callable[[Item], str] = ""  #: classes; "heading": it names its row
    digits: int = 3  #: of the smallest value, where neither `text` nor `show` says how one reads: numbers then line up

    def cells(self, items: Sequence[Item]) -> list[Cell]:
        values = [None if self.value is None else self.value(one) for one in items]
        kinds = [self.kind if isinstance(self.kind, str) else self.kind(one) for one in items]
        if self.text is not None:
            texts = [self.text(one) for one in items]
        elif self.show is not None:
            texts = [self.show(value) for value in values]
        else:
            decimals = decimals_for(values, self.digits)
            texts = [fixed(value, decimals) for value in values]
        if self.value is not None:
            return [number(*cell) for cell in zip(texts, values, kinds, strict=True)]
        return [
            Cell(text, kind="" if kind == "heading" else kind, heading=kind == "heading")
            for text, kind in zip(texts, kinds, strict=True)
        ]


def interval(head: str, text: Callable[[Item], str]) -> Column[Item]:
    """A column of text that lines up with numbers."""
    return Column(head, text, lambda _one: None)


def estimated(
    head: str, found: Callable[[Item], Estimated | None], *, scale: float = 1, sign: str = "", missing: str = "-"
) -> Column[Item]:
    """A column of figures with their intervals behind them, for pages; see `numbers.estimate`.

    Args:
        missing: what stands where there is no figure.
    """

    def text(item: Item) -> str:
        one = found(item)
        if one is None:
            return missing
        value, span = estimate(one, scale, sign)
        return fragment(value, element("span", f" ({span})", class_="quiet"))

    def value(item: Item) -> float | None:
        one = found(item)
        return None if one is None else one.value

    return Column(head, text, value)


def table(
    name: str, columns: Sequence[Column[Item]], items: Iterable[Item], *, chosen: int | None = None
) -> Markup | None:
    """A row per item; see `sheet`."""
    listed = list(items)
    rows = list(zip(*(one.cells(listed) for one in columns), strict=True))
    return sheet(name, [one.head for one in columns], rows, chosen=chosen)


def markdown_table(columns: Sequence[Column[Item]], items: Iterable[Item]) -> list[str]:
    """A row per item, as the lines of a Markdown table; numbers stand on the right."""
    listed = list(items)
    texts = [[cell.text if one.value else markdown_text(cell.text) for cell in one.cells(listed)] for one in columns]
    rule = ["---" if one.value is None else "---:" for one in columns]
    heads = [markdown_text(one.head) for one in columns]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rule, *zip(*texts, strict=True))]


def sheet(
    name: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, chosen: int | None = None
) -> Markup | None:
    """A table in a box that scrolls, or on a narrow page a card for each row if there are few; None without rows.

    Args:
        name: what it is, for those who cannot see it.
        chosen: the position of a row that stands out.
    """
    if not rows:
        return None
    kinds = ["num" if "num" in cell.kind else None for cell in rows[0]]
    top = [element("th", head, class_=kind, scope="col") for head, kind in zip(heads, kinds, strict=True)]
    body = [
        element(
            "tr",
            [cell.draw(head) for cell, head in zip(cells, heads, strict=True)],
            class_="chosen" if position == chosen else None,
        )
        for position, cells in enumerate(rows)
    ]
    drawn = element("table", element("thead", element("tr", top)) if any(heads) else None, element("tbody", body))
    few = len(rows) <= _MOST_CARDS and any(heads)
    kind = "scroll stacks" if few else "scroll"
    return element("div", drawn, class_=kind, tabindex=0, role="region", aria_label=name)

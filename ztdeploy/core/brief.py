"""How results show themselves in Python: as one line at a prompt, as a small table in print, as HTML in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ztdeploy.core.text import html_text, printable


class Brief(NamedTuple):
    """What something is, and its key figures."""

    headline: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()  #: whole sentences

    def __str__(self) -> str:
        cells = [[printable(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(f"{cell:>{width}}" if at else f"{cell:<{width}}" for at, (cell, width) in enumerate(pairs))
            for pairs in (list(zip(row, widths, strict=True)) for row in cells)
        ]
        return "\n".join([printable(self.headline), *(line.rstrip() for line in lines), *map(printable, self.notes)])

    @property
    def html(self) -> str:
        """A table with the headline as its caption, and the notes below."""

        def row(tag: str, cells: Sequence[str]) -> str:
            return f"<tr>{''.join(f'<{tag}>{html_text(cell)}</{tag}>' for cell in cells)}</tr>"

        body = "".join(row("td", cells) for cells in self.rows)
        table = f"<caption>{html_text(self.headline)}</caption><thead>{row('th', self.columns)}</thead>{body}"
        return f"<table>{table}</table>{''.join(f'<p>{html_text(note)}</p>' for note in self.notes)}"


class Shown:
    """Something that reads as its headline, and prints as its whole brief."""

    def brief(self) -> Brief:
        """What it is, and its key figures."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {printable(self.brief().headline)}>"

    def __str__(self) -> str:
        return str(self.brief())

    def _repr_html_(self) -> str:
        return self.brief().html

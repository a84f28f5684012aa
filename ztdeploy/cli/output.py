"""How commands talk: tables and progress for people, JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2))


def table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """Print a table; columns are `(heading, "left" | "right")`. Piped output is not squeezed into 80 columns."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 200)
    sheet = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    texts = [[heading, *(row[position] for row in rows)] for position, (heading, _) in enumerate(columns)]
    natural = [max(map(cell_len, cells)) for cells in texts]
    words = [max((cell_len(word) for cell in cells for word in cell.split()), default=1) for cells in texts]
    widths = fitting_widths(natural, words, console.width - 2 * (len(columns) - 1))
    for (heading, justify), width in zip(columns, widths, strict=True):
        sheet.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold", width=width)
    for row in rows:
        sheet.add_row(*map(Text, row))
    console.print(Text(title, style="bold"), sheet, Text(f"{caption}\n" if caption else "", style="dim"), sep="\n")


def fitting_widths(natural: Sequence[int], words: Sequence[int], room: int) -> list[int]:
    """Widths of columns that fit side by side: the widest gives way first, and no word is cut while there is room.

    Rich shrinks all alike, and folds names in the middle, which nobody can copy then.
    """
    widths = list(natural)
    for least in (words, [1] * len(widths)):
        while sum(widths) > room:
            able = [position for position, width in enumerate(widths) if width > least[position]]
            if not able:
                break
            widths[max(able, key=lambda position: (position > 0, widths[position]))] -= 1  # the first column last
    return widths


def cell(value: float | None, spec: str, scale: float = 1) -> str:
    """A number in a table; a stroke where there is none."""
    return "-" if value is None else f"{scale * value:{spec}}"


def say(text: str) -> None:
    """A sentence, wrapped between words in a terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    typer.echo(textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False))


def note(text: str) -> None:
    """A remark on standard error, so that standard output stays what was asked for."""
    typer.echo(text, err=True)


def warn(text: str) -> None:
    typer.secho(f"warning: {text}", err=True, fg=typer.colors.YELLOW)


class _Lines:
    """A line per step; one that says nothing new is left out."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, what: str, _done: int, _total: int) -> None:
        if what != self._last:
            typer.echo(what, err=True)
        self._last = what


@contextmanager
def progress_bar(enabled: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error; a line per step where that is not a terminal."""
    if not enabled:
        yield lambda _what, _done, _total: None
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=1)
            yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)

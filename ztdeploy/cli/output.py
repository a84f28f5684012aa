"""How commands talk: tables and progress for people, JSON for programs."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ztdeploy.cli.streams import silence
from ztdeploy.core.errors import PARTLY_BUILT, StreamError
from ztdeploy.core.text import json_text, printable

if TYPE_CHECKING:
    from pydantic import BaseModel

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


#: Characters of a cell of a table that are shown at most.
_LONGEST_CELL = 240


def print_json(data: Any) -> None:
    typer.echo(json_text(data, indent=2))


def print_record(record: BaseModel) -> None:
    from ztdeploy.core.records import to_json

    typer.echo(to_json(record))


def print_lines(text: str) -> None:
    """Text of several lines, such as a file of settings."""
    for line in text.splitlines():
        typer.echo(printable(line, None))


def left(*headings: str) -> list[tuple[str, str]]:
    """Columns of a table: words."""
    return [(heading, "left") for heading in headings]


def right(*headings: str) -> list[tuple[str, str]]:
    """Columns of a table: numbers."""
    return [(heading, "right") for heading in headings]


def table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """Print a table; columns are `(heading, "left" | "right")`. Piped output is not squeezed into 80 columns."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 200)
    sheet = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    rows = [[printable(cell, _LONGEST_CELL) for cell in row] for row in rows]
    columns = [(printable(heading, _LONGEST_CELL), justify) for heading, justify in columns]
    texts = [[heading, *(row[position] for row in rows)] for position, (heading, _) in enumerate(columns)]
    natural = [max(map(cell_len, cells)) for cells in texts]
    words = [max((cell_len(word) for cell in cells for word in cell.split()), default=1) for cells in texts]
    widths = fitting_widths(natural, words, console.width - 2 * (len(columns) - 1))
    for (heading, justify), width in zip(columns, widths, strict=True):
        sheet.add_column(Text(heading), justify="right" if justify == "right" else "left", overflow="fold", width=width)
    for row in rows:
        sheet.add_row(*map(Text, row))
    below = "".join(f"{printable(line)}\n" for line in caption.splitlines())
    console.print(Text(printable(title), style="bold"), sheet, Text(below, style="dim"), sep="\n")


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


def say(text: str = "") -> None:
    """A sentence, wrapped between words in a terminal; an empty line without one."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    typer.echo(textwrap.fill(printable(text, None), width, subsequent_indent="  ", break_on_hyphens=False))


def note(text: str) -> None:
    """A remark on standard error, so that standard output stays what was asked for."""
    typer.echo(printable(text, None), err=True)


def leave(failed: Sequence[object]) -> None:
    """Leave with an exit code of its own where some profiles were not built.

    Args:
        failed: these profiles.
    """
    if failed:
        raise typer.Exit(PARTLY_BUILT)


def warn(text: str) -> None:
    typer.secho(f"warning: {printable(text, None)}", err=True, fg=typer.colors.YELLOW)


@contextmanager
def progress_bar(enabled: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error; a line per step where that is not a terminal."""
    if not enabled:
        yield lambda _what, _done, _total: None
    elif not sys.stderr.isatty():
        last = ""

        def line(what: str, _done: int, _total: int) -> None:
            nonlocal last
            if what != last:
                note(what)
            last = what

        yield line
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("starting", total=1)
            yield lambda what, done, total: bar.update(
                task, description=printable(what, _LONGEST_CELL), completed=done, total=total
            )


def fail(message: str, json_code: int | None = None) -> None:
    """The one line that an error is, to somebody who may have left, or to a disk that may be full.

    Args:
        json_code: the exit code, where standard output gets the error as JSON as well.
    """
    lines = [(2, f"error: {printable(message, None)}")]
    if json_code is not None:
        lines.insert(0, (1, json_text({"error": message, "exit_code": json_code})))
    for stream, text in lines:
        try:
            typer.echo(text, err=stream == 2)
        except (OSError, StreamError):
            silence(stream)

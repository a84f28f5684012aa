"""How commands talk: tables and progress for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2))


def table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """Print a table; columns are `(heading, "left" | "right")`. Piped output is not squeezed into 80 columns."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    sheet: Table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", caption=caption)
    sheet.caption_justify = "left"
    for heading, justify in columns:
        sheet.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    for row in rows:
        sheet.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else 200).print(sheet)


def note(text: str) -> None:
    """A remark on standard error, so that standard output stays what was asked for."""
    typer.echo(text, err=True)


def warn(text: str) -> None:
    typer.secho(f"warning: {text}", err=True, fg=typer.colors.YELLOW)


@contextmanager
def progress_bar(enabled: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error; a line per step where that is not a terminal."""
    if not enabled:
        yield lambda _what, _done, _total: None
    elif not sys.stderr.isatty():
        yield lambda what, _done, _total: typer.echo(what, err=True)
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

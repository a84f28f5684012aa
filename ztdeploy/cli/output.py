"""How commands talk: tables and progress for people, one JSON object for programs.

Every verb has the options of `talks`, which decide what `answer`, `note` and `progress_bar` do.
Standard output has the answer alone; warnings, remarks and progress go to standard error.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar, cast

import typer

from ztdeploy.cli.streams import silence
from ztdeploy.core.errors import PARTLY_BUILT, StreamError
from ztdeploy.core.progress import Pace, Progress, in_words, silent
from ztdeploy.core.text import json_text, printable
from ztdeploy.version import __version__

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console, ConsoleOptions, RenderResult

_Command = TypeVar("_Command", bound=Callable[..., None])

#: Version of the envelope and of what is in it; it grows when a field goes or changes its meaning.
SCHEMA = 1
#: Characters of a cell of a table that are shown at most.
_LONGEST_CELL = 240
#: Characters of a progress bar at most; seconds after which a step that goes on is named again.
_BAR, _STILL_S = 24, 60.0
#: Seconds in which most commands end that are interrupted.
_ANYWAY_S = 0.2


# -------------------- how the command that runs was asked to talk


@dataclass
class _Manner:
    verb: str | None = None  #: such as "profiles list"; None before a verb is known
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    begun: float = field(default_factory=time.monotonic)
    over: bool = False  #: its error has been said


_manner = _Manner()
_last_words = threading.Lock()


def begin(arguments: Sequence[str]) -> None:
    """Forget how an earlier command was asked to talk. What a malformed one asks for is seen in its words alone."""
    global _manner
    _manner = _Manner(json="--json" in arguments)


_held = ExitStack()


def hold(context: AbstractContextManager[object]) -> None:
    """Enter a context until the command ends."""
    _held.enter_context(context)


@contextmanager
def holding() -> Iterator[None]:
    """A command, with the contexts that it holds."""
    with _held:
        yield


def named(verb: str) -> None:
    """The verb that runs."""
    _manner.verb = verb


def talks(
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.", rich_help_panel="Output")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also say what is done, and when.", rich_help_panel="Output")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only the result, warnings and errors.", rich_help_panel="Output")
    ] = False,
) -> None:
    """Take over what the options of every verb ask for.

    Raises:
        typer.BadParameter: both more and less than usual.
    """
    _manner.json |= json
    _manner.verbose |= verbose
    _manner.quiet |= quiet
    if _manner.verbose and _manner.quiet:
        raise typer.BadParameter("--verbose and --quiet exclude each other")
    _set_logging()


def talking(command: _Command) -> _Command:
    """A command with the options of `talks` behind its own."""
    flags = signature(talks, eval_str=True).parameters
    own = signature(command, eval_str=True).parameters.values()

    @wraps(command)
    def asked(**values: Any) -> Any:
        talks(**{name: values.pop(name) for name in flags})
        return command(**values)

    parameters = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in (*own, *flags.values())]
    vars(asked)["__signature__"] = Signature(parameters)
    asked.__annotations__ = {}
    return cast("_Command", asked)


def _set_logging() -> None:
    """What ztdeploy itself logs goes to standard error with `--verbose`, and nowhere without."""
    ours = logging.getLogger("ztdeploy")
    ours.handlers = [handler for handler in ours.handlers if not isinstance(handler, _Remarks)]
    ours.setLevel(logging.DEBUG if _manner.verbose else logging.WARNING)
    if _manner.verbose:
        ours.addHandler(_Remarks())


class _Remarks(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


# -------------------- answers


def answer(result: BaseModel | Callable[[], BaseModel], show: Callable[[], None]) -> None:
    """The result of a verb: one JSON object where that was asked for, otherwise what `show` prints.

    Args:
        result: of the type that `results.RESULTS` names for the verb; or what makes it.

    Raises:
        ParityError: a number that the result must have is not finite.
    """
    if not _manner.json:
        show()
        return
    from ztdeploy.core.records import plain

    typer.echo(_envelope(result=plain(result() if callable(result) else result, by_alias=True)))


def answer_boards(
    results: Mapping[str, BaseModel | None], failures: Mapping[str, tuple[str, int]], show: Callable[[], None]
) -> None:
    """The results of a verb on several boards, by their names, as `answer` gives one.

    Args:
        failures: message and exit code of those boards that have failed; one may have a result all the same.
    """
    if not _manner.json:
        show()
        return
    from ztdeploy.core.records import plain

    told: dict[str, dict[str, object]] = {name: {} for name in results}
    for name, found in results.items():
        if found is not None:
            told[name]["result"] = plain(found, by_alias=True)
    for name, (message, code) in failures.items():
        told[name]["error"] = {"message": message, "exit_code": code}
    typer.echo(_envelope(boards=told))


def _envelope(**content: object) -> str:
    return json_text({"ztdeploy": __version__, "schema": SCHEMA, "verb": _manner.verb, **content}, indent=2)


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
    """Print a table; columns are `(heading, "left" | "right")`.

    In a terminal it fits the width, and no word is broken: where that cannot be, each row becomes a block of lines.
    Otherwise each row is a line of cells with tabs between, and what stands around the rows begins with "# ".
    """
    heads = [printable(heading, _LONGEST_CELL) for heading, _ in columns]
    cells = [[printable(cell, _LONGEST_CELL) for cell in row] for row in rows]
    below = [printable(line) for line in caption.splitlines()]
    if sys.stdout.isatty():
        _show_table(
            printable(title), [(head, side) for head, (_, side) in zip(heads, columns, strict=True)], cells, below
        )
        return
    typer.echo(f"# {printable(title)}")
    for row in [heads, *cells] if any(heads) else cells:
        print_row(*row)
    for line in below:
        typer.echo(f"# {line}")


def print_row(*cells: str) -> None:
    """A line for `cut` and `awk`, with tabs between cells."""
    typer.echo("\t".join(printable(cell, None) for cell in cells))


def piped() -> bool:
    """Whether standard output is for programs that read lines."""
    return not _manner.json and not sys.stdout.isatty()


def _show_table(
    title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], below: Sequence[str]
) -> None:
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    texts = [[heading, *(row[position] for row in rows)] for position, (heading, _) in enumerate(columns)]
    natural = [max(map(cell_len, cells)) for cells in texts]
    words = [max((cell_len(word) for cell in cells for word in cell.split()), default=1) for cells in texts]
    room = console.width - 2 * (len(columns) - 1)
    console.print(Text(title, style="bold"))
    if sum(words) > room:
        for row in rows:
            for (heading, _), cell in zip(columns, row, strict=True):
                say(f"{heading}: {cell}" if heading else cell)
            say()
    else:
        sheet = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        sheet.show_header = any(heading for heading, _ in columns)
        for (heading, side), width in zip(columns, fitting_widths(natural, words, room), strict=True):
            sheet.add_column(Text(heading), justify="right" if side == "right" else "left", width=width)
        for row in rows:
            sheet.add_row(*map(Text, row))
        console.print(sheet)
    for line in below:
        console.print(Text(line, style="dim"))
    say()


def fitting_widths(natural: Sequence[int], words: Sequence[int], room: int) -> list[int]:
    """Widths of columns that fit side by side: the widest gives way first, down to its longest word.

    Rich shrinks all alike, and folds names in the middle, which nobody can copy then.

    Args:
        words: the longest of each column, for all of which there is room.
    """
    widths = list(natural)
    while sum(widths) > room:
        able = [position for position, width in enumerate(widths) if width > words[position]]
        widths[max(able, key=lambda position: (position > 0, widths[position]))] -= 1  # the first column last
    return widths


def cell(value: float | None, spec: str, scale: float = 1) -> str:
    """A number in a table; a stroke where there is none."""
    return "-" if value is None else f"{scale * value:{spec}}"


def say(text: str = "") -> None:
    """A sentence, wrapped between words in a terminal; an empty line without one."""
    typer.echo(_wrapped(text, sys.stdout))


def _wrapped(text: str, stream: TextIO) -> str:
    width = shutil.get_terminal_size().columns if stream.isatty() else 10_000
    return textwrap.fill(
        printable(text, None),
        width,
        subsequent_indent="  ",
        break_on_hyphens=False,
        break_long_words=False,  # paths are copied
    )


def note(text: str) -> None:
    """A remark on standard error, for people; with `--verbose` always, and with the time since the command began."""
    if _manner.verbose or not (_manner.quiet or _manner.json):
        at = f"{time.monotonic() - _manner.begun:7.2f} s  " if _manner.verbose else ""
        typer.echo(_wrapped(at + text, sys.stderr), err=True)


def leave(failed: Sequence[object]) -> None:
    """Leave with an exit code of its own where some profiles were not built.

    Args:
        failed: these profiles.
    """
    if failed:
        raise typer.Exit(PARTLY_BUILT)


def warn(text: str) -> None:
    typer.secho(_wrapped(f"warning: {text}", sys.stderr), err=True, fg=typer.colors.YELLOW)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on standard error; a line per step where that is no terminal, and with `--verbose`; none with `--json`
    alone.
    """
    if _manner.quiet or (_manner.json and not _manner.verbose):
        yield silent
    elif _manner.verbose or not sys.stderr.isatty():
        yield _Lines().told
    else:
        from rich.console import Console
        from rich.live import Live

        bar = _Bar()
        with Live(bar, console=Console(stderr=True), transient=True, refresh_per_second=8):
            yield bar.told


@contextmanager
def boards_progress(names: Sequence[str]) -> Iterator[Callable[[str, str], None]]:
    """What is told of each board by its name: a line for each in a terminal, otherwise a line whenever it changes."""
    if _manner.quiet or (_manner.json and not _manner.verbose):
        yield lambda _name, _what: None
    elif _manner.verbose or not sys.stderr.isatty():
        yield _changes(names)
    else:
        from rich.console import Console
        from rich.live import Live

        board_lines = _BoardLines(names)
        with Live(board_lines, console=Console(stderr=True), refresh_per_second=8):
            yield board_lines.told


def _changes(names: Sequence[str]) -> Callable[[str, str], None]:
    width, last = max(map(len, names), default=0), dict[str, tuple[str, float]]()

    def told(name: str, what: str) -> None:
        words, now = re.sub(r"[\d.]+", "", what), time.monotonic()  # figures alone are told once a minute
        before, at = last.get(name, ("", 0.0))
        if words != before or now - at > _STILL_S:
            last[name] = words, now
            note(f"{name:<{width}}  {what}")

    return told


class _BoardLines:
    """A line for each board that fits: its name, for how long the call has run or it took, and what it does."""

    def __init__(self, names: Sequence[str]) -> None:
        self._begun, self._width = time.monotonic(), max(map(len, names), default=0)
        self._lines = dict.fromkeys(names, (self._begun, "waiting"))

    def told(self, name: str, what: str) -> None:
        self._lines[name] = (time.monotonic(), printable(what, _LONGEST_CELL))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        for name, (at, what) in self._lines.items():
            over = what.startswith(("done", "failed", "kept"))
            minutes, seconds = divmod(int((at if over else time.monotonic()) - self._begun), 60)
            colour = {"done": "green", "kept": "green", "fail": "red"}.get(what[:4], "")
            line = Text.assemble((f"{name:<{self._width}}", "bold"), f"  {minutes}:{seconds:02d}  ", (what, colour))
            line.no_wrap = True
            line.truncate(options.max_width - 3, overflow="ellipsis")
            yield line


class _Lines:
    """A line whenever something else is done, and one a minute as long as it is the same."""

    def __init__(self) -> None:
        self._pace, self._last, self._at = Pace(), "", 0.0

    def told(self, what: str, done: float, total: float) -> None:
        self._pace.told(done, total)
        if what != self._last or time.monotonic() - self._at > _STILL_S:
            self._last, self._at = what, time.monotonic()
            share, left = self._pace.share, self._pace.left_s()
            known = [f"{100 * share:.0f} %"] * (share > 0) + ([] if left is None else [f"{in_words(left)} left"])
            note(what + (f" ({', '.join(known)})" if known else ""))


class _Bar:
    """One line that fits: what is being done, how far all of it is, for how long it has run and will run."""

    def __init__(self) -> None:
        self._pace, self._what = Pace(), "starting"

    def told(self, what: str, done: float, total: float) -> None:
        self._pace.told(done, total)
        self._what = printable(what, _LONGEST_CELL)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        stroke, share = "-" if options.ascii_only else "━", self._pace.share
        minutes, seconds = divmod(int(self._pace.elapsed_s()), 60)
        left = self._pace.left_s()
        behind = f"{100 * share:4.0f} %  {minutes}:{seconds:02d}" + ("" if left is None else f", {in_words(left)} left")
        room = max(1, options.max_width - len(behind) - 3)  # the terminal shows ^C behind it
        bar = min(_BAR, room // 3)
        full = round(bar * share)
        what = Text(self._what, no_wrap=True)
        what.truncate(room - bar - 1, overflow="ellipsis", pad=True)
        strokes = (" ", (stroke * full, "green"), (stroke * (bar - full), "bright_black"))
        yield Text.assemble(what, *strokes, behind, no_wrap=True, overflow="crop", end="")


def fail(message: str, exit_code: int) -> None:
    """The one line that an error is, to somebody who may have left, or to a disk that may be full; and the JSON of it.

    Args:
        exit_code: what the command leaves with.
    """
    lines = [(2, f"error: {printable(message, None)}")]
    if _manner.json:
        lines.insert(0, (1, _envelope(error={"message": message, "exit_code": exit_code})))
    with _last_words:
        _manner.over = True
        for stream, text in lines:
            try:
                typer.echo(text, err=stream == 2)
            except (OSError, StreamError):
                silence(stream)


def complain(message: str) -> None:
    """What went wrong beside what was found all the same, which has been printed."""
    with _last_words:
        _manner.over = True
        typer.echo(f"error: {printable(message, None)}", err=True)


def stopping() -> None:
    """Acknowledge Ctrl-C, unless the command ends anyway; called by another thread than the command's."""
    time.sleep(_ANYWAY_S)
    with _last_words:
        if not _manner.over:
            typer.echo("stopping...", err=True)

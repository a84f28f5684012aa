"""Verbs on boards: `--on NAME` in front of what a verb does here.

What travels follows from the options themselves: a path that is read is sent, a path that is out_path stays here and is
written from the result, once for each board, of a public key the key itself goes along, and everything else as it was
typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from ztdeploy.cli.help import TARGETS
from ztdeploy.cli.options import kinds_of, options, out_path, path, path_or_name, public_key
from ztdeploy.cli.output import answer_boards, boards_progress, complain, left, note, right, say, table
from ztdeploy.core.errors import InputError

if TYPE_CHECKING:
    from ztdeploy.jobs.remote.fleet import Outcome, SentPath
    from ztdeploy.target.measure.bench_report import BenchReport
    from ztdeploy.target.measure.sweep_report import SweepReport

_Command = TypeVar("_Command", bound=Callable[..., None])
#: Options that say how to talk here, and which boards are meant.
_OWN = ("on", "json", "verbose", "quiet", "help")


def known_boards() -> Sequence[str]:
    """For completion."""
    from ztdeploy.jobs.remote.registry import read_boards

    return sorted(read_boards())


def board_word(text: str) -> str:
    """
    Raises:
        InputError: no board can have that name.
    """
    from ztdeploy.jobs.remote.registry import board_name

    return board_name(text)


_ON = "Run on these boards of 'ztdeploy remote' instead of here."
OnOption = Annotated[list[str] | None, options("--on NAME", board_word, TARGETS, _ON, known=lambda _: known_boards())]


@dataclass(frozen=True)
class Delivery:
    """What this machine does with the results of boards."""

    show: Callable[[Any], None]  #: prints one, as the verb does here
    #: Checks the paths that options name before any board is asked, by the option's name.
    check: Callable[[Mapping[str, Path]], None] = lambda _paths: None
    #: Writes what options ask for, and says which files.
    write: Callable[[Any, Mapping[str, Path]], Sequence[Path]] = lambda _result, _paths: ()
    #: The paths of options that are not given.
    unasked: Callable[[Mapping[str, Any]], dict[str, Path]] = lambda _values: {}
    writes: tuple[str, ...] = ()  #: options whose files can be written here from the result
    fetches: Mapping[str, str] = field(default_factory=dict)  #: suffixes of files that boards write, by option
    #: Writes those that boards have written, by option, and says which files.
    take: Callable[[Mapping[str, bytes], Mapping[str, Path]], Sequence[Path]] = lambda _files, _paths: ()
    beside: Callable[[Sequence[Any]], None] = lambda _results: None  #: prints several side by side
    #: Writes what sets several side by side, given the paths that options name.
    write_beside: Callable[[Sequence[Any], Mapping[str, Path]], Sequence[Path]] = lambda _results, _paths: ()
    named: Callable[[Any, str], Any] = lambda result, _board: result  #: a result that says which board it is of


def on_boards(delivery: Delivery) -> Callable[[_Command], _Command]:
    """Give a verb the option `--on`."""

    def decorate(command: _Command) -> _Command:
        own, kinds = signature(command, eval_str=True).parameters.values(), kinds_of(command)

        @wraps(command)
        def asked(*, ctx: typer.Context, on: list[str] | None = None, **values: Any) -> Any:
            if not on:
                return command(**values)
            return _run_on(on, _Typed(ctx, kinds), values, delivery)

        added = [
            Parameter("ctx", Parameter.KEYWORD_ONLY, annotation=typer.Context),
            Parameter("on", Parameter.KEYWORD_ONLY, annotation=OnOption, default=None),
        ]
        vars(asked)["__signature__"] = Signature([*(one.replace(kind=Parameter.KEYWORD_ONLY) for one in own), *added])
        asked.__annotations__ = {}
        return cast("_Command", asked)

    return decorate


@dataclass(frozen=True)
class _Typed:
    """A command line."""

    ctx: typer.Context
    kinds: Mapping[str, Any]  #: of what its options take, by parameter

    def outputs(self, values: Mapping[str, Any]) -> dict[str, Path]:
        """The paths to be written, by parameter."""
        asked = {name: values.get(name) for name, kind in self.kinds.items() if kind is out_path}
        return {name: value for name, value in asked.items() if value is not None}

    def words(self) -> Iterator[str | SentPath]:
        """What was typed, for another machine: options first, then what they apply to."""
        typed, arguments = self.ctx.meta["typed"], []
        for one in self.ctx.command.params:
            name, value = one.name or "", typed.get(one.name)
            if name in _OWN or self.kinds.get(name) is out_path:
                continue
            if isinstance(value, bool):
                yield one.opts[-1] if value else one.secondary_opts[-1]
            elif isinstance(value, str | list | tuple):
                is_option = one.param_type_name == "option"
                before, texts = f"{one.opts[-1]}=" if is_option else "", [value] if isinstance(value, str) else value
                found = [self._word(name, before, text) for text in texts]
                if is_option:
                    yield from found
                else:
                    arguments += found
        yield from ("--", *arguments) if arguments else ()

    def _word(self, name: str, before: str, text: str) -> str | SentPath:
        from ztdeploy.core.signature import public_key as read_key
        from ztdeploy.jobs.remote.fleet import SentPath

        kind = self.kinds.get(name)
        if getattr(kind, "one", None) is public_key:
            return before + ",".join(read_key(one).line for one in text.split(","))
        is_sent = kind is path or (kind is path_or_name and Path(text).exists())
        return SentPath(before, Path(text)) if is_sent else before + text


def _run_on(names: list[str], typed: _Typed, values: Mapping[str, Any], delivery: Delivery) -> None:
    from ztdeploy.cli.results import result_type
    from ztdeploy.jobs.remote.fleet import Call, exit_code_of, forget, run_on
    from ztdeploy.jobs.remote.registry import boards_named

    boards = boards_named(names)
    paths = {**delivery.unasked(values), **typed.outputs(values)}
    here = (*delivery.writes, *delivery.fetches)
    for name in paths.keys() - {*here}:
        raise InputError(f"--{name} with --on", _listed(here), "leave it out, or run the verb on the board")
    own = {name: {option: of_board(one, name) for option, one in paths.items()} for name in boards}
    for each in own.values():
        delivery.check(each)
    verb = typed.ctx.info_name or ""
    fetched = {name: f"{name}{suffix}" for name, suffix in delivery.fetches.items() if name in paths}
    words = (*(f"--{name}={file}" for name, file in fetched.items()), *typed.words())
    call = Call(verb, words, result_type(verb), delivery.named, tuple(fetched.values()))
    with boards_progress(list(boards)) as told:
        outcomes = run_on(boards, call, told)
    files = [file for one in outcomes if one.result is not None for file in delivery.write(one.result, own[one.board])]
    for one in outcomes:
        brought = {name: one.files[file] for name, file in fetched.items() if file in one.files}
        files += delivery.take(brought, own[one.board])
    results = [one.result for one in outcomes if one.result is not None]
    files += delivery.write_beside(results, paths) if len(results) > 1 else ()
    answer_boards(
        {one.board: one.result for one in outcomes},
        {one.board: (one.failure.message, one.failure.exit_code) for one in outcomes if one.failure},
        lambda: _show(outcomes, results, delivery),
    )
    forget(outcomes)
    for file in files:
        note(f"wrote {file}")
    for one in outcomes:
        if one.failure is not None:
            complain(f"{one.board}: {one.failure.message}")
    if any(one.failure for one in outcomes) and len(outcomes) > 1:
        note("the same command goes on with the boards that failed")
    if code := exit_code_of(outcomes):
        raise typer.Exit(code)


def _listed(names: Sequence[str]) -> str:
    return f"{' or '.join(f'--{name}' for name in names) or 'nothing'} as what is written here"


def _show(outcomes: Sequence[Outcome], results: Sequence[Any], delivery: Delivery) -> None:
    for one in outcomes:
        if one.result is not None:
            say(f"{one.board}:")
            delivery.show(one.result)
            say()
    if len(results) > 1:
        delivery.beside(results)


def show_beside(reports: Sequence[BenchReport | SweepReport]) -> None:
    """A table with the configurations of several boards."""
    from ztdeploy.report.compare.boards import CAPTION, HEADS, board_rows

    rows = [row.cells for row in board_rows(reports)]
    table("Boards side by side", [*left(*HEADS[:3]), *right(*HEADS[3:])], rows, caption=CAPTION)


def of_board(path: Path, board: str) -> Path:
    """Where a board's own file or folder is out_path: "bench.json" becomes "bench-lab1.json"."""
    return path.with_name(f"{path.stem}-{board}{path.suffix}")

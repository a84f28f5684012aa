"""ztdeploy remote add | list | remove | check | install"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ztdeploy.cli.boards import board_word, known_boards
from ztdeploy.cli.help import DEPLOY, TARGETS
from ztdeploy.cli.options import argument, flag, option, options, path, word
from ztdeploy.cli.output import answer, boards_progress, complain, left, note, right, table

if TYPE_CHECKING:
    from ztdeploy.jobs.remote.fleet import BoardState
    from ztdeploy.jobs.remote.registry import Board
    from ztdeploy.jobs.remote.ssh import Connection
    from ztdeploy.target.board import BoardFacts

_NONE = "no board has a name yet: ztdeploy remote add NAME USER@HOST"
NameArgument = Annotated[str, argument("NAME", board_word, "What you call the board.", known=lambda _: known_boards())]
NamesArgument = Annotated[
    list[str] | None,
    argument("NAME", board_word, "Boards of 'ztdeploy remote list'. [default: all]", known=lambda _: known_boards()),
]


def _target(text: str) -> Board:
    from ztdeploy.jobs.remote.registry import target

    return target(text)


def register(app: typer.Typer) -> None:
    remote = type(app)(help="Name boards that ssh reaches, for --on; install there.")
    remote.command("add")(add)
    remote.command("list")(list_boards)
    remote.command("remove")(remove)
    remote.command("check")(check)
    remote.command("install")(install)
    app.add_typer(remote, name="remote", rich_help_panel=DEPLOY)


def add(
    name: NameArgument,
    target: Annotated[Any, argument("TARGET", _target, "USER@HOST, USER@HOST:PORT, or a host of ~/.ssh/config.")],
    python: Annotated[
        str, option("--python NAME", word, TARGETS, "Its Python: makes the environment; runs where there is none.")
    ] = "python3",
) -> None:
    """Name a board. Nothing is sent, and ssh is not called.

    Examples:
        # Name a board by its address.
        ztdeploy remote add lab1 pi@192.168.1.17
        # Name one that ~/.ssh/config knows, with another Python.
        ztdeploy remote add orin jetson --python python3.11
    """
    from ztdeploy.cli.results import BoardsResult
    from ztdeploy.jobs.remote.registry import add_board, with_python

    board = with_python(target, python)
    add_board(name, board)
    answer(BoardsResult(boards={name: board}), lambda: note(f"next: ztdeploy remote install {name}"))


def list_boards() -> None:
    """List the boards that have a name.

    Examples:
        ztdeploy remote list
        ztdeploy remote list --json
    """
    from ztdeploy.cli.results import BoardsResult
    from ztdeploy.jobs.remote.registry import read_boards, registry_path

    found = read_boards()
    if not found:
        note(_NONE)
    rows = [(name, str(board), board.python) for name, board in found.items()]
    answer(
        BoardsResult(boards=found),
        lambda: table("Boards", left("board", "reached as", "Python"), rows, caption=f"in {registry_path()}"),
    )


def remove(name: NameArgument) -> None:
    """Forget a board. What is on it stays there.

    Examples:
        ztdeploy remote remove lab1
        ztdeploy remote remove lab1 --json
    """
    from ztdeploy.cli.results import BoardsResult
    from ztdeploy.jobs.remote.registry import boards_named, remove_board

    known = boards_named([name])
    remove_board(name)
    answer(
        BoardsResult(boards=known),
        lambda: note("on the board, ~/.local/share/ztdeploy and ~/.cache/ztdeploy/remote are left"),
    )


def check(names: NamesArgument = None) -> None:
    """Say whether boards can be reached and have this ztdeploy.

    Examples:
        # Check all boards.
        ztdeploy remote check
        # Check one of them, for a program.
        ztdeploy remote check lab1 --json
    """
    _on_each(names, lambda connection: connection.hello())


def install(
    names: Annotated[list[str], argument("NAME", board_word, "Boards.", known=lambda _: known_boards())],
    wheels: Annotated[
        Path | None, option("--wheels DIR", path, TARGETS, "Wheels of what it requires, for boards without a network.")
    ] = None,
    extras: Annotated[
        list[str] | None, options("--extra NAME", word, TARGETS, "Extras to install, such as openvino.")
    ] = None,
    system: Annotated[
        bool,
        flag(
            "--system-packages", TARGETS, "A new environment sees the packages of the system, as TensorRT of JetPack."
        ),
    ] = False,
) -> None:
    """Install this machine's ztdeploy on boards, into an environment of its own.

    Examples:
        # Install it; pip on the board fetches what it requires.
        ztdeploy remote install lab1
        # Install it on boards without a network.
        ztdeploy remote install lab1 lab2 --wheels wheels
    """
    from ztdeploy.jobs.remote.installation import install as install_on

    _on_each(names, lambda one: install_on(one, wheels=wheels, extras=extras or (), system=system))


def _on_each(names: Sequence[str] | None, work: Callable[[Connection], BoardFacts]) -> None:
    from ztdeploy.cli.results import CheckedBoards
    from ztdeploy.jobs.remote.fleet import exit_code_of, facts_of
    from ztdeploy.jobs.remote.registry import boards_named, read_boards

    boards = boards_named(list(dict.fromkeys(names or read_boards())))
    if not boards:
        note(_NONE)
    with boards_progress(list(boards)) as told:
        found = facts_of(boards, work, told)
    answer(CheckedBoards(boards=found), lambda: _show_checked(boards, found))
    for name, one in found.items():
        if one.error is not None:
            complain(f"{name}: {one.error}")
    if code := exit_code_of(found.values()):
        raise typer.Exit(code)


def _show_checked(boards: Mapping[str, Board], found: Mapping[str, BoardState]) -> None:
    rows = [
        (name, one.facts.title, one.facts.machine, one.facts.python, f"{one.facts.free_bytes / 1e9:.1f}")
        for name, one in found.items()
        if one.facts is not None
    ]
    if rows:
        table("Boards", left("board", "machine", "processor", "Python") + right("GB free"), rows)

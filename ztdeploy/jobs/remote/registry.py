"""The boards that the user has named: a TOML file in the user's folder of settings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from ztdeploy.core.cache import users_folder
from ztdeploy.core.data import first_error, read_settings
from ztdeploy.core.errors import InputError, did_you_mean
from ztdeploy.core.files import is_there, make_folder, write
from ztdeploy.core.locks import only_writer
from ztdeploy.core.records import Record

_FIX = "set XDG_CONFIG_HOME to a folder that can be written"
_HEAD = "# The boards of 'ztdeploy remote'. How ssh reaches them (keys, jump hosts) stands in ~/.ssh/config.\n"
_EXPECTED = "a name of letters, digits, '.', '_' and '-', such as 'lab1'"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$"
#: Neither may begin with a stroke, which would make an option of ssh out of it.
_USER, _HOST = r"^[A-Za-z0-9_][A-Za-z0-9._@+-]{0,63}$", r"^[A-Za-z0-9_:][A-Za-z0-9._:%-]{0,254}$"
_TARGET = re.compile(r"(?:(?P<user>.*)@)?(?:\[(?P<six>[^]]*)\]|(?P<host>[^:]*))(?::(?P<port>[0-9]{1,5}))?")

BoardName = Annotated[str, Field(pattern=_NAME)]


class Board(Record):
    """How a board is reached, and which Python it has."""

    host: str = Field(pattern=_HOST)  #: a name, an address, or a `Host` of the user's own ssh configuration
    user: str | None = Field(default=None, pattern=_USER)
    port: int | None = Field(default=None, ge=1, le=65535)
    python: str = Field(default="python3", pattern=r"^[A-Za-z0-9._/~+-]{1,255}$")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{f'{self.user}@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"


class _Registry(Record):
    board: dict[BoardName, Board] = Field(default_factory=dict)


def board_name(text: str) -> str:
    """
    Raises:
        InputError: no board can have that name.
    """
    if not re.fullmatch(_NAME, text):
        raise InputError(f"the name '{text[:40]}'", _EXPECTED, "choose another name")
    return text


def target(text: str) -> Board:
    """What "user@host:port" means; user and port may be left out.

    Raises:
        InputError: it means nothing.
    """
    found = _TARGET.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        port = None if found["port"] is None else int(found["port"])
        return Board(host=found["six"] or found["host"] or "", user=found["user"], port=port)
    except ValueError as error:
        raise InputError(
            f"'{text[:80]}'", "USER@HOST, USER@HOST:PORT, or a host of ~/.ssh/config", "give for instance pi@lab1.local"
        ) from error


def with_python(board: Board, python: str) -> Board:
    """
    Raises:
        InputError: that is no name and no path of a program.
    """
    try:
        return Board.model_validate({**board.model_dump(), "python": python})
    except ValidationError as error:
        raise InputError(
            f"--python '{python[:80]}'", "a name or path of plain characters", "give for instance python3.11"
        ) from error


def registry_path() -> Path:
    """
    Raises:
        OutputError: there is neither `XDG_CONFIG_HOME` nor a home folder.
    """
    return users_folder("XDG_CONFIG_HOME", ".config", "settings", _FIX) / "boards.toml"


def read_boards() -> dict[str, Board]:
    """All boards by name; none where there is no file.

    Raises:
        InputError: the file is not one of ours.
    """
    path = registry_path()
    if not is_there(path):
        return {}
    data = read_settings(path, what="list of boards")
    try:
        return dict(_Registry.model_validate(data).board)
    except ValidationError as error:
        where, wrong = first_error(error)
        raise InputError(
            f"'{path}' is wrong at '{where}': {wrong}", "a table [board.NAME] each", "correct or remove the file"
        ) from error


def boards_named(names: list[str]) -> dict[str, Board]:
    """
    Raises:
        InputError: one is not known.
    """
    known = read_boards()
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) if known else "name it first: ztdeploy remote add NAME USER@HOST"
            raise InputError(f"board '{name}'", "a board of 'ztdeploy remote list'", hint)
    return {name: known[name] for name in names}


def add_board(name: str, board: Board) -> None:
    """
    Raises:
        InputError: there is one of that name.
        OutputError: the file cannot be written.
    """

    def add(known: dict[str, Board]) -> None:
        if name in known:
            raise InputError(
                f"board '{name}' exists ({known[name]})",
                "a new name",
                f"choose another, or: ztdeploy remote remove {name}",
            )
        known[name] = board

    _change(add)


def remove_board(name: str) -> None:
    """Forget a board. What is on it stays there.

    Raises:
        InputError: there is none of that name.
        OutputError: the file cannot be written.
    """
    boards_named([name])
    _change(lambda known: known.pop(name, None))


def _change(change: Callable[[dict[str, Board]], object]) -> None:
    path = registry_path()
    make_folder(path.parent, _FIX)
    with only_writer(path.parent):
        known = read_boards()
        change(known)
        write(path, _HEAD + "".join(f"\n[board.{json.dumps(name)}]\n{_lines(known[name])}" for name in sorted(known)))


def _lines(board: Board) -> str:
    """Its fields as TOML. None of them holds a character that TOML and JSON write differently."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in board.model_dump(exclude_none=True).items())

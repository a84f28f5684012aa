"""The user's own OpenSSH, and what comes back from it.

Keys, agents, jump hosts and host keys are ssh's business and the user's configuration: nothing here reads a key, asks
for a password (BatchMode) or touches how host keys are checked. All sessions of one call share one connection
(ControlMaster), unless the user's configuration shares connections already. `ZTDEPLOY_SSH` may name another command
line for `ssh`, such as "ssh -F FILE".

All programs are run by a `Transport` (`programs.py`).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ztdeploy.core.data import first_error, parse_json
from ztdeploy.core.errors import BoardError
from ztdeploy.core.files import TEXT_LIMIT
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.records import Record, to_json
from ztdeploy.core.text import printable
from ztdeploy.jobs.remote.programs import Ended, Heard, Programs, StoppedError, Transport
from ztdeploy.jobs.remote.registry import Board
from ztdeploy.target.board import BoardFacts, HelloRequest, code_digest
from ztdeploy.version import __version__

VARIABLE = "ZTDEPLOY_SSH"
#: Seconds without a sign of life after which a board counts as hung; its verbs give one every ten seconds.
SILENCE_S = 180.0
#: The environment on a board, below the user's home folder there.
VENV = ".local/share/ztdeploy/venv"
#: Never a password, never a wait without end, nothing of the configuration that stands in the way of a command.
_OPTIONS = {
    **{"BatchMode": "yes", "ConnectTimeout": "15", "ServerAliveInterval": "15", "ServerAliveCountMax": "3"},
    **{"ClearAllForwardings": "yes", "RemoteCommand": "none", "RequestTTY": "no"},
}
_SHARED = {"ControlMaster": "auto", "ControlPersist": "20"}
#: What a socket's path may have, in bytes; ssh adds 17 for a moment.
_LONGEST_SOCKET = 107 - 17
#: `$1` is the Python that is called where the board has no environment of its own.
_PYTHON = f"""v="$HOME/{VENV}/bin/python"
if [ ! -x "$v" ]; then v=$1; case "$v" in /*) ;; "~/"*) v="$HOME/${{v#??}}";; */*) v="$HOME/$v";; esac; fi"""
_ASK = f'{_PYTHON}\ncd / && exec "$v" -m ztdeploy.target.board'
#: ssh's own failures, by what it says: what is wrong, and what to do.
_FAILURES = {
    "IDENTIFICATION HAS CHANGED": (
        "its host key is not the one that ssh knows",
        "find out why before you trust it again (ssh-keygen -R {host})",
    ),
    "No .* host key is known|Host key verification failed": (
        "ssh does not know its host key",
        "connect once by hand, and compare the key: {ssh}",
    ),
    "Permission denied": (
        "it does not let this user in without a password",
        "give it your key (ssh-copy-id {host}), and see whether '{ssh}' works",
    ),
}

_Reply = TypeVar("_Reply", bound=BaseModel)


def remote_line(words: Sequence[str]) -> str:
    """The one place where words become a line for a shell on a board."""
    return shlex.join(words)


def _unheard(_line: str) -> None:
    pass


@dataclass(frozen=True)
class Connection:
    """One board, and how programs of this machine reach it."""

    name: str
    board: Board
    transport: Transport = field(default_factory=Programs)
    stop: Event = field(default_factory=Event)
    socket: Path | None = None  #: of the shared connection; None: every session connects anew
    told: Heard = _unheard  #: what the board does now

    @property
    def ssh(self) -> list[str]:
        """The command line of ssh, up to the host."""
        return [*ssh_command(), *self.options]

    @property
    def options(self) -> list[str]:
        """Options that ssh and sftp take alike."""
        shared = {} if self.socket is None else {**_SHARED, "ControlPath": str(self.socket)}
        own = {"Port": self.board.port, "User": self.board.user}
        chosen = {**_OPTIONS, **shared, **{name: value for name, value in own.items() if value is not None}}
        return [word for name, value in chosen.items() for word in ("-o", f"{name}={value}")]

    def program(
        self,
        command: Sequence[str],
        sent: bytes = b"",
        *,
        heard: Heard = _unheard,
        held: bool = False,
        watched: bool = True,
    ) -> Ended:
        """Run a program of this machine.

        Args:
            watched: silence counts as a hang; otherwise ssh alone says whether the board is there.

        Raises:
            BoardError: it is not installed, or it ended because the board was silent or said too much.
        """
        silence_s = SILENCE_S if watched else None
        try:
            ended = self.transport(command, sent, heard=heard, stop=self.stop, silence_s=silence_s, held=held)
        except OSError as error:
            raise BoardError(
                f"the program '{command[0]}' cannot be started: {error.strerror}", "OpenSSH", "install openssh-client"
            ) from error
        if ended.silent:
            raise BoardError(
                f"board '{self.name}' gave no sign of life for {SILENCE_S:.0f} s",
                "a board that works",
                "look at it; the same command then runs it again",
            )
        if ended.too_much:
            raise BoardError(f"board '{self.name}' said more than {TEXT_LIMIT >> 20} MiB", "a report", "look at it")
        return ended

    def run(self, words: Sequence[str], sent: bytes = b"", *, heard: Heard = _unheard, watched: bool = True) -> Ended:
        """Run a command of the board.

        Args:
            watched: see `program`.

        Raises:
            BoardError: as `program`; or ssh does not reach the board.
        """
        command = [*self.ssh, "-T", "--", self.board.host, remote_line(words)]
        ended = self.program(command, sent, heard=heard, held=True, watched=watched)
        if ended.code == 255:
            raise self.failure(ended)
        return ended

    def failure(self, ended: Ended) -> BoardError:
        """Why ssh could not do it."""
        ssh = " ".join([*ssh_command(), *self._by_hand])
        for sign, (what, fix) in _FAILURES.items():
            if any(re.search(sign, line) for line in ended.err):
                words = fix.format(ssh=ssh, host=self.board.host)
                return BoardError(f"board '{self.name}' ({self.board}): {what}", "a board that ssh reaches", words)
        return BoardError(
            f"board '{self.name}' ({self.board}) cannot be reached, or the connection broke: {ended.last}",
            "a board that ssh reaches",
            f"see whether '{ssh}' works",
        )

    @property
    def _by_hand(self) -> list[str]:
        port = ["-p", str(self.board.port)] if self.board.port else []
        return [*port, f"{self.board.user}@{self.board.host}" if self.board.user else self.board.host]

    # What ztdeploy on the board answers.

    def ask(self, request: Record, reply: type[_Reply]) -> _Reply:
        """
        Raises:
            BoardError: there is no such ztdeploy, it refuses, or it answers something else.
        """
        return self.as_record(reply, self.asked(request)[0])

    def as_record(self, kind: type[_Reply], data: Any) -> _Reply:
        """What a board has answered, as the record that it should be.

        Raises:
            BoardError: it is something else.
        """
        try:
            return kind.model_validate(data)
        except ValidationError as error:
            where, wrong = first_error(error)
            raise self._strange(f"at '{where}': {wrong}") from error

    def asked(self, request: Record, heard: Heard = _unheard) -> tuple[dict[str, Any], Ended]:
        """The answer to a request, which is plain data from elsewhere; and how the process ended.

        Raises:
            BoardError: as `ask`.
        """
        ended = self.run(["sh", "-c", _ASK, "sh", self.board.python], to_json(request).encode() + b"\n", heard=heard)
        try:
            data = parse_json(ended.out.decode())
        except ValueError as error:
            raise self._no_answer(ended, str(error)) from error
        if not isinstance(data, dict):
            raise self._strange("than an object")
        if data.get("error") is not None:
            raise said_by(data["error"])
        return data, ended

    def _strange(self, what: str) -> BoardError:
        return BoardError(
            f"board '{self.name}' answers something else {printable(what, 200)}",
            "the answer of this version",
            f"run: ztdeploy remote install {self.name}",
        )

    def _no_answer(self, ended: Ended, wrong: str) -> BoardError:
        install = f"run: ztdeploy remote install {self.name}"
        if ended.code in (126, 127):
            return BoardError(
                f"board '{self.name}' has no Python '{self.board.python}'",
                "Python 3.10 or newer",
                "install it there, or name another: ztdeploy remote add --python",
            )
        if "No module named" in ended.last:
            return BoardError(f"board '{self.name}' has no ztdeploy ({ended.last})", f"version {__version__}", install)
        if not ended.out:
            return BoardError(f"board '{self.name}' answers nothing: {ended.last}", "an answer", install)
        return self._strange(f"({wrong})")

    def hello(self) -> BoardFacts:
        """What the board is.

        Raises:
            BoardError: it cannot be reached, or has another ztdeploy than this machine.
        """
        found = self.ask(HelloRequest(), BoardFacts)
        if (found.version, found.code) != (__version__, code_digest()):
            other = found.version if found.version != __version__ else f"{found.version} with other code"
            raise BoardError(
                f"board '{self.name}' has ztdeploy {printable(other, 40)}",
                f"the one of this machine, {__version__}",
                f"run: ztdeploy remote install {self.name}",
            )
        if not re.fullmatch(r"/[A-Za-z0-9_@%+=:,./-]{1,1000}", found.store):
            raise BoardError(
                f"board '{self.name}' stores files in '{printable(found.store, 100)}'",
                "a path of plain characters",
                "set ZTDEPLOY_CACHE there to another folder",
            )
        return found


def said_by(failure: Any) -> BoardError:
    """The error that a board's JSON holds, with an exit code that ztdeploy knows."""
    known = failure if isinstance(failure, dict) else {}
    code = next((one for one in KNOWN_CODES if one == known.get("exit_code")), 1)
    return BoardError.said(str(known.get("message", "an error without words"))[:2000], code)


#: What a command may leave with, beside 0.
KNOWN_CODES = (*range(1, 10), 130)


def ssh_command() -> list[str]:
    """`ssh`, or what the environment names."""
    return shlex.split(os.environ.get(VARIABLE, "")) or ["ssh"]


@contextmanager
def connected(
    boards: dict[str, Board], told: Callable[[str, str], None], transport: Transport, stop: Event
) -> Iterator[list[Connection]]:
    """Connections to boards, each shared by all sessions of the block, and closed in the end."""
    with scratch_folder() as folder:
        found = []
        for number, (name, board) in enumerate(boards.items()):
            alone = Connection(name, board, transport, stop, told=lambda text, name=name: told(name, text))  # type: ignore[misc]
            socket = folder / str(number)
            shares = len(os.fsencode(socket)) <= _LONGEST_SOCKET and not _shares_already(alone)
            found.append(Connection(name, board, transport, stop, socket if shares else None, alone.told))
        try:
            yield found
        finally:
            for one in found:
                if one.socket is not None and one.socket.exists():
                    _close(one)


def _shares_already(connection: Connection) -> bool:
    """Whether the user's own configuration shares connections to this board, such as one that took a second factor."""
    try:
        ended = connection.program([*connection.ssh, "-G", "--", connection.board.host], held=True)
    except BoardError:
        return False  # which the first command says
    return bool(re.search(rb"^controlpath (?!none)", ended.out, re.MULTILINE | re.IGNORECASE))


def _close(connection: Connection) -> None:
    command = [*connection.ssh, "-O", "exit", "--", connection.board.host]
    with suppress(OSError, StoppedError):
        connection.transport(command, b"", heard=lambda _: None, stop=Event(), silence_s=10, held=True)

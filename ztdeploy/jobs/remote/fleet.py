"""A verb on several boards at once: what is sent, what comes back, and what a second call need not do again.

The record of an unfinished call is a JSON file in the cache for each board, named by everything that decides the result
(board, verb, options, content of what is sent, code): when the verb was begun there, and its result once it is whole.
The same command takes results over, and goes on in the folders of the other boards. Once all boards' results have been
handed over the records go (`forget`), so that the next call measures again; those of yesterday do not count either.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Protocol, TypeVar

from pydantic import Base64UrlBytes, BaseModel, Field, ValidationError

from ztdeploy.core.cache import cache_errors, cache_folder
from ztdeploy.core.errors import BoardError, InputError, OutputError, ZtdeployError
from ztdeploy.core.files import FORGOTTEN_S, TEXT_LIMIT, read_text, remove, write
from ztdeploy.core.records import Record, from_json, plain, to_json
from ztdeploy.jobs.remote.programs import Programs, StoppedError, Transport
from ztdeploy.jobs.remote.registry import Board
from ztdeploy.jobs.remote.ssh import KNOWN_CODES, Connection, connected
from ztdeploy.jobs.remote.transfer import Parcel, deliver, parcel
from ztdeploy.target.board import BoardFacts, Fetched, FetchRequest, InTree, VerbRequest, code_digest

_Made = TypeVar("_Made")
#: Told what a board does.
Told = Callable[[str, str], None]


@dataclass(frozen=True)
class SentPath:
    """A word of a command line that names something to be sent, behind its option's name and "=" if it has one."""

    before: str
    path: Path


@dataclass(frozen=True)
class Call:
    """A verb for boards."""

    verb: str
    words: tuple[str | SentPath, ...]  #: options and arguments as typed, but for those that say how to talk
    result: type[BaseModel]  #: what the verb finds
    named: Callable[[Any, str], Any] = lambda result, _board: result  #: the result of a board, which says so
    fetched: tuple[str, ...] = ()  #: names of files that the words have the verb write into its folder


class Failed(Record):
    """Why a board has no whole result."""

    message: str
    exit_code: int


@dataclass(frozen=True)
class Outcome:
    """What became of one board."""

    board: str
    result: BaseModel | None = None  #: may be there beside a failure, as where one configuration of several died
    failure: Failed | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)  #: those that were fetched
    kept: str | None = None  #: when it was begun, where an earlier call has found it
    record: Path | None = None  #: of the unfinished call

    @property
    def exit_code(self) -> int:
        return self.failure.exit_code if self.failure else 0


class _CallRecord(Record):
    """What is known of one board in a call that is not finished."""

    at: str  #: when the verb was begun there; UTC, ISO 8601
    result: Any = None  #: None: there is no whole one yet
    files: dict[str, Base64UrlBytes] = Field(default_factory=dict)


class BoardState(Record):
    """Whether a board is ready."""

    facts: BoardFacts | None = None
    error: str | None = None  #: why it is not
    exit_code: int = 0


class _Left(Protocol):
    @property
    def exit_code(self) -> int: ...


def exit_code_of(outcomes: Iterable[_Left]) -> int:
    """That of the first board, in the order of the command line, that has failed; 0 where none has."""
    return next((one.exit_code for one in outcomes if one.exit_code), 0)


def run_on(
    boards: Mapping[str, Board],
    call: Call,
    told: Told,
    *,
    cache: Path | None = None,
    transport: Transport | None = None,
) -> list[Outcome]:
    """Run a verb on all boards at once. One that fails does not keep the others from going on.

    Raises:
        ZtdeployError: what is to be sent cannot be read; no board was asked.
        KeyboardInterrupt: the verb is ended on all boards; what is whole is kept.
    """
    folder = cache_folder(cache) / "remote"
    parcels = {word.path: parcel(word.path) for word in call.words if isinstance(word, SentPath)}
    _remove_old(folder)
    jobs = [_Job(name, board, call, parcels, folder) for name, board in boards.items()]
    kept = {job.name: found for job in jobs if (found := job.kept()) is not None}
    for outcome in kept.values():
        told(outcome.board, f"kept from {outcome.kept}")

    def one(connection: Connection) -> Outcome:
        job = next(job for job in jobs if job.name == connection.name)
        outcome = attempt(connection, lambda: job.run(connection))
        told(job.name, "done" if outcome.failure is None else "failed")
        return outcome

    wanted = {name: board for name, board in boards.items() if name not in kept}
    outcomes = {**kept, **{outcome.board: outcome for outcome in at_once(wanted, one, told, transport)}}
    return [outcomes[name] for name in boards]


def _remove_old(folder: Path) -> None:
    """Remove records of calls that nobody has finished."""
    for path in folder.glob("*.json"):
        with suppress(OSError, OutputError):
            if path.stat().st_mtime < time.time() - FORGOTTEN_S:
                remove(path)


def forget(outcomes: Iterable[Outcome]) -> None:
    """Remove the records of a call whose results have been handed over, if it is finished."""
    outcomes = list(outcomes)
    if not exit_code_of(outcomes):
        for path in filter(None, (one.record for one in outcomes)):
            with cache_errors(path.parent):
                remove(path)


def facts_of(
    boards: Mapping[str, Board],
    work: Callable[[Connection], BoardFacts],
    told: Told,
    transport: Transport | None = None,
) -> dict[str, BoardState]:
    """What boards are, once `work` is done on each of them.

    Raises:
        KeyboardInterrupt: it is stopped.
    """

    def one(connection: Connection) -> BoardState:
        connection.told("connecting")
        try:
            found = BoardState(facts=work(connection))
        except ZtdeployError as error:
            found = BoardState(error=str(error), exit_code=error.exit_code)
        connection.told("done" if found.error is None else "failed")
        return found

    return dict(zip(boards, at_once(boards, one, told, transport), strict=True))


def attempt(connection: Connection, work: Callable[[], Outcome]) -> Outcome:
    """What became of a board, whose errors are its own."""
    try:
        return work()
    except ZtdeployError as error:
        return Outcome(connection.name, failure=Failed(message=str(error), exit_code=error.exit_code))


def at_once(
    boards: Mapping[str, Board], work: Callable[[Connection], _Made], told: Told, transport: Transport | None = None
) -> list[_Made]:
    """Work on all boards side by side.

    Raises:
        KeyboardInterrupt: all of it is stopped.
    """
    stop = Event()
    with connected(dict(boards), told, transport or Programs(), stop) as connections:
        if not connections:
            return []
        with ThreadPoolExecutor(len(connections)) as pool:
            running = [pool.submit(work, one) for one in connections]
            try:
                return [one.result() for one in running]
            except (KeyboardInterrupt, StoppedError):
                stop.set()
                raise KeyboardInterrupt from None


@dataclass(frozen=True)
class _Job:
    """A call for one board."""

    name: str
    board: Board
    call: Call
    parcels: Mapping[Path, Parcel]
    folder: Path  #: of records

    @property
    def words(self) -> tuple[str | InTree, ...]:
        own = self.parcels
        sent = {
            word: InTree(before=word.before, tree=own[word.path].tree.key)
            for word in self.call.words
            if isinstance(word, SentPath)
        }
        return tuple(word if isinstance(word, str) else sent[word] for word in self.call.words)

    @property
    def key(self) -> str:
        """The sha256 of everything that decides the result."""
        words = [word if isinstance(word, str) else [word.before, word.tree] for word in self.words]
        facts = [self.name, str(self.board), self.board.python, self.call.verb, words, code_digest()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def run(self, connection: Connection) -> Outcome:
        """
        Raises:
            ZtdeployError: there is no result.
        """
        connection.told("connecting")
        facts = connection.hello()
        for one in self.parcels.values():
            _check_machine(self.name, facts, one)
        connection.told("comparing files")
        places = deliver(connection, facts, list(self.parcels.values()))
        connection.told(f"starting {self.call.verb}")
        record = self._record() or _CallRecord(at=_now().isoformat())
        self._write(record)
        key = hashlib.sha256(f"{self.key} {record.at}".encode()).hexdigest()
        request = VerbRequest(key=key, words=(self.call.verb, "--json", "--verbose", *self.words))
        data, ended = connection.asked(request, lambda line: _tell(connection, line))
        here = {places[one.tree.key]: str(one.path) for one in self.parcels.values()}
        result = connection.as_record(self.call.result, _with_paths(data.get("result"), here))
        code = ended.code if ended.code in (0, *KNOWN_CODES) else 1
        failure = Failed(message=ended.last.removeprefix("error: "), exit_code=code) if code else None
        result = self.call.named(result, self.name)
        if failure is not None:
            return Outcome(self.name, result, failure, record=self._path)
        wanted = {name: FetchRequest(key=key, name=name) for name in self.call.fetched}
        files = {name: connection.ask(request, Fetched).content for name, request in wanted.items()}
        self._write(record.model_copy(update={"result": plain(result, by_alias=True), "files": files}))
        return Outcome(self.name, result, files=files, record=self._path)

    # The record of an unfinished call.

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.key}.json"

    def kept(self) -> Outcome | None:
        """The whole result of an earlier call, if there is one."""
        found = self._record()
        if found is None or found.result is None:
            return None
        try:
            result = self.call.result.model_validate(found.result)
        except ValidationError:
            return None
        return Outcome(self.name, result, files=found.files, kept=found.at[:16], record=self._path)

    def _record(self) -> _CallRecord | None:
        """The record of a call that was begun today, if there is one."""
        try:
            found = from_json(_CallRecord, read_text(self._path, TEXT_LIMIT))
            age = _now() - datetime.datetime.fromisoformat(found.at)
        except (InputError, TypeError, ValueError):  # that of pydantic is one, too
            return None
        return found if age.total_seconds() < FORGOTTEN_S else None

    def _write(self, record: _CallRecord) -> None:
        with cache_errors(self.folder):
            write(self._path, to_json(record))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _tell(connection: Connection, line: str) -> None:
    """What a verb says on a board, without its clock; errors come with its result."""
    if not line.startswith("error: "):
        connection.told(re.sub(r"^[\d.]+ s  ", "", line))


def _check_machine(name: str, facts: BoardFacts, sent: Parcel) -> None:
    """
    Raises:
        BoardError: no engine of a bundle is for the board's kind of processor.
    """
    profiles = list(sent.bundle.manifest.profiles.values()) if sent.bundle else []
    if profiles and all(one.machine and one.machine != facts.machine for one in profiles):
        wanted = ", ".join(sorted({one.machine for one in profiles}))
        raise BoardError(
            f"board '{name}' is of the kind {facts.machine}",
            f"{wanted}, which '{sent.path}' is for",
            "build the bundle with a profile for this board",
        )


def _with_paths(data: Any, here: Mapping[str, str]) -> Any:
    """A board's data with its paths as the user named them."""
    if isinstance(data, str):
        for there, path in here.items():
            if data == there or data.startswith(f"{there}/"):
                return path + data[len(there) :]
        return data
    if isinstance(data, dict):
        return {key: _with_paths(value, here) for key, value in data.items()}
    return [_with_paths(value, here) for value in data] if isinstance(data, list) else data

"""What a board does for a desk that reaches it by ssh: `python -m ztdeploy.target.board`.

One request comes on standard input, and one reply goes to standard output; what a verb says of its progress goes to
standard error. Files are kept by their content: the desk asks which ones are missing, sends these, and folders are made
of them by hard links, so that nothing is sent or stored twice. What arrives counts only if its hash is right.

    CACHE/remote/incoming/SHA256   arrived, or a part of it, which rsync goes on with
    CACHE/remote/objects/SHA256    whole
    CACHE/remote/trees/KEY/NAME    bundles and images; a bundle that was finalized here stays so
    CACHE/remote/runs/KEY          the folder that a verb runs in
"""

from __future__ import annotations

import hashlib
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath
from threading import Event, Thread
from typing import Annotated, Any, Literal, TextIO

from pydantic import AfterValidator, Base64UrlBytes, Field, TypeAdapter, ValidationError

from ztdeploy.core.bundle import sha256_of
from ztdeploy.core.cache import cache_folder
from ztdeploy.core.data import first_error, parse_json
from ztdeploy.core.errors import InputError, OutputError, ZtdeployError
from ztdeploy.core.files import (
    FORGOTTEN_S,
    hard_link,
    make_folder,
    move,
    read_bytes,
    remove,
    remove_folder,
    system_error,
)
from ztdeploy.core.folders import new_folder
from ztdeploy.core.kernel_files import text
from ztdeploy.core.locks import only_one
from ztdeploy.core.manifest import FileRecord, Sha256
from ztdeploy.core.processes import end_with_parent, module_command, own_standard_output
from ztdeploy.core.records import Record, to_json
from ztdeploy.core.text import json_text
from ztdeploy.target.machine_profile import board_name
from ztdeploy.version import __version__

#: What a verb's process says as long as it works; the desk takes a long silence for a hang.
ALIVE = "ztdeploy: alive"
_BEAT_S = 10.0
#: Seconds after which a verb's process looks whether the desk is still there.
_LOOK_S = 0.5
#: Bytes of a file that is handed over.
MOST_FETCHED = 40 * 2**20
#: Seconds that an interrupted verb has to end by itself.
_PATIENCE_S = 10.0
_FIX = "free space on the board; what earlier runs left there may go"
#: Free space that is left to others, in bytes.
_SPARE = 16 * 2**20


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or str(pure) != path or "\0" in path:
        raise ValueError("the path leaves its folder")
    return path


TreePath = Annotated[str, AfterValidator(_inside)]


class Tree(Record):
    """Files that are to lie on the board, below one name: a bundle, a folder of images, or one file."""

    key: Sha256  #: what decides its content
    files: dict[TreePath, FileRecord] = Field(min_length=1)

    @property
    def top(self) -> str:
        """The name of its folder, or of its one file."""
        return PurePosixPath(next(iter(self.files))).parts[0]


class InTree(Record):
    """A word of a command line that is a path on the board, behind an option's name and "=" if it has one."""

    before: str = ""
    tree: Sha256


class HelloRequest(Record):
    do: Literal["hello"] = "hello"


class PrepareRequest(Record):
    """Make trees of files that are there."""

    do: Literal["prepare"] = "prepare"
    trees: tuple[Tree, ...]


class VerbRequest(Record):
    """Run a verb. Its answer goes to standard output as it comes; it ends when standard input does."""

    do: Literal["run"] = "run"
    key: Sha256  #: names the folder that it runs in, where a sweep finds what an earlier one has measured
    words: tuple[str | InTree, ...]


class FetchRequest(Record):
    """Hand over a file that a verb has written into its folder."""

    do: Literal["fetch"] = "fetch"
    key: Sha256  #: of the verb's request
    name: str = Field(pattern=r"^[a-z]{1,16}\.[a-z]{1,8}$")


Request = Annotated[HelloRequest | PrepareRequest | VerbRequest | FetchRequest, Field(discriminator="do")]


class BoardFacts(Record):
    """What a board is, for the desk."""

    version: str  #: of ztdeploy
    code: str  #: sha256 of its modules
    python: str
    machine: str  #: such as "aarch64"
    title: str  #: of the board or processor
    rsync: bool  #: whether it has the program
    store: str  #: the folder that files are sent to
    free_bytes: int  #: where they are stored


class Fetched(Record):
    content: Base64UrlBytes


class Prepared(Record):
    """Either files are missing, or all trees are there."""

    missing: tuple[Sha256, ...] = ()
    places: dict[Sha256, str] = Field(default_factory=dict)  #: by tree: its path


@cache
def code_digest() -> str:
    """The sha256 of this package's modules: the same in a checkout and in a wheel made of it."""
    digest, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


# -------------------- the store


def store_folder() -> Path:
    return cache_folder() / "remote"


def facts() -> BoardFacts:
    """
    Raises:
        OutputError: the store cannot be made.
    """
    incoming = store_folder() / "incoming"
    make_folder(incoming, _FIX)
    return BoardFacts(
        version=__version__,
        code=code_digest(),
        python=platform.python_version(),
        machine=platform.machine(),
        title=board_name() or _processor(),
        rsync=shutil.which("rsync") is not None,
        store=str(incoming),
        free_bytes=shutil.disk_usage(incoming).free,
    )


def prepare(trees: Iterable[Tree], store: Path) -> Prepared:
    """Make trees of the files that have arrived, if none is missing.

    Raises:
        OutputError: what is missing would not fit, or nothing can be written.
    """
    trees = [tree for tree in trees if not (store / "trees" / tree.key / tree.top).exists()]
    make_folder(store / "objects", _FIX)
    with only_one(store / "lock", fix=_FIX):
        wanted = {file.sha256: file.bytes for tree in trees for file in tree.files.values()}
        missing = [sha256 for sha256, size in wanted.items() if not _is_stored(store, sha256, size)]
        if missing:
            _check_space(store, sum(wanted[sha256] for sha256 in missing))
            return Prepared(missing=tuple(missing))
        for tree in trees:
            with new_folder(store / "trees" / tree.key, tree.top) as folder:
                for path, file in tree.files.items():
                    make_folder((folder / path).parent, _FIX)
                    hard_link(store / "objects" / file.sha256, folder / path)
    return Prepared()


def _is_stored(store: Path, sha256: str, size: int) -> bool:
    """Whether a file is there; one that has just arrived is taken over if its hash is right."""
    stored, arrived = store / "objects" / sha256, store / "incoming" / sha256
    if stored.is_file():
        return True
    if not arrived.is_file() or arrived.stat().st_size < size:  # rsync goes on with a part
        return False
    sound = arrived.stat().st_size == size and sha256_of(arrived) == sha256
    _say(ALIVE)
    if not sound:
        remove(arrived)
        return False
    move(arrived, stored)
    return True


def _check_space(store: Path, size: int) -> None:
    there = sum(path.stat().st_size for path in (store / "incoming").glob("*"))
    free = shutil.disk_usage(store).free
    if size - there + _SPARE > free:
        raise OutputError(
            f"{size / 1e6:.1f} MB do not fit into '{store}', where {free / 1e6:.1f} MB are free",
            f"{(size - there + _SPARE) / 1e6:.1f} MB",
            _FIX,
        )


# -------------------- verbs


def run_verb(request: VerbRequest, store: Path, answers: TextIO) -> int:
    """Run a verb in a folder of its own, one at a time on this board, and return its exit code.

    Args:
        answers: where its own answer goes.

    Raises:
        OutputError: the folder cannot be made.
    """
    words = [str(_placed(word, store)) if isinstance(word, InTree) else word for word in request.words]
    folder = store / "runs" / request.key
    make_folder(folder, _FIX)
    turn = Event()
    waiting = Thread(target=_wait_for, args=(turn,), daemon=True)
    with only_one(store / "running", waiting.start, _FIX):
        turn.set()
        if waiting.ident is not None:
            waiting.join()  # a process with one thread alone is forked safely
        _remove_old_runs(folder)
        child = subprocess.Popen(
            module_command("ztdeploy", *words),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=answers,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        return _watched(child)


def _placed(word: InTree, store: Path) -> str:
    (top,) = (store / "trees" / word.tree).iterdir()
    return f"{word.before}{top}"


def _remove_old_runs(own: Path) -> None:
    for folder in own.parent.iterdir():
        with suppress(OSError, OutputError):
            if folder != own and folder.stat().st_mtime < time.time() - FORGOTTEN_S:
                remove_folder(folder, _FIX)


def _wait_for(turn: Event) -> None:
    """Say that all is well while another verb runs; end when nobody is left who asked for this one."""
    _say("waiting for another run on this board")
    beat = time.monotonic()
    while not turn.wait(_LOOK_S):
        if time.monotonic() - beat > _BEAT_S:
            beat = time.monotonic()
            _say(ALIVE)
        if _nobody_asks(0):
            os._exit(130)


def _nobody_asks(wait_s: float) -> bool:
    """Whether standard input has ended, because the desk or the connection has."""
    return bool(select.select([0], [], [], wait_s)[0]) and not os.read(0, 4096)


def _watched(child: subprocess.Popen[bytes]) -> int:
    """Wait for a process; end it, as Ctrl-C does, when nobody is left who asked for it."""
    worked, beat = -1, time.monotonic()
    while (code := child.poll()) is None:
        if _nobody_asks(_LOOK_S):
            _end(child)
            return 130
        if time.monotonic() - beat > _BEAT_S:
            before, worked, beat = worked, _ticks(child.pid), time.monotonic()
            if worked != before:
                _say(ALIVE)
    return code if code >= 0 else 1


def _end(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
    try:
        child.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _ticks(session: int) -> int:
    """Processor time of all processes of a session, in the kernel's ticks."""
    return sum(
        int(fields[11]) + int(fields[12]) for fields in _processes() if len(fields) > 12 and fields[3] == str(session)
    )


def _processes() -> Iterator[list[str]]:
    """Of each process what /proc says of it, from its state on (see proc(5))."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        yield (text(path) or "").rpartition(")")[2].split()


def _say(line: str) -> None:
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _processor() -> str:
    from ztdeploy.target.measure.machine import processor_name

    return processor_name()


# -------------------- requests


def answer(line: bytes, answers: TextIO) -> tuple[str, int]:
    """The reply to a request, as JSON, and the exit code; nothing of a verb, which answers itself."""
    try:
        request: Any = TypeAdapter(Request).validate_python(parse_json(line.decode()))
        store = store_folder()
        if isinstance(request, VerbRequest):
            return "", run_verb(request, store, answers)
        if isinstance(request, PrepareRequest):
            found = prepare(request.trees, store)
            places = (
                {} if found.missing else {one.key: str(store / "trees" / one.key / one.top) for one in request.trees}
            )
            return to_json(found.model_copy(update={"places": places})), 0
        if isinstance(request, FetchRequest):
            content = read_bytes(store / "runs" / request.key / request.name, MOST_FETCHED, what="the verb's file")
            return to_json(Fetched.model_construct(content=content)), 0
        return to_json(facts()), 0
    except ValidationError as error:
        where, wrong = first_error(error)
        return _error(InputError(f"a request with {where or 'JSON'}: {wrong}", "one of this version", "call ztdeploy"))
    except ValueError as error:
        return _error(InputError(f"a request: {error}", "JSON", "call ztdeploy"))
    except ZtdeployError as error:
        return _error(error)
    except OSError as error:
        return _error(system_error(error))


def _error(error: ZtdeployError) -> tuple[str, int]:
    return json_text({"error": {"message": str(error), "exit_code": error.exit_code}}), error.exit_code


def main() -> int:
    answers = own_standard_output()
    reply, code = answer(sys.stdin.buffer.readline(), answers)
    with suppress(BrokenPipeError), answers:
        answers.write(reply)
    return code


if __name__ == "__main__":
    sys.exit(main())

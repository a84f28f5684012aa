"""The cache of what takes long to make: where it lies, what its entries are named after, and who writes when.

An entry is named after everything that decides its content, so it is never out of date; whoever reads one checks it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from uuid import uuid4

from ztdeploy.errors import OutputError
from ztdeploy.processes import is_alive
from ztdeploy.profile import data_folder
from ztdeploy.tools import tool_versions

VARIABLE = "ZTDEPLOY_CACHE"
_PARTIAL = ".partial-"


def cache_folder(given: Path | None = None) -> Path:
    """The one given, or that of the environment: `ZTDEPLOY_CACHE`, or a folder below `XDG_CACHE_HOME` or `~/.cache`."""
    if given is not None:
        return given.absolute()
    if named := os.environ.get(VARIABLE):
        return Path(named).absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "ztdeploy"  # a relative one is to be ignored


def key_of(**facts: object) -> str:
    """The sha256 of what is said here, of ztdeploy's own files, and of the versions of its tools.

    Args:
        facts: what JSON can hold; the order of names does not matter.
    """
    everything = {"facts": facts, "tools": tool_versions(), "source": source_digest()}
    return hashlib.sha256(json.dumps(everything, sort_keys=True, allow_nan=False).encode()).hexdigest()


@cache
def source_digest() -> str:
    """The sha256 of all files of this package, and of the plugins: what is made depends on who makes it."""
    digest, package = hashlib.sha256(), Path(__file__).parent
    for folder in (package, data_folder("plugins")):
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Turn a cache that cannot be written into an error that says how to have another one."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"the cache '{folder}' cannot be used ({error.strerror or error})",
            "a writable folder with enough space",
            f"free space there, give --cache DIR, or set {VARIABLE}",
        ) from error


@contextmanager
def only_one(lock: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let one process at a time do what is in the block; the kernel lets the next one in when a process dies.

    Args:
        lock: a file, which stays.
        waiting: called where another process is in there.
    """
    with cache_errors(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _taken_at_once(descriptor):
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _taken_at_once(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all, in place of an earlier one.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}{_PARTIAL}{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what `write_whole` left there in processes that were killed."""
    for path in folder.glob(f".*{_PARTIAL}*"):
        pid = path.name.rpartition(_PARTIAL)[2]
        if pid.isdecimal() and int(pid) != os.getpid() and not is_alive(int(pid)):
            with suppress(OSError):
                path.unlink()

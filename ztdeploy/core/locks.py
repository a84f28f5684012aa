"""Locks between processes. The kernel holds them, so that a process that dies lets the next one in.

A folder itself is locked, so that nothing is left in it: this is why the library filelock, which makes a file, is not
used. Some network shares support no locks; there, every process is let in.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ztdeploy.core.errors import OutputError
from ztdeploy.core.files import CHOOSE, disk_errors, make_folder, remove_empty


def _nothing() -> None:
    pass


@contextmanager
def only_one(lock: Path, waiting: Callable[[], None] = _nothing, fix: str = CHOOSE) -> Iterator[None]:
    """Let one process at a time do what is in the block; the others wait.

    Args:
        lock: a file, which is made and stays.
        waiting: called where another process is in there.
        fix: what to do where the file cannot be made.

    Raises:
        OutputError: the file cannot be made.
    """
    make_folder(lock.parent, fix)
    with disk_errors(lock, fix):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    with _held(descriptor, waiting):
        yield


@contextmanager
def only_writer(folder: Path, waiting: Callable[[], None] = _nothing) -> Iterator[None]:
    """Likewise for those who write in a folder, which is locked itself.

    Raises:
        OutputError: there is no such folder, or it cannot be read.
    """
    with disk_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with _held(descriptor, waiting):
        yield


@contextmanager
def only_command(out: Path, what: str, fix: str = CHOOSE) -> Iterator[None]:
    """Make a folder, and keep every other such command from writing there; new ones that stay empty go again.

    Args:
        what: to call the command, such as "sweep".
        fix: what to do besides waiting.

    Raises:
        OutputError: another one is writing there right now, or the folder cannot be made.
    """

    def refuse() -> None:
        raise OutputError(f"another {what} is writing to '{out}'", "a folder of its own", f"wait for it, or {fix}")

    made = make_folder(out)
    try:
        with only_writer(out, refuse):
            yield
    finally:
        remove_empty(made)


@contextmanager
def _held(descriptor: int, waiting: Callable[[], None]) -> Iterator[None]:
    try:
        if not taken_at_once(descriptor):
            waiting()
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def taken_at_once(descriptor: int) -> bool:
    """Whether the lock is ours now, or the file system knows none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True

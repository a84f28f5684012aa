"""Folders that whole reports are written into: what may be there before, and who may write there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ztdeploy.bundle import disk_errors
from ztdeploy.errors import OutputError


def check_report_folder(out: Path, what: str, is_one: Callable[[], bool]) -> None:
    """
    Args:
        what: is written there, with its article, such as "a sweep".
        is_one: whether a folder that is not empty is such a report's; it may be written to again.

    Raises:
        OutputError: a file, or a folder with something else in it.
    """
    with disk_errors(out):
        above = next(folder for folder in out.absolute().parents if folder.exists())
        if not above.is_dir() or (out.exists() and not out.is_dir()):
            raise OutputError(f"'{out}' is a file, or lies below one", "a folder's path", "choose another --out")
        if not out.exists() or not any(out.iterdir()):
            return
    if not is_one():
        raise OutputError(
            f"'{out}' exists and holds something else than {what}", "a new folder", "choose another --out"
        )


@contextmanager
def only_writer(out: Path, what: str) -> Iterator[None]:
    """Make the folder, and keep every other such command from writing there; a new one that stays empty goes again.

    Args:
        what: the command does, such as "sweep".

    Raises:
        OutputError: another one is writing there right now, or the folder cannot be made.
    """
    existed = out.exists()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another {what} is writing to '{out}'", "a folder of its own", "wait for it, or choose another --out"
            ) from error
        yield
    finally:
        os.close(descriptor)
        if not existed:
            with suppress(OSError):  # it is not empty, as a rule
                out.rmdir()

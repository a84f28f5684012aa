"""Folders that are made as a whole: scratch folders that vanish, and folders that appear, or are replaced, at once.

All of them are made in a hidden folder of unguessable name, which holds a lock while its process lives. So the next
process recognises what a killed one left, and removes it. The hidden folder lies *where the result goes*: inside the
folder to be written if that exists, beside it if not. Thus nothing is ever moved to another file system: a folder may
be a mount point (a container's volume), or lie in one that cannot be written. A folder that exists stays the same
folder, with its owner, permissions and mounts; only its content is replaced, and put back if that fails.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, cast

from ztdeploy.core.errors import OutputError
from ztdeploy.core.files import (
    CHOOSE,
    FORGOTTEN_S,
    LONGEST_NAME,
    disk_errors,
    is_temporary,
    make_folder,
    nameable,
    new_name,
    output_error,
    remove_empty,
    settle,
)
from ztdeploy.core.locks import only_writer, taken_at_once

_LOCK = "lock"
_FULL_BYTES = 64 * 2**10
#: Entries that the system itself puts into the root of a volume.
_SYSTEMS = ("lost+found",)


@contextmanager
def scratch_folder(within: Path | None = None, fix: str = CHOOSE) -> Iterator[Path]:
    """A folder for temporary files, which is removed in the end.

    Args:
        within: the folder to make it in; by default the system's folder for temporary files.
        fix: what to do where it cannot be written.

    Raises:
        OutputError: it cannot be made, or the disk is full.
    """
    where, fix = (_temporary(), "set TMPDIR to another folder") if within is None else (within, fix)
    with _hidden(where, where, fix) as folder:
        yield folder


def scratch_file() -> TextIO:
    """An unnamed text file for the output of another process; the caller closes it.

    Raises:
        OutputError: it cannot be made.
    """
    where = _temporary()
    with disk_errors(where, "set TMPDIR to another folder"):
        return cast(TextIO, tempfile.TemporaryFile("w+", errors="replace", dir=where))


@contextmanager
def new_folder(final: Path, last: str) -> Iterator[Path]:
    """A folder that becomes `final`, or takes the place of all that is in it, when the block ends well.

    Args:
        final: not a link; its content may be replaced.
        last: the file that marks the folder as complete; it is removed first and written last.

    Raises:
        OutputError: it cannot be written, or the disk is full.
    """
    inside = final.is_dir()
    home = final if inside else final.parent
    made = make_folder(home)
    try:
        with _hidden(home, final, CHOOSE) as hidden:
            staged = hidden / "new"
            staged.mkdir()
            yield staged
            with disk_errors(final):
                if inside:
                    with only_writer(final):
                        _replace_content(final, staged, hidden / "old", last)
                else:
                    staged.rename(final)
    except BaseException:
        remove_empty(made)
        raise


def settle_folder(folder: Path) -> None:
    """Wait until a folder and all that is in it is on the disk.

    Raises:
        OutputError: the disk fails.
    """
    for home, _, files in os.walk(folder, topdown=False):
        for name in files:
            settle(Path(home, name))
        settle(Path(home))


def check_space(folder: Path, needed: int) -> None:
    """
    Raises:
        OutputError: fewer bytes are free in the file system of a folder.
    """
    with disk_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        given = f"{free / 1e6:.1f} MB are free in '{folder}'"
        raise OutputError(given, f"{needed / 1e6:.1f} MB", "free space there")


def check_folder_path(path: Path) -> None:
    """
    Raises:
        OutputError: it is the path of a file, or lies below a file.
    """
    with disk_errors(path):
        nearest = next((one for one in (nameable(path), *path.absolute().parents) if one.exists()), path)
        if not nearest.is_dir():
            where = "is a file" if nearest == path else f"lies below the file '{nearest}'"
            raise OutputError(f"'{path}' {where}", "a folder's path", CHOOSE)


def check_writable(folder: Path) -> None:
    """Fail early where nothing could be made in a folder, or in the nearest one above it that exists.

    Raises:
        OutputError: nothing can be made there.
    """
    with disk_errors(folder):
        whole = nameable(folder).absolute()
        nearest = next(one for one in (whole, *whole.parents) if one.exists())
        probe = nearest / new_name()
        probe.mkdir()
        probe.rmdir()


def check_file_writable(path: Path) -> None:
    """Fail early where a file could neither be made nor overwritten.

    Raises:
        OutputError: it could not.
    """
    with disk_errors(path):
        if len(os.fsencode(nameable(path).name)) > LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if path.is_file() and os.access(path, os.W_OK):
            return
    check_writable(path.parent)


def content_of(folder: Path) -> list[Path]:
    """The entries of a folder, without what killed processes left and what the system puts there."""
    return sorted(path for path in folder.iterdir() if not is_temporary(path.name) and path.name not in _SYSTEMS)


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise OutputError(
            "there is no folder for temporary files that can be written", "such a folder", "set TMPDIR to one"
        ) from error


@contextmanager
def _hidden(home: Path, out: Path, fix: str) -> Iterator[Path]:
    """A hidden folder in `home` that is locked while the block runs, and removed in the end.

    Args:
        out: the path that errors name.
    """
    with disk_errors(out, fix):
        _remove_dead(home)
        folder, lock = _new_hidden(home)
    try:
        yield folder
    except Exception as error:
        refused = _refused(error, folder)
        if refused is None:
            raise
        raise output_error(out, refused, fix) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _refused(error: Exception, folder: Path) -> OSError | None:
    """The system's refusal behind an error, if it concerns a hidden folder, whose name means nothing to users."""
    cause = error.__cause__ if isinstance(error, OutputError) else error
    if isinstance(cause, OSError):
        name = os.fsdecode(cause.filename) if isinstance(cause.filename, str | bytes) else None
        own = cause is error if name is None else Path(name).is_relative_to(folder)
        return cause if own and cause.errno is not None else None
    return None if isinstance(error, OutputError) else _unsaid(folder)


def _unsaid(folder: Path) -> OSError | None:
    """What keeps a folder's files from growing, for libraries that do not say why they could not write."""
    if not folder.is_dir():
        return None
    if shutil.disk_usage(folder).free < _FULL_BYTES:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = [path.lstat().st_size for path in folder.rglob("*")] if limit != resource.RLIM_INFINITY else []
    return OSError(errno.EFBIG, os.strerror(errno.EFBIG)) if limit in sizes else None


def _new_hidden(home: Path) -> tuple[Path, int]:
    while True:
        folder = home / new_name()
        folder.mkdir(mode=0o700)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if taken_at_once(lock):
            return folder, lock
        os.close(lock)  # a process that cleans up was quicker, and removes it


def _remove_dead(home: Path) -> None:
    """Remove what killed processes left."""
    with suppress(OSError):
        for folder in home.iterdir():
            if is_temporary(folder.name) and folder.is_dir() and not folder.is_symlink() and _is_dead(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_dead(folder: Path) -> bool:
    """Whether the process that made a hidden folder has ended."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:  # it has only just been made, as a rule
        return folder.stat().st_mtime < time.time() - FORGOTTEN_S
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is alive, or the file system knows no locks
        return False
    finally:
        os.close(lock)
    return True


def _replace_content(final: Path, staged: Path, old: Path, last: str) -> None:
    """Move what is in `final` to `old` and what is in `staged` to `final`, or leave everything as it was.

    Files are moved one by one: a folder from a lower layer of a container's file system cannot be renamed.
    """
    done: list[tuple[Path, Path]] = []
    try:
        before = files_of(final)
        for name in sorted(before, key=lambda name: name != last):
            done.append(_moved(final / name, old / name))
        for path in content_of(final):
            _remove_empty_folders(path)
        for name in sorted(files_of(staged), key=lambda name: name == last):
            done.append(_moved(staged / name, final / name))
    except BaseException:
        for source, target in reversed(done):
            _moved(target, source)
        raise


def _moved(source: Path, target: Path) -> tuple[Path, Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    return source, target


def files_of(folder: Path) -> list[str]:
    """Everything in a folder but folders (links to folders included), as paths relative to it."""
    found = [path for top in content_of(folder) for path in ([top] if _is_leaf(top) else top.rglob("*"))]
    return sorted(path.relative_to(folder).as_posix() for path in found if _is_leaf(path))


def _is_leaf(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()


def _remove_empty_folders(path: Path) -> None:
    for folder, _, _ in os.walk(path, topdown=False):
        Path(folder).rmdir()

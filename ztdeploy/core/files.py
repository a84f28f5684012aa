"""The only code that writes files and folders, and the one that reads files of unknown origin.

**Reading.** A path from outside may name anything: a FIFO nobody writes to, a device without an end, a folder, a file
of terabytes. `open_regular` opens regular files only and never waits; `read_bytes` and `read_text` are bounded as well.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ztdeploy.errors import InputError, ZtdeployError

#: What a text file of settings, names or records may hold; real ones have kilobytes.
TEXT_LIMIT = 64 * 2**20

_REASONS = {
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "it is a folder",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EEXIST: "a part of the path is not a folder",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.ENAMETOOLONG: "its name is too long",
    errno.ELOOP: "its links lead in a circle",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EFBIG: "a file may not be that large here (see 'ulimit -f')",
}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def reason_of(error: OSError) -> str:
    """Why the system refused, in words."""
    known = _REASONS.get(error.errno) if error.errno is not None else None
    return known or error.strerror or str(error) or "the system does not say why"


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, through links as well; anything else is refused and never waited for.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    try:
        _check_regular(os.stat(path))  # opening a device may already do something
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ValueError as error:  # a NUL, or characters that no file name can hold
        raise OSError(errno.EINVAL, "no file can have such a name") from error
    try:
        _check_regular(os.fstat(descriptor))  # it may be another one by now
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file")


def read_bytes(
    path: Path,
    limit: int,
    *,
    what: str = "file",
    error: type[ZtdeployError] = InputError,
    expected: str | None = None,
    fix: str = "check the path",
) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Args:
        what: to call it in an error, such as "schedule".
        error: what is raised, with `expected` and `fix`.

    Raises:
        ZtdeployError: of the kind given, if the file cannot be opened, is no regular file, or is larger.
    """
    expected = expected or f"a regular file of at most {limit} bytes"
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1) or b""
    except OSError as refused:
        raise error(f"{what} '{path}' cannot be read: {reason_of(refused)}", expected, fix) from refused
    if len(content) > limit:
        raise error(f"{what} '{path}' has more than {limit} bytes", expected, fix)
    return content


def read_text(
    path: Path,
    limit: int = TEXT_LIMIT,
    *,
    what: str = "file",
    error: type[ZtdeployError] = InputError,
    expected: str | None = None,
    fix: str = "check the path",
) -> str:
    """The same as `read_bytes`, as text in UTF-8, with or without a byte order mark.

    Raises:
        ZtdeployError: as `read_bytes`; or it is no text.
    """
    content = read_bytes(path, limit, what=what, error=error, expected=expected, fix=fix)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise error(
            f"{what} '{path}' is not text in UTF-8 (byte {wrong.start})", expected or "text in UTF-8", fix
        ) from wrong

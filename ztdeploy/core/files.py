"""Files: reading files of unknown origin, and the only code that writes, together with `core/folders.py` (folders that
are made or replaced as a whole) and `core/locks.py`.

**Reading.** A path from outside may name anything: a FIFO without a writer, an endless device, a folder, a file of
terabytes. `open_regular` opens regular files only and never waits; `read_bytes` and `read_text` also bound the size.

**Writing.** A file appears whole or not at all: its content goes into a temporary file beside it, which then takes its
place. The temporary file has an unguessable name and is created exclusively, so that a link or FIFO that somebody
prepared there is never followed or waited for. What stood at the path, such as a link, is replaced and not written
into. An existing regular file is written into only where a rename cannot work: it is a mount point, or its folder may
not be written but the file may. What the system refuses becomes an `OutputError` of one line.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypedDict, TypeVar

from ztdeploy.core.errors import InputError, OutputError, ZtdeployError

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Largest text file of settings, names or records, in bytes; real ones have kilobytes.
TEXT_LIMIT = 64 * 2**20
#: The default remedy for a path that cannot be written.
CHOOSE = "choose another --out"
#: The longest name and path that Linux takes, in bytes.
LONGEST_NAME, LONGEST_PATH = 255, 4095
#: A temporary file or folder of this age is not written into any more.
FORGOTTEN_S = 24 * 3600
_PREFIX, _SUFFIX = ".ztdeploy-", ".partial"
#: Errors that more space would mend.
_SPACE = (errno.ENOSPC, errno.EDQUOT)
_REASONS = {
    errno.ENOENT: "there is no such file or folder",
    errno.ENOTEMPTY: "something else has appeared there meanwhile",
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
_Path = TypeVar("_Path", str, Path)
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


# -------------------- reading


def system_error(error: OSError) -> InputError:
    """The error of anything that the system refused."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    given = f"the system refused something: {reason_of(error)}" if name is None else f"'{name}': {reason_of(error)}"
    return InputError(
        given, "a file, folder or device that can be used so", "check the path, its permissions and space"
    )


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, also through links; anything else is refused and not waited for.

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


@contextmanager
def path_in_utf8(path: Path) -> Iterator[str]:
    """A path for libraries that refuse names which are not UTF-8: Linux also reaches an open folder by its number."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{folder}/{path.name}"
        finally:
            os.close(folder)
    else:
        yield str(path)


class Words(TypedDict, total=False):
    """How errors about a file that cannot be read speak of it."""

    what: str  #: such as "schedule"; by default "file"
    error: type[ZtdeployError]  #: by default `InputError`
    expected: str
    fix: str


def unreadable(path: Path, problem: str, expected: str, words: Words) -> ZtdeployError:
    """The error of a file that cannot be read; `expected` stands where the words do not say it."""
    given = f"{words.get('what', 'file')} '{path}' {problem}"
    return words.get("error", InputError)(given, words.get("expected", expected), words.get("fix", "check the path"))


def read_bytes(path: Path, limit: int, **words: Unpack[Words]) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        ZtdeployError: of the kind given, if the file cannot be opened, is no regular file, or is larger.
    """
    try:
        with open_regular(path) as file:
            large = os.fstat(file.fileno()).st_size > limit  # files of the kernel have no size
            content = b"" if large else file.read(limit + 1) or b""
    except OSError as refused:
        problem = f"cannot be read: {reason_of(refused)}"
        raise unreadable(path, problem, f"a regular file of at most {limit} bytes", words) from refused
    if large or len(content) > limit:
        words["expected"] = f"at most {limit}"
        raise unreadable(path, f"has more than {limit} bytes", "", words)
    return content


def read_text(path: Path, limit: int = TEXT_LIMIT, **words: Unpack[Words]) -> str:
    """The same as `read_bytes`, as text in UTF-8, with or without a byte order mark.

    Raises:
        ZtdeployError: as `read_bytes`; or it is no text.
    """
    content = read_bytes(path, limit, **words)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        problem = f"cannot be read: it is not text in UTF-8 (byte {wrong.start})"
        raise unreadable(path, problem, "text in UTF-8", words) from wrong


# -------------------- writing


@contextmanager
def disk_errors(out: Path, fix: str = CHOOSE) -> Iterator[None]:
    """Turn what the system refuses about `out` into an error that says so.

    Args:
        fix: what to do besides freeing space.
    """
    try:
        yield
    except OSError as error:
        error.filename = str(out) if error.filename is None else error.filename
        raise output_error(out, error, fix) from error


def output_error(out: Path, error: OSError, fix: str = CHOOSE) -> OutputError:
    """The error of a path that cannot be written."""
    fix = f"free space there, or {fix}" if error.errno in _SPACE else fix
    return OutputError(f"cannot write '{out}': {reason_of(error)}", "a writable folder with enough space", fix)


@contextmanager
def writing(path: Path, *, executable: bool = False) -> Iterator[BinaryIO]:
    """A file that takes the place of `path`, whole, when the block ends well, and is gone when it does not.

    Raises:
        OutputError: it cannot be written.
    """
    with disk_errors(path):
        partial, file = _open_beside(path, 0o777 if executable else 0o666)
        try:
            with file:
                yield file
                file.flush()
                if partial is None:
                    _write_into(path, file)
            if partial is not None:
                _take_place(partial, path)
            _log.debug("wrote %s", path)
        finally:
            if partial is not None:
                with suppress(OSError):
                    os.unlink(partial)


def write(path: Path, content: bytes | memoryview | str, *, executable: bool = False) -> None:
    """Write a file whole or not at all, in place of an earlier one, and the folders above it; text as UTF-8.

    Raises:
        OutputError: it cannot be written.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content  # work is never lost
    made = make_folder(path.parent)
    try:
        with writing(path, executable=executable) as file:
            file.write(data)
    except BaseException:
        remove_empty(made)
        raise


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's content, whole or not at all.

    Raises:
        OutputError: it cannot be read or written.
    """
    with writing(path) as file, open_regular(source) as content:
        shutil.copyfileobj(content, file, 2**20)


def move(source: Path, path: Path) -> None:
    """Move a file to another name in the same file system, in place of what is there; of a link, the link itself.

    Raises:
        OutputError: it cannot be moved.
    """
    with disk_errors(path):
        os.replace(source, path)


def link(target: Path, path: Path) -> None:
    """Make a link where nothing is yet.

    Raises:
        OutputError: it cannot be made.
    """
    with disk_errors(path):
        os.symlink(target, path)


def hard_link(source: Path, path: Path) -> None:
    """Give a file a second name where nothing is yet; a copy, where the file system knows no such names.

    Raises:
        OutputError: it cannot be made.
    """
    with disk_errors(path):
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP):
                raise
            copy_file(source, path)


def point(path: Path, target: str) -> None:
    """Make a link, or have one lead elsewhere, in one step that survives a loss of power at any moment.

    Raises:
        OutputError: it cannot be made.
    """
    partial = path.parent / new_name()
    with disk_errors(path):
        try:
            os.symlink(target, partial)
            settle(path.parent)  # the new link is on the disk before it takes the place of the old one
            os.replace(partial, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)
        settle(path.parent)


def settle(path: Path) -> None:
    """Wait until what a file holds, or which names a folder holds, is on the disk.

    Raises:
        OutputError: it cannot be opened, or the disk fails.
    """
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file if it is there; of a link, the link itself.

    Raises:
        OutputError: it cannot be removed.
    """
    with disk_errors(path), suppress(FileNotFoundError):
        os.unlink(path)


def remove_folder(path: Path, fix: str = CHOOSE) -> None:
    """Remove a folder and all that is in it, if it is there; a link to one is not followed.

    Raises:
        OutputError: it cannot be removed.
    """
    with disk_errors(path, fix), suppress(FileNotFoundError):
        shutil.rmtree(path)


def make_folder(path: Path, fix: str = CHOOSE, *, own: bool = False) -> list[Path]:
    """Make a folder, and those above it.

    Args:
        fix: what to do where it cannot be made.
        own: a link to elsewhere, which somebody may have prepared, is refused and not written through.

    Returns:
        Those that were not there, the innermost first.

    Raises:
        OutputError: it cannot be made.
    """
    if own and os.path.islink(path):
        raise OutputError(f"cannot write to '{path}': it is a link", "a folder", fix)
    made: list[Path] = []
    with disk_errors(path, fix):
        missing = [folder for folder in (path, *path.parents) if not os.path.isdir(nameable(folder))]
        try:
            for folder in reversed(missing):
                with suppress(FileExistsError):
                    os.mkdir(folder)
                    made.insert(0, folder)
                if not os.path.isdir(folder):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        except OSError:
            remove_empty(made)
            raise
    return made


def remove_empty(folders: list[Path]) -> None:
    """Remove folders that hold nothing, innermost first."""
    with suppress(OSError):
        for folder in folders:
            os.rmdir(folder)


def new_name() -> str:
    """The name of a hidden temporary file or folder, which nobody can guess."""
    return f"{_PREFIX}{os.urandom(12).hex()}{_SUFFIX}"


def is_temporary(name: str) -> bool:
    """Whether that is the name of a temporary file or folder of ours, perhaps of a killed process."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_temporary(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < time.time() - FORGOTTEN_S:
                        os.unlink(entry.path)


def is_there(path: Path) -> bool:
    """Whether anything of that name exists, including a link to nothing.

    Raises:
        OSError: the system cannot tell.
    """
    return os.path.lexists(nameable(path))


def nameable(path: _Path) -> _Path:
    """The path, if the system accepts it at all.

    Raises:
        OSError: it holds a NUL, or characters that no file name can hold.
    """
    try:
        nul = b"\0" in os.fsencode(path)
    except UnicodeEncodeError:
        nul = True
    if nul:
        raise OSError(errno.EINVAL, "no file can have such a name")
    return path


def _open_beside(path: Path, mode: int) -> tuple[Path | None, BinaryIO]:
    """A new file in the folder of `path`; an unnamed one where the folder may not be written but `path` may."""
    partial = nameable(path).parent / new_name()
    if os.path.isdir(path) and not os.path.islink(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if len(os.fsencode(path.name)) > LONGEST_NAME:  # the temporary name would hide it until the work is done
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return partial, os.fdopen(os.open(partial, flags, mode), "w+b")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not os.access(path, os.W_OK):
            raise
        return None, tempfile.TemporaryFile()


def _take_place(partial: Path, path: Path) -> None:
    try:
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):  # what a mount point answers
            raise
        with open(partial, "rb") as file:
            _write_into(path, file)


def _write_into(path: Path, content: BinaryIO) -> None:
    """Overwrite a regular file that cannot be replaced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        _check_regular(os.fstat(descriptor))
        content.seek(0)
        shutil.copyfileobj(content, file, 2**20)
        file.truncate()

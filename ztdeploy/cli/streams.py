"""The standard streams, which may be closed, full, or gone.

A number that is closed would be given to the next file that is opened, and what a library prints would go into it. So
closed streams are opened first: standard output so that writing to it fails, as the caller made it fail, with an error
of ours; standard error so that nobody hears it. What cannot be said there never ends a command.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from ztdeploy.core.errors import StreamError
from ztdeploy.core.files import reason_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Output(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:  # whoever read it, such as 'head', has had enough
            raise
        except OSError as error:
            reason = "it is closed" if error.errno == errno.EBADF else reason_of(error)
            raise StreamError(
                f"standard output cannot be written: {reason}", "a terminal, a pipe or a file with space", "redirect it"
            ) from error


class _Remarks(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare_streams() -> None:
    """Open what is closed, and have errors of ours from standard output and none from standard error."""
    for descriptor, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # the lowest number that is free, which is this one
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Remarks(2, "w", closefd=False), sys.stderr)


def hear_interrupts(heard: Callable[[], None]) -> None:
    """Have Ctrl-C heard at once, in a thread: Python's own handler waits until a library's call has returned."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def listen() -> None:
        while signals := os.read(reading, 64):
            if signal.SIGINT in signals:
                heard()

    threading.Thread(target=listen, daemon=True).start()


def silence(descriptor: int) -> None:
    """Let whatever is still to be written there go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _text(raw: io.FileIO, before: TextIO | None) -> TextIO:
    """The stream that shows what its encoding does not know by its number, instead of refusing it.

    Args:
        before: the stream as Python opened it; None where it was closed.
    """
    known = before if isinstance(before, io.TextIOWrapper) else None
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=known.encoding if known else "utf-8",
        errors="backslashreplace",
        line_buffering=known.line_buffering if known else True,
        write_through=known.write_through if known else False,
    )

"""Programs of this machine: ssh, rsync and sftp, watched while they run.

`Transport` is the seam: it runs one program and hands back what it said. Tests put another one in its place.
"""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import IO, Any, Protocol

from ztdeploy.core.files import TEXT_LIMIT
from ztdeploy.core.text import printable
from ztdeploy.target.board import ALIVE

#: Lines of standard error that are kept, and bytes of one line.
_LINES, _LINE = 40, 4096

Heard = Callable[[str], None]


class StoppedError(Exception):
    """The user has interrupted the whole call."""


@dataclass(frozen=True)
class Ended:
    """A program that has ended."""

    code: int
    out: bytes = b""
    err: tuple[str, ...] = ()  #: its last lines
    silent: bool = False  #: it was ended because nothing came from it
    too_much: bool = False  #: it was ended because too much came from it

    @property
    def last(self) -> str:
        """What it said last, for an error."""
        return next((printable(line, 300) for line in reversed(self.err) if line.strip()), f"exit code {self.code}")


class Transport(Protocol):
    def __call__(
        self, command: Sequence[str], sent: bytes, *, heard: Heard, stop: Event, silence_s: float | None, held: bool
    ) -> Ended:
        """Run a program of this machine.

        Args:
            sent: what goes to its standard input.
            heard: is told each line of standard error; of standard output, where nothing is held.
            stop: once set, the program is ended.
            silence_s: the program is ended when nothing has come from it for so long; None: never.
            held: standard input stays open until the program ends, and standard output is kept for the answer.

        Raises:
            StoppedError: `stop` was set.
            OSError: there is no such program.
        """


class Programs:
    """The transport that runs programs."""

    def __call__(
        self, command: Sequence[str], sent: bytes, *, heard: Heard, stop: Event, silence_s: float | None, held: bool
    ) -> Ended:
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as child:
            try:
                return _heard_out(child, sent, heard, stop, silence_s, held)
            finally:
                _end(child)


def _heard_out(
    child: subprocess.Popen[bytes], sent: bytes, heard: Heard, stop: Event, silence_s: float | None, held: bool
) -> Ended:
    assert child.stdin is not None
    out, err, last = bytearray(), list[str](), time.monotonic()
    said: dict[Any, _Lines] = {child.stdout: _Lines(None if held else heard), child.stderr: _Lines(heard, err)}
    with selectors.DefaultSelector() as waiting:
        for stream in (child.stdin, *said):
            os.set_blocking(stream.fileno(), False)
            waiting.register(stream, selectors.EVENT_WRITE if stream is child.stdin else selectors.EVENT_READ)
        while said:
            if stop.is_set():
                raise StoppedError
            ready: list[Any] = [key.fileobj for key, _ in waiting.select(0.2)]
            if child.stdin in ready:
                sent = _written(child.stdin, sent)
                if not sent:
                    waiting.unregister(child.stdin)
                    if not held:
                        child.stdin.close()
            for stream in said.keys() & {*ready}:
                data, last = os.read(stream.fileno(), 2**16), time.monotonic()
                if not data:
                    waiting.unregister(stream)
                    del said[stream]
                elif held and stream is child.stdout:
                    out += data
                else:
                    said[stream].told(data)
            if len(out) > TEXT_LIMIT:
                return Ended(1, err=tuple(err), too_much=True)
            if silence_s is not None and time.monotonic() - last > silence_s:
                return Ended(1, err=tuple(err), silent=True)
            if not ready and child.poll() is not None:  # a shared connection lives on, and may hold the pipes
                break
    return Ended(child.wait(), bytes(out), tuple(err))


def _written(stream: IO[bytes], data: bytes) -> bytes:
    """What is left to be written."""
    try:
        return data[os.write(stream.fileno(), data[: 2**16]) :] if data else data
    except BlockingIOError:
        return data
    except OSError:  # nobody reads any more, and says why
        return b""


class _Lines:
    """Lines of a stream whose end, a carriage return included, may be anywhere."""

    def __init__(self, heard: Heard | None, kept: list[str] | None = None) -> None:
        self._heard, self._kept, self._rest = heard, kept, b""

    def told(self, data: bytes) -> None:
        *whole, rest = re.split(rb"[\r\n]+", self._rest + data)
        self._rest = rest[-_LINE:]
        for line in whole:
            text = printable(line[:_LINE].decode(errors="replace"), 300).strip()
            if text and text != ALIVE:
                if self._kept is not None:
                    self._kept.append(text)
                    del self._kept[:-_LINES]
                if self._heard is not None:
                    self._heard(text)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        with suppress(OSError):
            child.stdin.close()
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()

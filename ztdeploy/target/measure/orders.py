"""Orders to a process that measures and does nothing else, and what it answers: one line of JSON each.

Several sessions of ONNX Runtime in one process spin against each other, so every engine has a process of its own.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from ztdeploy.core import errors
from ztdeploy.core.errors import BundleError, EnvironmentLacksError, MissingExtraError, ZtdeployError
from ztdeploy.core.folders import scratch_file
from ztdeploy.core.processes import how_it_ended, module_environment
from ztdeploy.core.records import Record, from_json, to_json

_log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer", bound=BaseModel)
#: How long a process may take to end once it is not needed any more.
_END_S = 10


class TimingOrder(Record):
    """Time calls: a number of them, or for some seconds but at least one."""

    iterations: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, ge=0)
    lead_in: int = Field(default=0, ge=0)  #: calls ahead of these that are not counted


class Timing(Record):
    """What came out of an order."""

    samples_ms: list[float]
    peak_rss_mb: float  #: since the process started, megabytes of 10^6 bytes
    clock_mhz: float | None  #: of the fastest usable core, right after the last call
    gpu_clock_mhz: float | None  #: likewise, on a Jetson
    answered: tuple[int, ...] = ()  #: of a cascade: how many images each stage answered in the calls that count


class Refusal(Record):
    """One of our own errors, as a process tells of it."""

    kind: str  #: the name of its class
    given: str
    expected: str
    fix: str

    @classmethod
    def of(cls, error: ZtdeployError) -> Refusal:
        return cls(kind=type(error).__name__, given=error.given, expected=error.expected, fix=error.fix)

    def error(self, name: str) -> ZtdeployError:
        """
        Args:
            name: of what the process was to measure.
        """
        kind: type[ZtdeployError] = getattr(errors, self.kind, BundleError)
        if kind is MissingExtraError:  # which takes other arguments
            kind = EnvironmentLacksError
        return kind(f"'{name}': {self.given}", self.expected, self.fix)


class Worker(AbstractContextManager["Worker"]):
    """A child process that carries out one order per line of its standard input, see `measure.worker`."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """
        Args:
            name: of what it measures, for messages.
            command: starts it. The time of the order to start it, by the monotonic clock in ns, is added.

        Raises:
            OutputError: there is no room for temporary files.
        """
        _log.debug("starting %s", " ".join(command))
        self._name = name
        self._words = scratch_file()  # not a pipe: one that nobody reads fills up, and stops the process
        self._process = subprocess.Popen(
            [*command, str(time.monotonic_ns())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env=module_environment(),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        with self._words, self._process:  # which closes its pipes and waits for it
            self._process.stdin.close()  # which it takes for the end
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_END_S if kind is None else 0)
            self._process.kill()  # where it has not ended

    def carry_out(self, order: Record, kind: type[_Answer]) -> _Answer:
        """Have an order carried out.

        Args:
            kind: of the answer.

        Raises:
            ZtdeployError: see `answer`.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; its last words are read below
            os.write(self._process.stdin.fileno(), to_json(order).encode() + b"\n")
        return self.answer(kind)

    def answer(self, kind: type[_Answer]) -> _Answer:
        """The next line that the process says.

        Raises:
            BundleError: the process ended by itself, or said something else.
            EnvironmentLacksError: the process was killed.
            ZtdeployError: what kept it from carrying out the order.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._stopped()
        with suppress(ValidationError):
            return from_json(kind, line)
        with suppress(ValidationError):
            raise from_json(Refusal, line).error(self._name)
        raise BundleError(f"an answer about '{self._name}' that is none", "figures", "report this as a bug")

    def _stopped(self) -> ZtdeployError:
        """Why there is no answer."""
        code = self._process.wait()
        self._words.seek(0)
        last = (self._words.read().strip().splitlines() or ["it said nothing"])[-1]
        given = f"the process that measures '{self._name}' {how_it_ended(code)}"
        if code < 0:
            return EnvironmentLacksError(
                given,
                "a process that lives until it has been measured",
                "if memory ran out (see 'dmesg'), close other programs, or measure fewer configurations at a time",
            )
        expected = "a bundle that this machine can run"
        return BundleError(f"{given} ({last})", expected, "run 'ztdeploy verify' on the bundle")

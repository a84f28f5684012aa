"""Latency of several variants, each in a process of its own, taking turns so that drift hits all alike."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Protocol, TextIO

from ztdeploy.core import errors
from ztdeploy.core.errors import BundleError, EnvironmentLacksError, MissingExtraError, ZtdeployError
from ztdeploy.core.folders import scratch_file
from ztdeploy.core.processes import how_it_ended, module_command, module_environment
from ztdeploy.core.records import from_json, to_json
from ztdeploy.target.measure.protocol import Answer, ColdStart, Hello, Order, Refusal
from ztdeploy.target.measure.statistics import median_ratio


class Subject(Protocol):
    """What one process times, whatever it is."""

    @property
    def variant(self) -> str:
        """Its name, for messages."""

    def command(self, ordered_ns: int) -> list[str]:
        """Starts a process that speaks `measure.protocol`; now is `ordered_ns` by the monotonic clock."""


@dataclass(frozen=True)
class Configuration:
    """An engine of a bundle."""

    bundle: Path
    variant: str
    profile: str
    threads: int = 0  #: 0: as the profile says
    batch: int = 1

    def command(self, ordered_ns: int) -> list[str]:
        arguments = [str(self.bundle), self.variant, self.profile, str(self.threads), str(self.batch), str(ordered_ns)]
        return module_command("ztdeploy.target.measure.worker", *arguments)


@dataclass
class Measurement:
    """What came out of one process, in milliseconds and megabytes."""

    configuration: Configuration
    import_ms: float
    load_ms: float
    first_ms: float
    rounds_ms: list[list[float]] = field(default_factory=list)
    peak_rss_mb: float = 0.0

    @property
    def median_ms(self) -> float:
        return median(sample for samples in self.rounds_ms for sample in samples)

    def speedup_over(self, other: Measurement) -> float:
        """How many times faster than another, as the median of the rounds' ratios."""
        return median_ratio(other.rounds_ms, self.rounds_ms)


def measure_latency(
    configurations: Sequence[Configuration],
    *,
    rounds: int = 5,
    iterations: int = 10,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> list[Measurement]:
    """Time each configuration `rounds` times `iterations`, alternating between them.

    `bench.run_bench` does the same with intervals, warnings and partial results.

    Raises:
        BundleError: a process could not load or run its engine.
        EnvironmentLacksError: a process was killed.
    """
    with ExitStack() as stack:
        workers, measured = [], []
        for done, configuration in enumerate(configurations):
            progress(f"loading {configuration.variant}", done, len(configurations))
            worker = stack.enter_context(Worker(configuration))
            start = worker.cold_start
            workers.append(worker)
            measured.append(Measurement(configuration, start.import_ms, start.load_ms, start.first_ms))
        for turn in range(rounds + 1):  # the first round warms up and is not counted
            progress(f"measuring, round {turn} of {rounds}", turn, rounds + 1)
            for worker, own in zip(workers, measured, strict=True):
                answer = worker.measure(Order(iterations=iterations))
                own.peak_rss_mb = answer.peak_rss_mb
                if turn:
                    own.rounds_ms.append(answer.samples_ms)
        return measured


class Worker(AbstractContextManager["Worker"]):
    """A child process with one engine in it; entering waits until the engine has run once."""

    cold_start: ColdStart

    def __init__(self, configuration: Subject) -> None:
        self.configuration = configuration
        # Not a pipe: one that nobody reads fills up, and stops the process.
        self._words = scratch_file()
        self._process = subprocess.Popen(
            configuration.command(time.monotonic_ns()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env=module_environment(),
        )

    def __enter__(self) -> Worker:
        """
        Raises:
            ZtdeployError: what kept the engine from loading, or the process from living.
        """
        try:
            hello = from_json(Hello, self._line())
            if hello.ready is None:
                assert hello.refusal is not None
                raise refused(self.configuration.variant, hello.refusal)
            self.cold_start = hello.ready
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:  # whatever it still does, nobody waits for it
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._words.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def measure(self, order: Order) -> Answer:
        """Time calls.

        Raises:
            BundleError: the process ended by itself.
            EnvironmentLacksError: it was killed.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended; its last words are read below
            self._process.stdin.write(to_json(order) + "\n")
            self._process.stdin.flush()
        return from_json(Answer, self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._ended()
        return line

    def _ended(self) -> ZtdeployError:
        return stopped(self.configuration.variant, self._process.wait(), self._words)


def stopped(name: str, code: int, words: TextIO) -> ZtdeployError:
    """Why there is no answer about something: its process ended by itself, or was killed.

    Args:
        words: what it wrote to standard error.
    """
    words.seek(0)
    last = (words.read().strip().splitlines() or ["it said nothing"])[-1]
    given = f"the process that measures '{name}' {how_it_ended(code)}"
    if code < 0:
        return EnvironmentLacksError(
            given,
            "a process that lives until it has been measured",
            "if memory ran out (see 'dmesg'), close other programs, or measure fewer configurations at a time",
        )
    return BundleError(f"{given} ({last})", "a bundle that this machine can run", "run 'ztdeploy verify' on the bundle")


def refused(name: str, refusal: Refusal) -> ZtdeployError:
    """One of our own errors, as a process told of it."""
    kind: type[ZtdeployError] = getattr(errors, refusal.kind, BundleError)
    if kind is MissingExtraError:  # which takes other arguments
        kind = EnvironmentLacksError
    return kind(f"'{name}': {refusal.given}", refusal.expected, refusal.fix)

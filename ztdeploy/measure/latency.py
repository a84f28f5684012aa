"""Latency of several variants, each in a process of its own, taking turns so that drift hits all alike."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from ztdeploy.errors import BundleError
from ztdeploy.processes import module_command, module_environment


@dataclass(frozen=True)
class Configuration:
    """What one process times."""

    bundle: Path
    variant: str
    profile: str
    threads: int = 0  #: 0: as the profile says
    batch: int = 1


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
        pairs = zip(self.rounds_ms, other.rounds_ms, strict=True)
        return median(median(theirs) / median(ours) for ours, theirs in pairs)


def measure_latency(
    configurations: Sequence[Configuration],
    *,
    rounds: int = 5,
    iterations: int = 10,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> list[Measurement]:
    """Time each configuration `rounds` times `iterations`, alternating between them.

    Raises:
        BundleError: a process could not load or run its engine.
    """
    with ExitStack() as stack:
        workers = []
        for done, configuration in enumerate(configurations):
            progress(f"loading {configuration.variant}", done, len(configurations))
            workers.append(stack.enter_context(_Worker(configuration)))
        for turn in range(rounds + 1):  # the first round warms up and is not counted
            progress(f"measuring, round {turn} of {rounds}", turn, rounds + 1)
            for worker in workers:
                worker.measure(iterations, count=turn > 0)
        return [worker.measurement for worker in workers]


class _Worker:
    """A child process with one engine in it."""

    def __init__(self, configuration: Configuration) -> None:
        c = configuration
        arguments = [str(c.bundle), c.variant, c.profile, str(c.threads), str(c.batch)]
        self._configuration = configuration
        self._process = subprocess.Popen(
            module_command("ztdeploy.measure.worker", *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=module_environment(),
        )

    def __enter__(self) -> _Worker:
        try:
            self.measurement = Measurement(self._configuration, **self._answer())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def measure(self, iterations: int, *, count: bool) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended; its last words are read below
            self._process.stdin.write(json.dumps({"iterations": iterations}) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        self.measurement.peak_rss_mb = answer["peak_rss_mb"]
        if count:
            self.measurement.rounds_ms.append(answer["samples_ms"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            last = (self._process.stderr.read().strip().splitlines() or ["no message"])[-1]
            raise BundleError(
                f"the process that measures '{self._configuration.variant}' ended ({last})",
                "a bundle that this machine can run",
                "run 'ztdeploy verify' on it",
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

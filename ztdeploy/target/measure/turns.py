"""Engines that take turns, each in a process of its own, so that whatever slows the machine down hits all alike.

A process holds one engine, waits while the others work, and times calls when it is told to. Calls within one process
take turns with `take_turns`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.processes import module_command
from ztdeploy.core.progress import Progress, parts, silent
from ztdeploy.target.measure.bench_report import ColdStart, Turn
from ztdeploy.target.measure.machine import CpuMeter
from ztdeploy.target.measure.orders import Timing, TimingOrder, Worker
from ztdeploy.target.measure.statistics import Rounds, median_ratio, overall_median

#: About how long a process takes to load an engine, and to make the calls of a round where these are counted.
_START_S, _CALLS_S = 1.0, 0.3


class Timeable(Protocol):
    """What one process times, whatever it is."""

    @property
    def variant(self) -> str:
        """Its name, for messages."""

    def command(self) -> list[str]:
        """Starts a process that calls `measure.worker.serve`."""


@dataclass(frozen=True)
class Configuration:
    """An engine of a bundle, or its cascade on images."""

    bundle: Path
    variant: str
    profile: str
    threads: int = 0  #: 0: as the profile says
    batch: int = 1
    data: Path | None = None  #: images to run the cascade on; None: run the variant

    def command(self) -> list[str]:
        images = "" if self.data is None else str(self.data)
        arguments = [str(self.bundle), self.variant, self.profile, str(self.threads), str(self.batch), images]
        return module_command("ztdeploy.target.measure.worker", *arguments)


@dataclass
class Timed:
    """A subject, and what its process has measured so far."""

    subject: Timeable
    start: ColdStart | None = None
    turns: list[Turn] = field(default_factory=list)
    peak_rss_mb: float | None = None
    error: ZtdeployError | None = None  #: why it has no turns, or fewer than others

    @property
    def rounds_ms(self) -> Rounds:
        return {turn.round: turn.samples_ms for turn in self.turns}

    @property
    def median_ms(self) -> float:
        return overall_median(self.rounds_ms)

    def speedup_over(self, other: Timed) -> float:
        """How many times faster than another, as the median of the ratios of the rounds that both took part in."""
        return median_ratio(other.rounds_ms, self.rounds_ms)


def time_in_turns(
    timed: Sequence[Timed],
    order_of: Callable[[int], TimingOrder],
    *,
    rounds: int,
    warm_up: TimingOrder | None,
    seed: int = 0,
    strict: bool = False,
    progress: Progress = silent,
    after_round: Callable[[], None] = lambda: None,
) -> None:
    """Start a process for each subject and fill in what it measures, round by round, in changing order.

    A subject whose engine cannot be loaded, or whose process dies, keeps its error and what it had measured, while the
    others go on. What has been measured also stays on Ctrl-C, which is passed on.

    Args:
        order_of: what each one is told in a round.
        warm_up: what each one is told once, ahead of the first round.
        seed: of the order of turns.
        strict: end everything with the first error.
        after_round: called after each round.

    Raises:
        ZtdeployError: nothing at all could be loaded, for the first one's reason; with `strict` any error.
    """
    each = order_of(0).seconds or _CALLS_S
    warm_up_s = 0 if warm_up is None else warm_up.seconds or _CALLS_S
    stages = parts(progress, {"load": _START_S, "warm up": warm_up_s, "measure": rounds * each})
    with ExitStack() as stack:
        workers: dict[int, Worker] = {}

        @contextmanager
        def surviving(index: int) -> Iterator[None]:
            try:
                yield
            except ZtdeployError as error:
                if strict:
                    raise
                timed[index].error = error
                workers.pop(index, None)

        for index, one in enumerate(timed):
            stages["load"](f"loading {one.subject.variant}", index, len(timed))
            with surviving(index):
                worker = stack.enter_context(Worker(one.subject.variant, one.subject.command()))
                one.start = worker.answer(ColdStart)
                workers[index] = worker
        if not workers and timed and timed[0].error:
            raise timed[0].error
        for done, index in enumerate(list(workers) if warm_up else []):
            stages["warm up"](f"warming up {timed[index].subject.variant}", done, len(timed))
            with surviving(index):
                assert warm_up is not None
                timed[index].peak_rss_mb = workers[index].carry_out(warm_up, Timing).peak_rss_mb
        for turn, order in enumerate(turn_orders(len(timed), rounds, seed)):
            stages["measure"](f"round {turn + 1} of {rounds}", turn, rounds)
            for place, index in enumerate([index for index in order if index in workers]):
                meter = CpuMeter([worker.pid for worker in workers.values()])
                with surviving(index):
                    timing = workers[index].carry_out(order_of(turn), Timing)
                    timed[index].peak_rss_mb = timing.peak_rss_mb
                    timed[index].turns.append(_turn(turn, place, timing, meter))
            after_round()


def _turn(turn: int, place: int, timing: Timing, meter: CpuMeter) -> Turn:
    used = meter.so_far()
    return Turn(
        round=turn,
        place=place,
        samples_ms=tuple(timing.samples_ms),
        wall_s=round(used.wall_s, 4),
        own_cpu_s=round(used.own_s, 2),
        busy_cpu_s=None if used.busy_s is None else round(used.busy_s, 2),
        stolen_s=None if used.stolen_s is None else round(used.stolen_s, 2),
        clock_mhz=timing.clock_mhz,
        gpu_clock_mhz=timing.gpu_clock_mhz,
        answered=timing.answered,
    )


def measure_latency(
    configurations: Sequence[Configuration], *, rounds: int = 5, iterations: int = 10, progress: Progress = silent
) -> list[Timed]:
    """Time each configuration `rounds` times `iterations`, alternating between them.

    `bench.run_bench` does the same with intervals, warnings and partial results.

    Raises:
        BundleError: a process could not load or run its engine.
        EnvironmentLacksError: a process was killed.
    """
    timed, order = [Timed(one) for one in configurations], TimingOrder(iterations=iterations)
    time_in_turns(timed, lambda _turn: order, rounds=rounds, warm_up=order, strict=True, progress=progress)
    return timed


def turn_orders(count: int, rounds: int, seed: int) -> list[list[int]]:
    """The order of `count` configurations in each round.

    Every other order is drawn at random, and the one behind it is its reverse. Within such a pair each configuration
    follows each of its neighbours once and precedes it once, and the mean place of all is the same: what heats the
    machine, or empties its caches, in front of a configuration does so for its neighbour as well. A fixed or a rotating
    order would let one always run behind the same other.
    """
    generator = random.Random(seed)  # noqa: S311
    orders: list[list[int]] = []
    for turn in range(rounds):
        orders.append(orders[-1][::-1] if turn % 2 else generator.sample(range(count), count))
    return orders


def take_turns(calls: Sequence[Callable[[], object]], *, rounds: int, iterations: int) -> list[Rounds]:
    """Time calls of this process against each other: each `rounds` times `iterations`, in turns.

    A round ahead of these warms up and is not counted.
    """
    samples: list[dict[int, list[float]]] = [{} for _ in calls]
    for turn in range(-1, rounds):
        for own, call in zip(samples, calls, strict=True):
            times = [milliseconds(call) for _ in range(iterations)]
            if turn >= 0:
                own[turn] = times
    return [*samples]


def milliseconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    before = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - before)

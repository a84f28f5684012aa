"""Processes that take turns in rounds, where some may not run at all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from ztdeploy.core.errors import ZtdeployError
from ztdeploy.target.measure.latency import Subject, Worker
from ztdeploy.target.measure.order import turn_orders
from ztdeploy.target.measure.protocol import Order
from ztdeploy.target.measure.statistics import Interval, bootstrap_interval, round_ratios


@dataclass
class Timed:
    """One subject: milliseconds of each call by round, or why there are none."""

    variant: str
    rounds_ms: dict[int, list[float]] = field(default_factory=dict)
    reason: str = ""

    @property
    def median_ms(self) -> float:
        return median(sample for samples in self.rounds_ms.values() for sample in samples)

    def speedup_over(self, other: Timed) -> tuple[float, Interval | None]:
        """How many times faster, over the rounds of both, and where that lies."""
        ratios = round_ratios(other.rounds_ms, self.rounds_ms)
        return median(ratios), bootstrap_interval(ratios)


def time_in_turns(subjects: Sequence[Subject], *, rounds: int, seconds: float) -> list[Timed]:
    """Each works for `seconds` in all, in `rounds` parts and changing order; who cannot load, or dies, is left out."""
    found = [Timed(subject.variant) for subject in subjects]
    with ExitStack() as stack:
        workers: dict[int, Worker] = {}
        for index, subject in enumerate(subjects):
            print(f"loading {subject.variant}", file=sys.stderr)
            try:
                workers[index] = stack.enter_context(Worker(subject))
            except ZtdeployError as error:
                found[index].reason = error.given
        for index in workers:  # warms up, and is not counted
            workers[index].measure(Order(seconds=min(1.0, seconds / rounds)))
        for turn, order in enumerate(turn_orders(len(subjects), rounds, seed=0)):
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
            for index in (index for index in order if index in workers):
                try:
                    answer = workers[index].measure(Order(seconds=seconds / rounds, lead_in=1))
                except ZtdeployError as error:
                    found[index].reason = error.given
                    del workers[index]
                    continue
                found[index].rounds_ms[turn] = answer.samples_ms
    return found

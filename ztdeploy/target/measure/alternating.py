"""Timing a few calls against each other in one process: they take turns, so that drift hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

#: Milliseconds: per call, per round, per iteration.
Rounds = list[list[list[float]]]


def take_turns(calls: Sequence[Callable[[], object]], *, rounds: int, iterations: int) -> Rounds:
    """Time each call `rounds` times `iterations`; a round ahead of these warms up and is not counted."""
    samples: Rounds = [[] for _ in calls]
    for turn in range(rounds + 1):
        for own, call in zip(samples, calls, strict=True):
            times = [_milliseconds(call) for _ in range(iterations)]
            if turn:
                own.append(times)
    return samples


def medians(samples: Rounds) -> list[float]:
    return [median(time for times in own for time in times) for own in samples]


def _milliseconds(call: Callable[[], object]) -> float:
    before = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - before)

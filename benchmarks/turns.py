"""Processes that take turns in rounds, where some may not run at all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from ztdeploy.core.errors import ZtdeployError
from ztdeploy.target.measure import turns
from ztdeploy.target.measure.orders import TimingOrder
from ztdeploy.target.measure.statistics import Interval, bootstrap_interval, round_ratios


@dataclass
class Timed(turns.Timed):
    """One subject: what was measured, or why there is nothing."""

    @property
    def variant(self) -> str:
        return self.subject.variant

    @property
    def reason(self) -> str:
        return self.error.given if self.error else ""

    def interval_over(self, other: Timed) -> tuple[float, Interval | None]:
        """How many times faster, over the rounds of both, and where that lies."""
        ratios = round_ratios(other.rounds_ms, self.rounds_ms)
        return median(ratios), bootstrap_interval(ratios)


def time_in_turns(subjects: Sequence[turns.Timeable], *, rounds: int, seconds: float) -> list[Timed]:
    """Each works for `seconds` in all, in `rounds` parts and changing order; who cannot load, or dies, is left out."""
    found, order = [Timed(subject) for subject in subjects], TimingOrder(seconds=seconds / rounds, lead_in=1)
    warm_up = TimingOrder(seconds=min(1.0, seconds / rounds))
    with suppress(ZtdeployError):  # nothing at all could be loaded; each one says why
        turns.time_in_turns(found, lambda _turn: order, rounds=rounds, warm_up=warm_up, progress=_say)
    return found


def _say(what: str, _done: float, _total: float) -> None:
    print(what, file=sys.stderr)

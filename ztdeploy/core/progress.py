"""How a job says how far it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial

#: Called ahead of each step with what comes next, how much is done, and of how much. The unit is the job's own: steps,
#: images, or shares of the time where steps take unlike times.
Progress = Callable[[str, float, float], None]
#: Called with a sentence that the user should read.
Note = Callable[[str], None]


def silent(_what: str, _done: float, _total: float) -> None:
    """The progress of a job that nobody watches."""


def parts(progress: Progress, shares: Mapping[str, float]) -> dict[str, Progress]:
    """The progress of each part of a job, one behind the other; a part counts in a unit of its own.

    Args:
        shares: by part, how long it takes as compared with the others.
    """
    total, before, found = sum(shares.values()), 0.0, dict[str, Progress]()
    for name, share in shares.items():
        found[name] = partial(_within, progress, before, share, total)
        before += share
    return found


def _within(
    progress: Progress, before: float, share: float, whole: float, what: str, done: float, total: float
) -> None:
    progress(what, before + share * done / total, whole)


class Pace:
    """How far a job is, and how long it will still take, from what its progress tells. It never goes back."""

    def __init__(self) -> None:
        self.share = 0.0  #: of all that there is to do
        self._begun = self._at = time.monotonic()
        self._first: float | None = (
            None  #: the share that was done before anything was; a job may go on from an earlier one
        )

    def told(self, done: float, total: float) -> None:
        share = min(1.0, done / total) if total else 0.0
        if self._first is None:
            self._first, self.share = share, share
        if share > self.share:
            self.share, self._at = share, time.monotonic()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun

    def left_s(self) -> float | None:
        """Seconds, if the rest goes as what was done since; None before anything is done, and at the end."""
        gone = self.share - (self._first or 0.0)
        if gone <= 0 or self.share >= 1:
            return None
        return max(0.0, (self._at - self._begun) * (1 - self.share) / gone - (time.monotonic() - self._at))


def in_words(seconds: float) -> str:
    """Such as "about 2 min" or "about 40 s"; no more digits than an estimate has."""
    if seconds < 90:
        return f"about {max(10, math.ceil(seconds / 10) * 10)} s"
    minutes = math.ceil(seconds / 60)
    return f"about {minutes} min" if minutes < 90 else f"about {minutes / 60:.1f} h"

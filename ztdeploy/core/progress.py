"""How a job says how far it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

#: Called ahead of each step with what comes next, how many steps are done, and how many there are.
Progress = Callable[[str, int, int], None]
#: Called with a sentence that the user should read.
Note = Callable[[str], None]


def silent(_what: str, _done: int, _total: int) -> None:
    """The progress of a job that nobody watches."""


class Pace:
    """How long a job of many parts will still take, counted from when this is made."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def left(self, done: float, todo: float) -> str:
        """Such as ", about 2 min left", if the rest goes as what was done since; nothing before anything is done."""
        return f", {in_words((time.monotonic() - self._begun) / done * todo)} left" if done and todo else ""


def in_words(seconds: float) -> str:
    """Such as "about 2 min" or "about 40 s"; no more digits than an estimate has."""
    if seconds < 90:
        return f"about {max(10, math.ceil(seconds / 10) * 10)} s"
    minutes = math.ceil(seconds / 60)
    return f"about {minutes} min" if minutes < 90 else f"about {minutes / 60:.1f} h"

"""How long a job of many equal parts will still take."""

from __future__ import annotations

import time

from ztdeploy.target.measure.sweep_plan import in_words


class Pace:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def left(self, done: int, todo: int) -> str:
        """Such as ", about 2 min left", if the rest goes as what was done since; nothing before anything is done."""
        return f", {in_words((time.monotonic() - self._begun) / done * todo)} left" if done and todo else ""

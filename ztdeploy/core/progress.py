"""How a job says how far it is."""

from __future__ import annotations

from collections.abc import Callable

#: Called ahead of each step with what comes next, how many steps are done, and how many there are.
Progress = Callable[[str, int, int], None]
#: Called with a sentence that the user should read.
Note = Callable[[str], None]


def silent(_what: str, _done: int, _total: int) -> None:
    """The progress of a job that nobody watches."""

"""Values that a caller hands over, by Python or on the command line: what each may be is said and checked here alone.

Every check gives the value back in its plain type, or raises an `InputError` that names it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path

from ztdeploy.errors import InputError, did_you_mean

#: More threads than any machine has cores; a runtime that is asked for a million tries to start them.
MOST_THREADS = 1024
MOST_CLASSES = 10**6


def whole_number(name: str, value: object, least: int, most: int) -> int:
    """An integer from `least` to `most`; truth values, fractions and text are none.

    Args:
        name: of what is asked for, as the caller knows it.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise InputError(
            f"{name} = {shown(value)}", f"a whole number from {least} to {most}", f"give another value for {name}"
        )
    return int(value)


def number(name: str, value: object, error: type[InputError] = InputError) -> float:
    """A number as Python's own, NaN and infinities among it; truth values and text are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise error(f"{name} = {shown(value)}", "a number", f"give another value for {name}")
    try:
        return float(value)
    except OverflowError:  # of integers, which know no limit
        return math.inf


def one_of(name: str, value: object, known: Sequence[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in known:
        hint = did_you_mean(value, known) if isinstance(value, str) else f"choose from: {', '.join(known)}"
        raise InputError(f"{name} = {shown(value)}", f"one of {', '.join(known)}", hint)
    return value


def text(name: str, value: object) -> str:
    """Text, and no path, bytes or number in its place."""
    if not isinstance(value, str):
        raise InputError(f"{name} = {shown(value)}", "text", f"give another value for {name}")
    return value


def folder(name: str, value: object) -> Path:
    """A path, as text or as an object that stands for one."""
    if not isinstance(value, str | Path) and not (isinstance(value, PathLike) and isinstance(fspath(value), str)):
        raise InputError(f"{name} = {shown(value)}", "the path of a folder", f"give a path for {name}")
    return Path(value)


def threads(value: object) -> int:
    """A number of threads."""
    return whole_number("threads", value, 1, MOST_THREADS)


def top(value: object) -> int:
    """How many classes to show; 0 is none."""
    return whole_number("top", value, 0, MOST_CLASSES)


def shown(value: object) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a number of more than 30 digits"  # Python refuses to spell out the largest
    try:
        text = repr(value)
    except Exception:  # anybody's object
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."

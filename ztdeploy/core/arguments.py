"""Values that a caller gives, in Python or on the command line: their ranges and checks.

Every check returns the value in its plain type, or raises an `InputError` that names it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path

from ztdeploy.core.errors import InputError, did_you_mean
from ztdeploy.core.files import LONGEST_NAME, LONGEST_PATH, nameable


@dataclass(frozen=True)
class WholeNumbers:
    """Whole numbers from `least` to `most`."""

    least: int
    most: int

    def typed(self, text: str) -> int | None:
        """The number that somebody typed; None where it is not one of these."""
        plain = re.fullmatch(r"[+-]?[0-9]{1,25}", text)
        return int(text) if plain and self.least <= int(text) <= self.most else None

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}"


@dataclass(frozen=True)
class Numbers:
    """Finite numbers from `least` to `most`."""

    least: float
    most: float
    above: bool = False  #: `least` itself is excluded

    def typed(self, text: str) -> float | None:
        """The number that somebody typed; None where it is not one of these."""
        plain = re.fullmatch(r"[+-]?([0-9]+\.?|[0-9]*\.[0-9]+)(e[+-]?[0-9]+)?", text, re.IGNORECASE)
        value = float(text) if plain and len(text) <= 50 else math.nan
        return value if self.least <= value <= self.most and not (self.above and value == self.least) else None

    def __str__(self) -> str:
        return f"a number {f'above {self.least:g} and up' if self.above else f'from {self.least:g}'} to {self.most:g}"


#: More threads than cores only share them, and a runtime starts as many as it is asked for, which then spin.
THREADS = WholeNumbers(1, max(64, os.cpu_count() or 1))
CLASSES = WholeNumbers(0, 10**6)
BATCH = WholeNumbers(1, 4096)
SEED = WholeNumbers(0, 2**32 - 1)  # what every generator of random numbers takes
IMAGES = WholeNumbers(1, 10**9)
ROUNDS = WholeNumbers(1, 10_000)
CALLS = WholeNumbers(1, 10**9)
TRIALS = WholeNumbers(1, 10**6)
WORKERS = WholeNumbers(1, 64)
SHARE = Numbers(0, 1)
KEEP_RATIO = Numbers(0, 1, above=True)
SECONDS = Numbers(0, 7 * 24 * 3600)
PERCENT = Numbers(0, 10**6)
POINTS = Numbers(0, 100)
MILLISECONDS = Numbers(0, 10**6, above=True)
#: Least share of images with the baseline's answer, or least mean cosine to its vectors, for a recommendation.
MIN_AGREEMENT = 0.95


def whole_number(name: str, value: object, wanted: WholeNumbers) -> int:
    """An integer; truth values, fractions and text are refused.

    Args:
        name: what the caller calls the value.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not wanted.least <= int(value) <= wanted.most:
        raise _wrong(name, value, str(wanted))
    return int(value)


def number(name: str, value: object, error: type[InputError] = InputError) -> float:
    """A number as Python's own, NaN and infinities included; truth values and text are refused."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong(name, value, "a number", error)
    try:
        return float(value)
    except OverflowError:  # of integers, which know no limit
        return math.inf


def number_in(name: str, value: object, wanted: Numbers) -> float:
    """A number of a range."""
    found = number(name, value)
    if not wanted.least <= found <= wanted.most or (wanted.above and found == wanted.least):
        raise _wrong(name, value, str(wanted))
    return found


def one_of(name: str, value: object, known: Sequence[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in known:
        hint = did_you_mean(value, known) if isinstance(value, str) else f"choose from: {', '.join(known)}"
        raise InputError(f"{name} = {shown(value)}", f"one of {', '.join(known)}", hint)
    return value


def text(name: str, value: object) -> str:
    """Text; a path, bytes or a number in its place is refused."""
    if not isinstance(value, str):
        raise _wrong(name, value, "text")
    return value


def folder(name: str, value: object) -> Path:
    """A path, as text or as an object that stands for one."""
    if not isinstance(value, str | Path) and not (isinstance(value, PathLike) and isinstance(fspath(value), str)):
        raise _wrong(name, value, "the path of a folder")
    return Path(value)


def threads(value: object) -> int:
    """A number of threads."""
    return whole_number("threads", value, THREADS)


def _wrong(name: str, value: object, expected: str, error: type[InputError] = InputError) -> InputError:
    return error(f"{name} = {shown(value)}", expected, f"give another value for {name}")


def shown(value: object) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a number of more than 30 digits"  # Python refuses to spell out the largest
    try:
        text = repr(value)
    except Exception:  # anybody's object
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def named_path(typed: str) -> Path:
    """A path as somebody typed it, if a file could have it.

    Raises:
        InputError: it is empty, or no file system takes such a name.
    """
    try:
        encoded = os.fsencode(nameable(typed))
    except OSError:
        encoded = b""
    if not encoded:
        raise InputError(f"the path {shown(typed)}", "the name of a file or folder", "give a path")
    longest = max(map(len, encoded.split(b"/")))
    if longest > LONGEST_NAME or len(encoded) > LONGEST_PATH:
        raise InputError(
            f"a path of {len(encoded)} bytes, with a name of {longest} in it, '{typed[:40]}...'",
            f"names of at most {LONGEST_NAME} bytes in a path of at most {LONGEST_PATH}",
            "give another path",
        )
    return Path(typed)


def word(typed: str) -> str:
    """A name as somebody typed it, if it could be one.

    Raises:
        InputError: it is empty or too long to be one.
    """
    if not typed.strip() or "\0" in typed or len(typed) > LONGEST_PATH:
        raise InputError(f"the name {shown(typed)}", f"one of at most {LONGEST_PATH} characters", "give a name")
    return typed

"""Numbers as text: three significant digits, no exponents, one number of decimals in a column."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from ztdeploy.target.measure.statistics import Interval

_MOST_DECIMALS = 4


def decimals_for(values: Iterable[float | None], digits: int = 3) -> int:
    """Decimals that show the smallest of these with `digits` significant ones, so that a column lines up."""
    sizes = [abs(value) for value in values if value]
    if not sizes:
        return 0
    return min(_MOST_DECIMALS, max(0, digits - 1 - math.floor(math.log10(min(sizes)))))


def fixed(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def short(value: float | None, digits: int = 3) -> str:
    """Such as "12.3", "0.123" or "1230"."""
    return fixed(value, decimals_for([value], digits))


def decimals(count: int) -> Callable[[float | None], str]:
    """What writes a number with so many decimals, and nothing where there is none."""
    return lambda value: "" if value is None else fixed(value, count)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def cosine(value: float | None) -> str:
    """Rounded down where it would read as 1, which is said of nothing but 1."""
    return "-" if value is None else f"{value if value == 1 else min(value, 0.9999):.4f}"


def times(value: float, interval: Interval | None = None) -> str:
    """Such as "1.55x"; one more digit where its interval would read as 1 otherwise."""
    return f"{value:.{_digits(interval)}f}x"


def span(interval: Interval | None) -> str:
    """Such as "1.52 to 1.58"."""
    if interval is None:
        return "-"
    return f"{interval.low:.{_digits(interval)}f} to {interval.high:.{_digits(interval)}f}"


def _digits(interval: Interval | None) -> int:
    near = interval is not None and min(abs(interval.low - 1), abs(interval.high - 1)) < 0.01
    return 3 if near else 2


def counted(count: int, noun: str) -> str:
    """Such as "1 round" or "6 rounds"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"

"""Numbers as text: three significant digits, no exponents, one number of decimals in a column."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Protocol

from ztdeploy.core.manifest import Fidelity
from ztdeploy.target.measure.statistics import Interval

_MOST_DECIMALS, _MOST_MEANT = 4, 6


class Estimated(Protocol):
    """A figure that is known up to its interval."""

    @property
    def value(self) -> float: ...

    @property
    def interval(self) -> Interval: ...


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


def meant(interval: Interval) -> int:
    """Decimals that mean something: half of the interval's width is shown with two significant digits up to 3.5, with
    one beyond that. This is the rule by which the Particle Data Group rounds errors.
    """
    half = (interval.high - interval.low) / 2
    if half <= 0:
        return decimals_for([interval.high])
    power = math.floor(math.log10(half))
    return min(_MOST_MEANT, max(0, (1 if half < 3.55 * 10**power else 0) - power))


def estimate(found: Estimated, scale: float = 1, sign: str = "") -> tuple[str, str]:
    """A figure and its interval, such as "2.6" and "1.6 to 4.2".

    Args:
        scale: 100 for a share in %.
        sign: "+" for a difference, whose sign is always shown.
    """
    interval = found.interval.scaled(scale)
    decimals = meant(interval)
    value, low, high = (
        f"{round(one, decimals) + 0.0:{sign}.{decimals}f}"  # no "-0.0"
        for one in (scale * found.value, interval.low, interval.high)
    )
    return value, f"{low} to {high}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def cosine(value: float | None) -> str:
    """Rounded down where it would read as 1, which is said of nothing but 1."""
    return "-" if value is None else f"{value if value == 1 else min(value, 0.9999):.4f}"


def map_words(found: Fidelity) -> str:
    """How near maps are to the baseline's, such as "mean IoU 0.9712, mean error 0.0104"."""
    overlap = "" if found.iou is None else f"mean IoU {cosine(found.iou)}, "
    return f"{overlap}mean error {short(found.error)}"


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

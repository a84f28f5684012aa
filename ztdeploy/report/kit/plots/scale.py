"""From values to pixels, and where an axis has its ticks. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

#: What a tick may be a multiple of, times a power of ten.
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """A linear scale with its ticks; `start` may be greater than `end`, as it is on every y axis."""

    low: float
    high: float
    start: float  #: pixel of `low`
    end: float  #: pixel of `high`
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the ticks, with as many decimals as their distances need."""
        gaps = [second - first for first, second in pairwise(self.ticks)]
        decimals = next((n for n in range(7) if all(_whole(10**n * gap) for gap in gaps)), 6) if gaps else 2
        return tuple(f"{tick:.{decimals}f}" for tick in self.ticks)


def nice_ticks(low: float, high: float, most: int = 5) -> tuple[float, ...]:
    """Round numbers from the last at or below `low` to the first at or above `high`, in about `most` steps at most."""
    rounding = 1e-9 * max(abs(low), abs(high))  # values that differ by less are the same
    span = high - low if high - low > rounding else abs(high) or 1.0
    rough = span / most
    exponent = math.floor(math.log10(rough))
    power = 10.0**exponent
    step = next(power * factor for factor in _STEPS if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(step * index, 2 - exponent) for index in range(first, max(last, first + 1) + 1))


def linear(values: Iterable[float], start: float, end: float, *, most: int = 5) -> Scale:
    """A scale over values, widened to ticks on both ends."""
    given = list(values) or [0.0, 1.0]
    ticks = nice_ticks(min(given), max(given), most)
    return Scale(ticks[0], ticks[-1], start, end, ticks)


def padded(values: Iterable[float], start: float, end: float, *, share: float = 0.06) -> Scale:
    """A scale over values with some room on both ends, and a tick at each value."""
    given = sorted(set(values)) or [0.0, 1.0]
    room = share * (given[-1] - given[0]) or 0.5
    return Scale(given[0] - room, given[-1] + room, start, end, tuple(given))


def _whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-6


def steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of a staircase through points: level until the next one, then down."""
    corners = list(points[:1])
    for (_, before), (x, y) in pairwise(points):
        corners += [(x, before), (x, y)]
    return corners

"""Estimates with their intervals, one below the other (a forest plot)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ztdeploy.report.kit.markup import Markup
from ztdeploy.report.kit.numbers import Estimated, estimate
from ztdeploy.report.kit.plots.frame import dot, line, rows_plot
from ztdeploy.report.kit.plots.scale import Scale
from ztdeploy.target.measure.statistics import Interval


@dataclass(frozen=True)
class Estimate:
    """One row of the plot."""

    name: str
    value: float
    interval: Interval | None  #: None: known without doubt, as what is compared with itself is
    read_out: str
    colour: str = "c0"  #: a class of plots.css

    def draw(self, x: Scale, middle: float) -> list[Markup]:
        value = x(self.value)
        if self.interval is None:
            return [dot(value, middle, 4, f"mark hollow {self.colour}", self.read_out)]
        whisker = line(x(self.interval.low), middle, x(self.interval.high), middle, f"whisker {self.colour}")
        return [whisker, dot(value, middle, 4, f"mark {self.colour}", self.read_out)]


def estimate_of(
    name: str, found: Estimated, scale: float = 1, sign: str = "", unit: str = "", *, colour: str = "c0"
) -> Estimate:
    """A row of a report's figure; see `numbers.estimate`."""
    value, span = estimate(found, scale, sign)
    words = f"{name}: {value} {unit}".rstrip()
    return Estimate(name, scale * found.value, found.interval.scaled(scale), f"{words} ({span})", colour)


def estimates_plot(
    title: str, axis: str, found: Sequence[Estimate], *, reference: float | None = None
) -> Markup | None:
    """A mark per estimate, its interval as a whisker. None without any; see `rows_plot`."""
    ends = [end for one in found if one.interval for end in (one.interval.low, one.interval.high)]
    values = [*ends, *(one.value for one in found)]
    return rows_plot(title, axis, values, [(one.name, one.draw) for one in found], reference=reference)

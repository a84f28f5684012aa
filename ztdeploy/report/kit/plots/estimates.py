"""Estimates with their intervals, one below the other (a forest plot)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.plots.frame import BOTTOM, RIGHT, TOP, WIDTH, label, line, svg
from ztdeploy.report.kit.plots.scale import Scale, linear
from ztdeploy.target.measure.statistics import Interval

_ROW, _NAMES, _MOST_LETTERS = 22.0, 124.0, 19


@dataclass(frozen=True)
class Estimate:
    """One row of the plot."""

    name: str
    value: float
    interval: Interval | None  #: None: known without doubt, as what is compared with itself is
    read_out: str
    colour: str = "c0"  #: a class of plots.css


def estimates_height(count: int) -> float:
    return TOP + _ROW * count + BOTTOM - 16


def estimates_plot(
    title: str, axis: str, found: Sequence[Estimate], *, reference: float | None = None
) -> Markup | None:
    """A mark per estimate, its interval as a whisker. None without any.

    Args:
        title: what it shows, for those who cannot see it.
        axis: what the values are.
        reference: a value that the others are seen against; it is on the axis in any case.
    """
    if not found:
        return None
    ends = [end for one in found if one.interval for end in (one.interval.low, one.interval.high)]
    values = [*ends, *(one.value for one in found), *([] if reference is None else [reference])]
    x = linear(values, _NAMES, WIDTH - RIGHT - 4)
    base = TOP + _ROW * len(found)
    marks = [label(0, 13, axis, "axis", anchor="start")]
    for tick, text in zip(x.ticks, x.labels, strict=True):
        marks += [line(x(tick), TOP, x(tick), base, "grid"), label(x(tick), base + 16, text, "tick")]
    if reference is not None:
        marks.append(line(x(reference), TOP, x(reference), base, "reference"))
    for position, one in enumerate(found):
        marks += _row(one, TOP + _ROW * (position + 0.5), x)
    return svg(title, estimates_height(len(found)), marks)


def _row(one: Estimate, middle: float, x: Scale) -> list[Markup]:
    name = one.name if len(one.name) <= _MOST_LETTERS else f"{one.name[: _MOST_LETTERS - 1]}…"
    marks = [label(_NAMES - 10, middle + 3.5, name, "tick", anchor="end")]
    if one.interval is not None:
        marks.append(line(x(one.interval.low), middle, x(one.interval.high), middle, f"whisker {one.colour}"))
    kind = f"mark {one.colour}" if one.interval is not None else f"mark hollow {one.colour}"
    marks.append(element("circle", element("title", one.read_out), cx=x(one.value), cy=middle, r=4.0, class_=kind))
    return marks

"""Noise made visible: every round's speed-up, and how long dense took round by round."""

from __future__ import annotations

from ztdeploy.report.kit.figures import short, span, times
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.plots.frame import (
    BOTTOM,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    box,
    label,
    line,
    path,
    svg,
    x_range,
    y_range,
)
from ztdeploy.report.kit.plots.scale import Scale, linear
from ztdeploy.report.kit.plots.series import Series
from ztdeploy.report.sweep.panels import Panel
from ztdeploy.report.sweep.plots.ratios import round_medians
from ztdeploy.report.sweep.verdict import compared
from ztdeploy.target.measure.sweep_report import Row

_ROW, _NAMES, _MOST_LETTERS = 22.0, 118.0, 18


def rounds_plot(panel: Panel, series: Series) -> Markup | None:
    """A dot per round, the interval as a bar, the median as a stroke; a row per variant. None without any."""
    drawn = panel.pruned
    if not drawn:
        return None
    ratios = [ratio for row in drawn for ratio in compared(row).ratios]
    x = linear([1.0, *ratios], _NAMES, WIDTH - RIGHT - 4)
    base = TOP + _ROW * len(drawn)
    marks = [label(0, 13, "times as fast as dense", "axis", anchor="start")]
    for tick, text in zip(x.ticks, x.labels, strict=True):
        marks += [line(x(tick), TOP, x(tick), base, "grid"), label(x(tick), base + 16, text, "tick")]
    marks.append(line(x(1), TOP, x(1), base, "reference"))
    for position, row in enumerate(drawn):
        marks += _strip(row, TOP + _ROW * (position + 0.5), x, series)
    return svg(f"Speed-ups of every round at {panel.label}", base + BOTTOM - 16, marks)


def _strip(row: Row, middle: float, x: Scale, series: Series) -> list[Markup]:
    found, colour = compared(row), series.colour(row.facts.method)
    name = row.facts.name
    short_name = name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"
    words = f"{name}: {times(found.speedup, found.interval)} ({span(found.interval)})"
    marks = [label(_NAMES - 10, middle + 3.5, short_name, "tick", anchor="end")]
    if found.interval is not None:
        low, high = x(found.interval.low), x(found.interval.high)
        marks.append(box(low, middle - 6, max(1.0, high - low), 12, f"band {colour}", words))
    marks += [element("circle", cx=x(ratio), cy=middle, r=2.0, class_=f"dot {colour}") for ratio in found.ratios]
    marks.append(line(x(found.speedup), middle - 7, x(found.speedup), middle + 7, f"stroke {colour}"))
    return marks


def drift_plot(panel: Panel) -> Markup | None:
    """Dense's median latency, turn by turn over all groups: a machine that changes shows here. None below two turns."""
    medians = round_medians(panel.dense) if panel.dense else []
    if len(medians) < 2:
        return None
    start, end = x_range()
    x = linear([1, len(medians)], start, end)
    x = Scale(1, len(medians), start + 6, end - 6, tuple(t for t in x.ticks if 1 <= t <= len(medians) and t % 1 == 0))
    y = linear([0, *medians], *y_range())
    points = [(x(turn), y(value)) for turn, value in enumerate(medians, 1)]
    marks = [path(points, "line cd")]
    for turn, (place, value) in enumerate(zip(points, medians, strict=True), 1):
        read_out = element("title", f"turn {turn}: {short(value)} ms")
        marks.append(element("circle", read_out, cx=place[0], cy=place[1], r=2.4, class_="dot cd"))
    frame = Frame(x, y, "turns of dense, in order", "ms per call")
    return frame.draw(f"Dense over time at {panel.label}", marks)

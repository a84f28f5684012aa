"""Noise made visible: every round's speed-up, and how long the baseline took turn by turn."""

from __future__ import annotations

from functools import partial
from statistics import median

from ztdeploy.report.kit.figure import Figure
from ztdeploy.report.kit.markup import Markup
from ztdeploy.report.kit.numbers import short, span, times
from ztdeploy.report.kit.plots.frame import Frame, box, dot, line, path, rows_plot, x_range, y_range
from ztdeploy.report.kit.plots.scale import Scale, linear
from ztdeploy.report.kit.plots.series import Series
from ztdeploy.report.sweep.panels import Panel, View
from ztdeploy.report.sweep.verdict import compared
from ztdeploy.target.measure.sweep_report import Row


def rounds(panel: Panel, view: View) -> Figure:
    """A dot per round, the interval as a bar, the median as a stroke; a row per variant."""
    ratios = [ratio for row in panel.pruned for ratio in compared(row).ratios]
    drawn = [(row.facts.name, partial(_strip, row, view.series)) for row in panel.pruned]
    title = f"Speed-ups of every round at {panel.label}"
    plot = rows_plot(title, "times as fast as the baseline", ratios, drawn, reference=1.0)
    return Figure("Noise", "A dot per round; bar: 95 % interval; stroke: median.", plot)


def _strip(row: Row, series: Series, x: Scale, middle: float) -> list[Markup]:
    found, colour = compared(row), series.colour(row.facts.method)
    marks = [dot(x(ratio), middle, 2, f"dot {colour}") for ratio in found.ratios]
    marks.append(line(x(found.speedup), middle - 7, x(found.speedup), middle + 7, f"stroke {colour}"))
    if found.interval is None:
        return marks
    text = f"{row.facts.name}: {times(found.speedup, found.interval)} ({span(found.interval)})"
    low, high = x(found.interval.low), x(found.interval.high)
    return [box(low, middle - 6, max(1.0, high - low), 12, f"band {colour}", text), *marks]


def steadiness(panel: Panel) -> Figure | None:
    """The baseline's median latency, turn by turn over all groups: a machine that changes shows here. None below two
    turns."""
    medians = [median(turn.samples_ms) for turn in panel.dense.measured.turns] if panel.dense else []
    if len(medians) < 2:
        return None
    start, end = x_range()
    ticks = tuple(t for t in linear([1, len(medians)], start, end).ticks if 1 <= t <= len(medians) and t % 1 == 0)
    x = Scale(1, len(medians), start + 6, end - 6, ticks)
    y = linear([0, *medians], *y_range())
    points = [(x(turn), y(value)) for turn, value in enumerate(medians, 1)]
    marks = [path(points, "line cd")]
    for turn, (point, value) in enumerate(zip(points, medians, strict=True), 1):
        marks.append(dot(*point, 2.4, "dot cd", f"turn {turn}: {short(value)} ms"))
    plot = Frame(x, y, "turns of the baseline, in order", "ms per call").draw(
        f"The baseline over time at {panel.label}", marks
    )
    return Figure("Was it steady?", f"The baseline at {panel.label}, over all groups.", plot)

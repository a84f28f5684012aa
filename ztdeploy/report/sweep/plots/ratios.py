"""Latency and speed-up against keep ratio, and the speed-up against what less work would give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from ztdeploy.core.cascade import CASCADE
from ztdeploy.report.kit.figure import Figure
from ztdeploy.report.kit.markup import Markup
from ztdeploy.report.kit.numbers import short, span, times
from ztdeploy.report.kit.plots.frame import Frame, level, line, notes, path, x_range, y_range
from ztdeploy.report.kit.plots.scale import Scale, linear, padded
from ztdeploy.report.kit.plots.series import Series
from ztdeploy.report.sweep.panels import Panel, View
from ztdeploy.report.sweep.verdict import compared
from ztdeploy.target.measure.statistics import percentile
from ztdeploy.target.measure.sweep_report import Row


def latency(panel: Panel, view: View) -> Figure | None:
    """Median latency; the whiskers span the middle half of the calls. None without two ratios."""
    drawn = [row for row in panel.measured if row.facts.keep_ratio is not None]
    if len(drawn) < 2:
        return None
    spreads = {row.facts.name: _middle_half(row) for row in drawn}
    x = _ratio_axis(drawn)
    y = linear([0, *(end for ends in spreads.values() for end in ends)], *y_range())
    marks = [] if panel.dense is None else level(x, y(p50(panel.dense)), "baseline")
    marks += _lines(panel, view.series, x, y, p50, start=panel.dense)
    for row in drawn:
        low, high = spreads[row.facts.name]
        across = _across(row, x, view.series)
        text = f"{row.facts.name}: {short(p50(row))} ms, half of the calls in {short(low)} to {short(high)} ms"
        marks.append(_whisker(across, y(low), y(high), row, view.series))
        marks.append(view.series.point(across, y(p50(row)), None if row.dense else row.facts.method, text))
    plot = Frame(x, y, "keep ratio", "ms per call").draw(f"Latency against keep ratio at {panel.label}", marks)
    return Figure("Latency", "Median of all calls; whiskers hold the middle half.", plot)


def speedup(panel: Panel, view: View) -> Figure | None:
    """Speed-up over the baseline; the whiskers are its interval. None without a variant that has a ratio."""
    drawn = [row for row in panel.pruned if row.facts.keep_ratio is not None]
    if not drawn:
        return None
    x = _ratio_axis(drawn)
    y = linear([1.0, *_speeds(drawn)], *y_range())
    marks = level(x, y(1), "baseline")
    marks += _lines(panel, view.series, x, y, lambda row: compared(row).speedup)
    for row in drawn:
        marks += _speed_mark(row, _across(row, x, view.series), y, view.series)
    frame = Frame(x, y, "keep ratio", "times as fast as the baseline")
    plot = frame.draw(f"Speed-up against keep ratio at {panel.label}", marks)
    return Figure("Speed-up", "Whiskers: 95 % interval over rounds.", plot)


def less_work(panel: Panel, view: View) -> Figure | None:
    """Speed-up against GMACs of the baseline over those of the variant; on the diagonal only these would count."""
    drawn = panel.pruned
    if not drawn:
        return None
    values = [1.0, *(compared(row).work_ratio for row in drawn), *_speeds(drawn)]
    x, y = (linear(values, *ends) for ends in (x_range(), y_range()))
    diagonal = [(x(x.low), y(x.low)), (x(x.high), y(x.high))]
    marks, points = [path(diagonal, "reference diagonal")], []
    for row in drawn:
        across, ratio = x(compared(row).work_ratio), row.facts.keep_ratio
        marks += _speed_mark(row, across, y, view.series)
        words = CASCADE if row.cascade else "" if ratio is None else f"{ratio:g}"
        points.append((across, y(compared(row).speedup), words))
    frame = Frame(x, y, "GMACs of the baseline over its own", "times as fast as the baseline")
    plot = frame.draw(f"Speed-up against less work at {panel.label}", marks, notes(points, x, diagonal))
    text = "On the dashed line, time would follow GMACs. Numbers: keep ratios."
    return Figure("What less work should give, and does", text, plot)


def _ratio_axis(drawn: Sequence[Row]) -> Scale:
    """Falling from left to right, as tables do: the more is pruned, the further right."""
    start, end = x_range()
    return padded([row.facts.keep_ratio or 0 for row in drawn], end, start)


def _across(row: Row, x: Scale, series: Series) -> float:
    return x(row.facts.keep_ratio or 0) + (0 if row.dense else series.aside(row.facts.method))


def _lines(
    panel: Panel, series: Series, x: Scale, y: Scale, value: Callable[[Row], float], *, start: Row | None = None
) -> list[Markup]:
    """One per method, from `start` on where there is one."""
    rows = [row for row in panel.pruned if row.facts.keep_ratio is not None]
    first = [start] if start is not None and start.facts.keep_ratio is not None else []
    return [
        path([(_across(row, x, series), y(value(row))) for row in (*first, *found)], f"line {series.colour(method)}")
        for method, found in groupby(rows, key=lambda row: row.facts.method)
    ]


def _speed_mark(row: Row, across: float, y: Scale, series: Series) -> list[Markup]:
    found = compared(row)
    text = f"{row.facts.name}: {times(found.speedup, found.interval)} ({span(found.interval)}), "
    point = series.point(across, y(found.speedup), row.facts.method, f"{text}{times(found.work_ratio)} less work")
    if found.interval is None:
        return [point]
    return [_whisker(across, y(found.interval.low), y(found.interval.high), row, series), point]


def _whisker(x: float, first: float, second: float, row: Row, series: Series) -> Markup:
    return line(x, first, x, second, f"whisker {'cd' if row.dense else series.colour(row.facts.method)}")


def _speeds(drawn: Sequence[Row]) -> list[float]:
    found = [compared(row) for row in drawn]
    ends = [end for one in found if one.interval for end in (one.interval.low, one.interval.high)]
    return [*(one.speedup for one in found), *ends]


def p50(row: Row) -> float:
    assert row.measured.latency is not None
    return row.measured.latency.p50_ms


def _middle_half(row: Row) -> tuple[float, float]:
    samples = [sample for turn in row.measured.turns for sample in turn.samples_ms]
    return percentile(samples, 25), percentile(samples, 75)

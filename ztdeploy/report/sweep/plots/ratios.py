"""Latency and speed-up against keep ratio, and the speed-up against what less work would give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from statistics import median

from ztdeploy.report.kit.figures import short, span, times
from ztdeploy.report.kit.markup import Markup
from ztdeploy.report.kit.plots.frame import HEIGHT, TOP, Frame, label, line, path, x_range, y_range
from ztdeploy.report.kit.plots.labels import Box, along, beside
from ztdeploy.report.kit.plots.scale import Scale, linear, padded
from ztdeploy.report.kit.plots.series import Series
from ztdeploy.report.sweep.panels import Panel
from ztdeploy.report.sweep.verdict import compared
from ztdeploy.target.measure.statistics import percentile
from ztdeploy.target.measure.sweep_report import Row


def latency_plot(panel: Panel, series: Series) -> Markup | None:
    """Median latency; the whiskers span the middle half of the calls. None without two ratios."""
    drawn = [row for row in panel.measured if row.facts.keep_ratio is not None]
    if len(drawn) < 2:
        return None
    spreads = {row.facts.name: _middle_half(row) for row in drawn}
    x = _ratio_axis(drawn)
    y = linear([0, *(end for ends in spreads.values() for end in ends)], *y_range())
    marks: list[Markup] = []
    if panel.dense is not None:
        place = y(_p50(panel.dense))
        marks += [line(x.start, place, x.end, place, "reference")]
        marks += [_dense_label(place)]
    marks += _lines(panel, series, x, y, _p50, start=panel.dense)
    for row in drawn:
        low, high = spreads[row.facts.name]
        middle = _across(row, x, series)
        text = f"{row.facts.name}: {short(_p50(row))} ms, half of the calls in {short(low)} to {short(high)} ms"
        marks += [_whisker(middle, y(low), y(high), row, series)]
        marks += [series.point(middle, y(_p50(row)), None if row.dense else row.facts.method, text)]
    return Frame(x, y, "keep ratio", "ms per call").draw(f"Latency against keep ratio at {panel.label}", marks)


def speedup_plot(panel: Panel, series: Series) -> Markup | None:
    """Speed-up over dense; the whiskers are its interval. None without a variant that has a ratio."""
    drawn = [row for row in panel.pruned if row.facts.keep_ratio is not None]
    if not drawn:
        return None
    x = _ratio_axis(drawn)
    y = linear([1.0, *_speeds(drawn)], *y_range())
    marks = [line(x.start, y(1), x.end, y(1), "reference"), _dense_label(y(1))]
    marks += _lines(panel, series, x, y, lambda row: compared(row).speedup)
    for row in drawn:
        marks += _speed_mark(row, _across(row, x, series), y, series)
    return Frame(x, y, "keep ratio", "times as fast as dense").draw(
        f"Speed-up against keep ratio at {panel.label}", marks
    )


def ideal_plot(panel: Panel, series: Series) -> Markup | None:
    """Speed-up against GMACs of dense over GMACs of the variant; on the diagonal only these would count."""
    drawn = panel.pruned
    if not drawn:
        return None
    work = [compared(row).work_ratio for row in drawn]
    x, y = (linear([1.0, *work, *_speeds(drawn)], *ends) for ends in (x_range(), y_range()))
    marks = [path([(x(x.low), y(x.low)), (x(x.high), y(x.high))], "reference diagonal")]
    points = []
    for row in drawn:
        place = x(compared(row).work_ratio)
        marks += _speed_mark(row, place, y, series)
        ratio = row.facts.keep_ratio
        points.append((place, y(compared(row).speedup), "" if ratio is None else f"{ratio:g}"))
    area = Box(x.start, TOP, x.end, HEIGHT)
    diagonal = along([(x(x.low), y(y.low)), (x(x.high), y(y.high))])
    marks += [label(one.x, one.y, one.text, "note", anchor=one.anchor) for one in beside(points, area, diagonal)]
    frame = Frame(x, y, "GMACs of dense over its own", "times as fast as dense")
    return frame.draw(f"Speed-up against less work at {panel.label}", marks)


def _dense_label(place: float) -> Markup:
    """Above the line that stands for dense, at its right end."""
    return label(x_range()[1], place - 6, "dense", "note", anchor="end")


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
    drawn = []
    for method, found in groupby(rows, key=lambda row: row.facts.method):
        chain = [*([start] if start is not None and start.facts.keep_ratio is not None else []), *found]
        points = [(_across(row, x, series), y(value(row))) for row in chain]
        drawn.append(path(points, f"line {series.colour(method)}"))
    return drawn


def _speed_mark(row: Row, place: float, y: Scale, series: Series) -> list[Markup]:
    found = compared(row)
    text = f"{row.facts.name}: {times(found.speedup, found.interval)} ({span(found.interval)}), "
    text += f"{times(found.work_ratio)} less work"
    whisker = []
    if found.interval is not None:
        whisker = [_whisker(place, y(found.interval.low), y(found.interval.high), row, series)]
    return [*whisker, series.point(place, y(found.speedup), row.facts.method, text)]


def _whisker(x: float, first: float, second: float, row: Row, series: Series) -> Markup:
    colour = "cd" if row.dense else series.colour(row.facts.method)
    return line(x, first, x, second, f"whisker {colour}")


def _speeds(drawn: Iterable[Row]) -> list[float]:
    found = [compared(row) for row in drawn]
    ends = [end for one in found if one.interval for end in (one.interval.low, one.interval.high)]
    return [*(one.speedup for one in found), *ends]


def _p50(row: Row) -> float:
    assert row.measured.latency is not None
    return row.measured.latency.p50_ms


def _middle_half(row: Row) -> tuple[float, float]:
    samples = [sample for turn in row.measured.turns for sample in turn.samples_ms]
    return percentile(samples, 25), percentile(samples, 75)


def round_medians(row: Row) -> list[float]:
    return [median(turn.samples_ms) for turn in row.measured.turns]

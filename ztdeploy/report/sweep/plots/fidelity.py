"""Latency against what pruning costs in fidelity; the front is what nothing else beats on both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from ztdeploy.report.kit.figures import cosine, percent, short
from ztdeploy.report.kit.markup import Markup
from ztdeploy.report.kit.plots.frame import HEIGHT, TOP, Frame, label, line, path, x_range, y_range
from ztdeploy.report.kit.plots.labels import Box, along, beside
from ztdeploy.report.kit.plots.scale import linear
from ztdeploy.report.kit.plots.series import Series
from ztdeploy.report.sweep.panels import Panel
from ztdeploy.target.measure.sweep_report import Fidelity, Row


def _points_lost(fidelity: Fidelity) -> float | None:
    """Of top-1; None where the images are not labelled."""
    if fidelity.top1 is None or fidelity.dense_top1 is None:
        return None
    return 100 * (fidelity.dense_top1 - fidelity.top1)


def _lost(share: float | None, scale: float = 1) -> float | None:
    return None if share is None else scale * (1 - share)


Cost = Literal["disagreement", "kl", "top-1", "cosine"]
_COSTS: dict[Cost, tuple[str, Callable[[Fidelity], float | None]]] = {
    "disagreement": ("% of answers that differ from dense's", lambda one: _lost(one.agreement, 100)),
    "kl": ("KL divergence from dense, nats", lambda one: one.kl),
    "cosine": ("1 - mean cosine to dense", lambda one: _lost(one.cosine)),
    "top-1": ("top-1 below dense's, points", _points_lost),
}


def pareto_plot(panel: Panel, series: Series, cost: Cost, least_agreement: float) -> Markup | None:
    """Latency against one measure of what is lost; dense loses nothing. None where no variant's is known."""
    name, of = _COSTS[cost]
    known = [(row, row.facts.fidelity) for row in panel.pruned if row.facts.fidelity]
    drawn = [(row, fidelity, lost) for row, fidelity in known if (lost := of(fidelity)) is not None]
    if not drawn:
        return None
    spots = [(lost, _p50(row)) for row, _, lost in drawn]
    dense = [(0.0, _p50(panel.dense))] if panel.dense else []
    x = linear([0.0, *(lost for lost, _ in spots)], *x_range())
    y = linear([0.0, *(ms for _, ms in [*spots, *dense])], *y_range())
    stairs = steps(front([*spots, *dense]))
    marks = [path([(x(lost), y(ms)) for lost, ms in stairs], "line front")]
    limits = {
        "disagreement": (100 * (1 - least_agreement), f"{percent(least_agreement)} agree"),
        "cosine": (1 - least_agreement, f"cosine {least_agreement:g}"),
    }
    limit, words = limits.get(cost, (x.low, ""))
    if x.low < limit < x.high:
        marks += [line(x(limit), TOP, x(limit), y.start, "reference")]
        marks += [label(x(limit) + 5, TOP + 9, words, "note", anchor="start")]
    if panel.dense is not None:
        marks.append(series.point(x(0), y(dense[0][1]), None, f"dense: {short(dense[0][1])} ms"))
    points = []
    for (row, fidelity, _), (lost, ms) in zip(drawn, spots, strict=True):
        text = f"{row.facts.name}: {short(ms)} ms, {_in_words(fidelity)}"
        marks.append(series.point(x(lost), y(ms), row.facts.method, text))
        ratio = row.facts.keep_ratio
        points.append((x(lost), y(ms), "" if ratio is None else f"{ratio:g}"))
    placed = beside(points, Box(x.start, TOP, x.end, HEIGHT), along([(x(lost), y(ms)) for lost, ms in stairs]))
    marks += [label(one.x, one.y, one.text, "note", anchor=one.anchor) for one in placed]
    return Frame(x, y, name, "ms per call").draw(f"Latency against fidelity ({cost}) at {panel.label}", marks)


def _in_words(fidelity: Fidelity) -> str:
    if fidelity.agreement is None:
        return f"mean cosine {cosine(fidelity.cosine)}"
    top1 = "" if fidelity.top1 is None else f", top-1 {percent(fidelity.top1)}"
    return f"{percent(fidelity.agreement)} agree, KL {short(fidelity.kl)}{top1}"


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other is at least as good as on both, and better on one; less is better. By the first value."""
    best: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of a staircase through points: level until the next one, then down."""
    corners = list(points[:1])
    for (_, before), (x, y) in pairwise(points):
        corners += [(x, before), (x, y)]
    return corners


def _p50(row: Row) -> float:
    assert row.measured.latency is not None
    return row.measured.latency.p50_ms

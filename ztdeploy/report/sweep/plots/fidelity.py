"""Latency against what pruning costs in fidelity; the front is what nothing else beats on both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ztdeploy.core.cascade import CASCADE
from ztdeploy.core.manifest import Fidelity
from ztdeploy.report.kit.figure import Figure
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.numbers import cosine, map_words, percent, short
from ztdeploy.report.kit.plots.frame import TOP, Frame, label, line, notes, path, x_range, y_range
from ztdeploy.report.kit.plots.scale import linear, steps
from ztdeploy.report.sweep.panels import Panel, View


def unknown(panel: Panel, _view: View) -> Figure | None:
    """What would stand here, and how to get it."""
    if not panel.pruned or any(row.facts.fidelity for row in panel.pruned):
        return None
    text = "Not known: nothing was evaluated. '--data' compares answers with the baseline's on images of your own."
    blank = element("div", element("p", text), class_="blank")
    return Figure("Latency against fidelity", "What pruning costs in answers.", blank)


def answers(panel: Panel, view: View) -> Figure:
    def lost(one: Fidelity) -> float | None:
        return None if one.agreement is None else 100 * (1 - one.agreement)

    limit = 100 * (1 - view.min_agreement), f"{percent(view.min_agreement)} agree"
    text = "Lower left is better; the line is what nothing else beats on both."
    plot = _plot(panel, view, "disagreement", "% of answers that differ from the baseline's", lost, limit)
    return Figure("Latency against answers lost", text, plot)


def divergence(panel: Panel, view: View) -> Figure:
    text = "Of outputs from the baseline's, which moves before answers change."
    plot = _plot(panel, view, "kl", "KL divergence from the baseline, nats", lambda one: one.kl)
    return Figure("Latency against divergence", text, plot)


def accuracy(panel: Panel, view: View) -> Figure:
    def lost(one: Fidelity) -> float | None:
        return None if one.top1 is None or one.dense_top1 is None else 100 * (one.dense_top1 - one.top1)

    text = "Top-1 on labelled images, less than the baseline's; left of 0 it is more."
    return Figure(
        "Latency against accuracy", text, _plot(panel, view, "top-1", "top-1 below the baseline's, points", lost)
    )


def cosines(panel: Panel, view: View) -> Figure:
    def lost(one: Fidelity) -> float | None:
        return None if one.cosine is None else 1 - one.cosine

    limit = 1 - view.min_agreement, f"cosine {view.min_agreement:g}"
    text = "Of embeddings or features to the baseline's, of the same images."
    return Figure(
        "Latency against cosine", text, _plot(panel, view, "cosine", "1 - mean cosine to the baseline", lost, limit)
    )


def map_errors(panel: Panel, view: View) -> Figure:
    text = "Mean error of maps: of probabilities, or of values as a share of their range."
    plot = _plot(panel, view, "map error", "mean error from the baseline's maps", lambda one: one.error)
    return Figure("Latency against the error of maps", text, plot)


def _plot(
    panel: Panel,
    view: View,
    cost: str,
    axis: str,
    lost: Callable[[Fidelity], float | None],
    limit: tuple[float, str] | None = None,
) -> Markup | None:
    """Latency against one measure of what is lost; the baseline loses nothing. None where no variant's is known.

    Args:
        limit: what may be lost at most, and what that is in words.
    """
    known = [(row, row.facts.fidelity) for row in panel.pruned if row.facts.fidelity]
    drawn = [(row, fidelity, value) for row, fidelity in known if (value := lost(fidelity)) is not None]
    if not drawn:
        return None
    mean = panel.by_mean
    spots = [(value, row.typical_ms(mean=mean)) for row, _, value in drawn]
    if panel.dense is not None:
        spots.append((0.0, panel.dense.typical_ms(mean=mean)))
    x = linear([0.0, *(value for value, _ in spots)], *x_range())
    y = linear([0.0, *(ms for _, ms in spots)], *y_range())
    stairs = [(x(value), y(ms)) for value, ms in steps(front(spots))]
    marks = [path(stairs, "line front")]
    if limit is not None and x.low < limit[0] < x.high:
        marks.append(line(x(limit[0]), TOP, x(limit[0]), y.start, "reference"))
        marks.append(label(x(limit[0]) + 5, TOP + 9, limit[1], "note", anchor="start"))
    if panel.dense is not None:
        ms = panel.dense.typical_ms(mean=mean)
        marks.append(view.series.point(x(0), y(ms), None, f"baseline: {short(ms)} ms"))
    points = []
    for row, fidelity, value in drawn:
        ms, ratio = row.typical_ms(mean=mean), row.facts.keep_ratio
        text = f"{row.facts.name}: {short(ms)} ms, {_in_words(fidelity)}"
        marks.append(view.series.point(x(value), y(ms), row.facts.method, text))
        points.append((x(value), y(ms), CASCADE if row.cascade else "" if ratio is None else f"{ratio:g}"))
    title = f"Latency against fidelity ({cost}) at {panel.label}"
    frame = Frame(x, y, axis, "ms per call, mean" if mean else "ms per call")
    return frame.draw(title, marks, notes(points, x, stairs))


def _in_words(fidelity: Fidelity) -> str:
    if fidelity.error is not None:
        return map_words(fidelity)
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

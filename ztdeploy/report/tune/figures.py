"""The plots of a search, each with a name under which it can be a file. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ztdeploy.core.schedule import LayerSpec
from ztdeploy.report.kit.figures import short
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.plots.by_block import Curve, by_block_plot
from ztdeploy.report.kit.plots.estimates import Estimate, estimates_height, estimates_plot
from ztdeploy.report.kit.plots.frame import HEIGHT, Frame, path, x_range, y_range
from ztdeploy.report.kit.plots.scale import linear
from ztdeploy.report.kit.plots.series import Series
from ztdeploy.report.kit.plots.standalone import Figure
from ztdeploy.report.sweep.plots.fidelity import steps
from ztdeploy.report.tune.records import Compared, TrialRecord, TuneReport

RIVALS = ("tuned", "preset", "ToMe")
SERIES = Series(RIVALS)


def figures(report: TuneReport) -> list[Figure]:
    return [*front(report), *trials(report), *importances(report), *by_block(report)]


def front(report: TuneReport) -> Iterator[Figure]:
    """KL against cost on the report half: what was found, the best preset, ToMe."""
    scores = {name: [_score(one, name) for one in report.compared] for name in RIVALS}
    x = linear([cost for points in scores.values() for cost, _, _ in points], *x_range())
    y = linear([0.0, *(kl for points in scores.values() for _, kl, _ in points)], *y_range())
    marks: list[Markup] = []
    for name, points in scores.items():
        ordered = sorted(points)
        marks.append(path([(x(cost), y(kl)) for cost, kl, _ in ordered], f"line {SERIES.colour(name)}"))
        marks += [SERIES.point(x(cost), y(kl), name, text) for cost, kl, text in ordered]
    drawn = Frame(x, y, report.unit, "KL from dense, nats").draw("KL from dense against cost", marks)
    text = "On the report half. Circles: found here; squares: the best preset; triangles: ToMe."
    yield Figure("front", "Fidelity against cost", text, drawn, HEIGHT)


def _score(one: Compared, name: str) -> tuple[float, float, str]:
    score = {"tuned": one.tuned, "preset": one.preset, "ToMe": one.tome}[name]
    return score.cost, score.kl.value, f"{name}: {short(score.cost, 4)}, KL {score.kl.value:.4f}"


def trials(report: TuneReport) -> Iterator[Figure]:
    """Every trial in its order, and the best one so far."""
    made = [one for one in report.trials if one.kl is not None]
    if not made:
        return
    highest = 3 * sorted(one.kl for one in made if one.kl is not None)[len(made) // 2]
    x = linear([0.0, float(made[-1].number)], *x_range())
    y = linear([0.0, min(highest, max(one.kl or 0.0 for one in made))], *y_range())
    marks = [_trial(one, x(one.number), y(min(one.kl or 0.0, y.high))) for one in made]
    if report.request.budget is not None:
        marks.insert(0, path([(x(at), y(min(kl, y.high))) for at, kl in steps(_best_so_far(made))], "line front"))
    drawn = Frame(x, y, "trial", "KL from dense, nats").draw("Trials in their order", marks)
    text = (
        "On the tuning half. Diamonds: what presets do; hollow: given up early. What lies higher is drawn at the top."
    )
    yield Figure("trials", "Trials", text, drawn, HEIGHT)


def _trial(one: TrialRecord, x: float, y: float) -> Markup:
    text = f"trial {one.number}: KL {one.kl or 0:.4f} on {one.images} images, {one.state}"
    if one.start:
        return SERIES.point(x, y, None, text)
    kind = "mark c0" if one.state == "complete" else "mark hollow c0"
    return element("circle", element("title", text), cx=x, cy=y, r=3.0, class_=kind)


def _best_so_far(made: list[TrialRecord]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for one in made:
        if one.state == "complete" and one.kl is not None and (not found or one.kl < found[-1][1]):
            found.append((float(one.number), one.kl))
    return found + ([(float(made[-1].number), found[-1][1])] if found else [])


def importances(report: TuneReport) -> Iterator[Figure]:
    rows = [
        Estimate(one.parameter, one.share, None, f"{one.parameter}: {100 * one.share:.0f} %")
        for one in report.importances
    ]
    drawn = estimates_plot("What decides whether a trial is good", "share of what mattered", rows, reference=0.0)
    if drawn is not None:
        text = "How far the values of good trials differ from those of all (PED-ANOVA)."
        yield Figure("importances", "What mattered", text, drawn, estimates_height(len(rows)))


def by_block(report: TuneReport) -> Iterator[Figure]:
    """Tokens that enter each block, with the winner and what it is held against."""
    found = report.winner
    curves = [
        Curve(score.label, tuple(map(float, tokens)), tuple(f"block {n}: {t} tokens" for n, t in enumerate(tokens, 1)))
        for score in (found.tome, found.preset, found.tuned)
        for tokens in [tokens_of(report, score.schedule.layers)]
    ]
    drawn = by_block_plot("Tokens by block", "tokens", curves, reference=None)
    if drawn is not None:
        yield Figure("tokens", "Tokens by block", "That enter each block.", drawn, HEIGHT)


def tokens_of(report: TuneReport, layers: Sequence[LayerSpec]) -> tuple[int, ...]:
    """That enter each block, by counts of what goes behind the blocks before."""
    gone = {layer.block: layer.drop or 0 for layer in layers}
    return tuple(
        report.model.tokens - sum(count for block, count in gone.items() if block <= place)
        for place in range(report.model.depth)
    )

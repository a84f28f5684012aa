"""The plots of a search, each of which is a file of its own as well. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from ztdeploy.report.kit.figure import Figure
from ztdeploy.report.kit.markup import Markup
from ztdeploy.report.kit.numbers import short
from ztdeploy.report.kit.plots.by_block import Curve, by_block_plot
from ztdeploy.report.kit.plots.estimates import Estimate, estimates_plot
from ztdeploy.report.kit.plots.frame import Frame, dot, path, x_range, y_range
from ztdeploy.report.kit.plots.scale import linear, steps
from ztdeploy.report.kit.plots.series import Series
from ztdeploy.report.tune.records import Score, TrialRecord, TuneReport

RIVALS = ("tuned", "preset", "ToMe")
SERIES = Series(RIVALS)
KL = "KL from the baseline, nats"


def front(report: TuneReport) -> Figure:
    """KL against cost on the report half: what was found, the best preset, ToMe."""
    found = {
        "tuned": [one.tuned for one in report.compared],
        "preset": [one.preset for one in report.compared],
        "ToMe": [one.tome for one in report.compared],
    }
    everything = [score for scores in found.values() for score in scores]
    x = linear([score.cost for score in everything], *x_range())
    y = linear([0.0, *(score.kl.value for score in everything)], *y_range())
    marks: list[Markup] = []
    for name, scores in found.items():
        points = sorted((x(score.cost), y(score.kl.value), _read_out(name, score)) for score in scores)
        marks.append(path([(across, down) for across, down, _ in points], f"line {SERIES.colour(name)}"))
        marks += [SERIES.point(across, down, name, text) for across, down, text in points]
    drawn = Frame(x, y, report.unit, KL).draw("KL from the baseline against cost", marks)
    text = "On the report half. Circles: found here; squares: the best preset; triangles: ToMe."
    return Figure("Fidelity against cost", text, drawn, "front")


def _read_out(name: str, score: Score) -> str:
    return f"{name}: {short(score.cost, 4)}, KL {score.kl.value:.4f}"


def trials(report: TuneReport) -> Figure | None:
    """Every trial in its order, and the best one so far."""
    made = [(one, one.kl) for one in report.trials if one.kl is not None]
    if not made:
        return None
    losses = sorted(kl for _, kl in made)
    x = linear([0.0, float(made[-1][0].number)], *x_range())
    y = linear([0.0, min(3 * losses[len(made) // 2], losses[-1])], *y_range())
    marks = [_trial(one, x(one.number), y(min(kl, y.high))) for one, kl in made]
    complete = [(float(one.number), kl) for one, kl in made if one.state == "complete"]
    if report.request.budget is not None and complete:
        best = list(accumulate(complete, lambda before, one: (one[0], min(before[1], one[1]))))
        best.append((float(made[-1][0].number), best[-1][1]))
        marks.insert(0, path([(x(at), y(min(kl, y.high))) for at, kl in steps(best)], "line front"))
    drawn = Frame(x, y, "trial", KL).draw("Trials in their order", marks)
    text = (
        "On the tuning half. Diamonds: what presets do; hollow: given up early. What lies higher is drawn at the top."
    )
    return Figure("Trials", text, drawn, "trials")


def _trial(one: TrialRecord, x: float, y: float) -> Markup:
    text = f"trial {one.number}: KL {one.kl or 0:.4f} on {one.images} images, {one.state}"
    if one.start:
        return SERIES.point(x, y, None, text)
    return dot(x, y, 3, "mark c0" if one.state == "complete" else "mark hollow c0", text)


def importances(report: TuneReport) -> Figure:
    rows = [
        Estimate(one.parameter, one.share, None, f"{one.parameter}: {100 * one.share:.0f} %")
        for one in report.importances
    ]
    drawn = estimates_plot("What decides whether a trial is good", "share of what mattered", rows, reference=0.0)
    text = "How far the values of good trials differ from those of all (PED-ANOVA)."
    return Figure("What mattered", text, drawn, "importances")


def by_block(report: TuneReport) -> Figure:
    """Tokens that enter each block, with the winner and what it is compared with."""
    found = report.winner
    curves = [
        Curve(score.label, tuple(map(float, tokens)), tuple(f"block {n}: {t} tokens" for n, t in enumerate(tokens, 1)))
        for score in (found.tome, found.preset, found.tuned)
        for tokens in [tokens_of(report, score)]
    ]
    drawn = by_block_plot("Tokens by block", "tokens", curves)
    return Figure("Tokens by block", "Tokens that enter each block.", drawn, "tokens")


def tokens_of(report: TuneReport, score: Score) -> tuple[int, ...]:
    """How many tokens enter each block, by counts of what goes behind the blocks before."""
    gone = {layer.block: layer.drop or 0 for layer in score.schedule.layers}
    return tuple(
        report.model.tokens - sum(count for block, count in gone.items() if block <= place)
        for place in range(report.model.depth)
    )


PLOTS = (front, trials, importances, by_block)


def figures(report: TuneReport) -> Iterator[Figure]:
    """Those of all plots for which there is something to draw."""
    drawn = (plot(report) for plot in PLOTS)
    return (one for one in drawn if one is not None and one.plot is not None)

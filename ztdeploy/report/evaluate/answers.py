"""What pruning changes about a classifier's answers: plots and the table of an evaluation's page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ztdeploy.report.kit.figure import Figure, legend, plots, section, swatch
from ztdeploy.report.kit.markup import Markup
from ztdeploy.report.kit.numbers import Estimated, counted, short
from ztdeploy.report.kit.plots.estimates import estimate_of, estimates_plot
from ztdeploy.report.kit.plots.frame import box, rows_plot
from ztdeploy.report.kit.plots.scale import Scale
from ztdeploy.report.kit.sheet import Column, estimated, table
from ztdeploy.target.evaluate.eval_report import AgainstDense, EvalReport, Share, VariantScore
from ztdeploy.target.measure.statistics import Interval

#: Parts of the images whose answer changed, and their colours.
LOST, GAINED, OTHER = ("lost", "part k-bad"), ("gained", "part k-good"), ("changed, neither right", "part k-other")
_BAR = 14.0


def answers(report: EvalReport) -> Markup | None:
    """None where nothing is compared with the baseline."""
    found = [(score, score.against_dense) for score in report.variants if score.against_dense is not None]
    if not found:
        return section("Answers", table("Answers", _columns(report), report.variants))
    images, labelled = counted(report.data.images, "image"), report.data.labelled
    lost = [estimate_of(score.label, changed(one), 100, unit="%") for score, one in found]
    top1 = [estimate_of(score.label, one.change, 100, "+", "points") for score, one in found if one.change is not None]
    kl = [estimate_of(score.label, one.kl, unit="nats") for score, one in found]
    rows = [(score.label, partial(_bar, score.label, one)) for score, one in found]
    most = max(one.agreement.total - one.agreement.count for _, one in found)
    bars = rows_plot("Changed answers", "images", [0, most, 1], rows)
    share = estimates_plot("Changed answers", "answers other than the baseline's, %", lost, reference=0.0)
    return section(
        "What changes",
        legend([(swatch(kind), text) for text, kind in (LOST, GAINED, OTHER)]) if labelled else None,
        plots(
            Figure("Changed answers", f"Of {images}: those answered otherwise.", bars if labelled else share),
            Figure(
                "Top-1 change",
                "Accuracy less the baseline's on the same images; whiskers: 95 % interval.",
                estimates_plot("Top-1 change", "points of %", top1, reference=0.0),
            ),
            Figure(
                "Divergence",
                "How far probabilities move: mean KL from the baseline; whiskers: 95 % interval.",
                estimates_plot("Divergence", "KL, nats", kl, reference=0.0),
            ),
        ),
        table("Answers", _columns(report), report.variants, chosen=_chosen(report)),
    )


def _chosen(report: EvalReport) -> int | None:
    """The place of the variant that the verdict recommends."""
    if report.verdict is None or report.verdict.decision != "deploy":
        return None
    return next((at for at, one in enumerate(report.variants) if one.variant == report.verdict.variant), None)


def changed(found: AgainstDense) -> Share:
    """The share of images with another answer than the baseline's."""
    same = found.agreement
    ends = Interval(low=1 - same.interval.high, high=1 - same.interval.low, confidence=same.interval.confidence)
    return Share(count=same.total - same.count, total=same.total, interval=ends)


def counts(found: AgainstDense) -> tuple[int, int, int]:
    """Images with another answer: lost, gained, and those that neither engine has right (or both)."""
    lost, gained = (found.change.lost, found.change.gained) if found.change else (0, 0)
    return lost, gained, max(0, found.agreement.total - found.agreement.count - lost - gained)


def _bar(name: str, found: AgainstDense, x: Scale, middle: float) -> list[Markup]:
    start, marks = 0, []
    for count, (text, kind) in zip(counts(found), (LOST, GAINED, OTHER), strict=True):
        if count:
            words = f"{name}: {counted(count, 'image')} {text}"
            marks.append(box(x(start), middle - _BAR / 2, x(start + count) - x(start), _BAR, kind, words))
            start += count
    return marks


def _columns(report: EvalReport) -> list[Column[VariantScore]]:
    """Those that the report has figures for; what pruning changes comes before what either engine has by itself."""

    def against(read: Callable[[AgainstDense], Estimated | None]) -> Callable[[VariantScore], Estimated | None]:
        return lambda score: None if score.against_dense is None else read(score.against_dense)

    def count(name: str) -> Column[VariantScore]:
        def value(score: VariantScore) -> int | None:
            change = score.against_dense.change if score.against_dense else None
            return None if change is None else int(getattr(change, name))

        return Column(name, value=value, show=lambda one: "-" if one is None else f"{one:.0f}")

    columns: list[Column[VariantScore]] = [
        Column("variant", lambda score: _name(score, report), kind="heading"),
        estimated("changed, %", against(changed), scale=100),
    ]
    if report.data.labelled:
        columns += [
            count("gained"),
            count("lost"),
            estimated("top-1 change, points", against(lambda one: one.change), scale=100, sign="+"),
            estimated("top-1, %", lambda score: score.top1, scale=100),
        ]
    if any(score.top5 is not None for score in report.variants):
        columns.append(Column("top-5, %", value=_top5, show=partial(short, digits=3)))
    return [
        *columns,
        estimated("divergence (KL), nats", against(lambda one: one.kl)),
        Column("GMACs", value=lambda score: score.gmacs, show=short),
    ]


def _name(score: VariantScore, report: EvalReport) -> str:
    return f"{score.label} (baseline)" if score is report.dense else score.label


def _top5(score: VariantScore) -> float | None:
    return None if score.top5 is None else 100 * score.top5.value

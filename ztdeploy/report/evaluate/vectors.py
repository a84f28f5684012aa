"""How alike embeddings or features are to the baseline's, and what embeddings find."""

from __future__ import annotations

import math
from functools import partial

from ztdeploy.core.preprocess_spec import NOUNS
from ztdeploy.report.evaluate.position_map import position_map
from ztdeploy.report.kit.figure import Figure, plots, section
from ztdeploy.report.kit.markup import Markup
from ztdeploy.report.kit.numbers import cosine, short
from ztdeploy.report.kit.plots.estimates import estimate_of, estimates_plot
from ztdeploy.report.kit.sheet import Column, estimated, table
from ztdeploy.report.show.tiles import Grid
from ztdeploy.target.evaluate.eval_report import EvalReport, Likeness, Recall, VariantScore

_INTERVALS = "Whiskers: 95 % interval over images."


def vectors(report: EvalReport) -> list[Markup | None]:
    return [_likeness(report), _recall(report), *_maps(report)]


def _likeness(report: EvalReport) -> Markup | None:
    found = [(score, score.likeness) for score in report.variants if score.likeness is not None]
    if not found:
        return None
    means = [estimate_of(score.label, one.mean) for score, one in found]
    low = [estimate_of(score.label, one.p5) for score, one in found]
    by_kind = [
        estimate_of(f"{score.label}, {name}", mean, colour=colour)
        for score, one in found
        if one.positions is not None
        for name, mean, colour in (("kept", one.positions.kept, "c2"), ("filled", one.positions.filled, "c1"))
        if mean is not None
    ]
    columns: list[Column[tuple[VariantScore, Likeness]]] = [
        Column("variant", lambda pair: pair[0].label, kind="heading"),
        estimated("mean cosine", lambda pair: pair[1].mean),
        estimated("5 % are below", lambda pair: pair[1].p5),
        Column("lowest", value=lambda pair: pair[1].lowest, show=cosine),
        Column("GMACs", value=lambda pair: pair[0].gmacs, show=short),
    ]
    each = "Of each position of each image" if report.output == "features" else "Of each image"
    filled = "Filled: the place's own token went, and it has the features of what stands for it."
    return section(
        f"Cosine to the baseline's {NOUNS[report.output]}",
        plots(
            Figure("Mean", _INTERVALS, estimates_plot("Mean cosine", "mean cosine", means)),
            Figure("5 % are below", "The lower end of what is met.", estimates_plot("5 % quantile", "cosine", low)),
            Figure("By what stands there", filled, estimates_plot("Cosine by kind of position", "cosine", by_kind)),
        ),
        table("Cosine to the baseline", columns, found),
        quiet=f"{each}, against the baseline's engine on the same image. 1 is the same direction.",
    )


def _recall(report: EvalReport) -> Markup | None:
    scored = [(score, one) for score in report.variants for one in score.recalls]
    if not scored:
        return None
    first = min(one.k for _, one in scored)
    drawn = [
        (score.label if one.gallery == "own" else f"{score.label}, baseline's", one)
        for score, one in scored
        if one.k == first
    ]
    recall = [estimate_of(name, one.recall, 100, unit="%") for name, one in drawn if one.recall is not None]
    overlap = [estimate_of(name, one.overlap, 100, unit="%") for name, one in drawn if one.overlap is not None]
    columns: list[Column[tuple[VariantScore, Recall]]] = [
        Column("variant", lambda pair: pair[0].label, kind="heading"),
        Column("gallery", lambda pair: "its own" if pair[1].gallery == "own" else "baseline's"),
        Column("k", lambda pair: str(pair[1].k), lambda pair: pair[1].k),
        estimated("recall, %", lambda pair: pair[1].recall, scale=100),
        estimated("change, points", lambda pair: pair[1].change, scale=100, sign="+"),
        estimated("baseline's neighbours, %", lambda pair: pair[1].overlap, scale=100),
    ]
    return section(
        "Recall",
        plots(
            Figure(
                f"Recall at {first}",
                "Images with one of their class among the nearest.",
                estimates_plot(f"Recall at {first}", f"recall at {first}, %", recall),
            ),
            Figure(
                "Baseline's neighbours",
                "Share of the nearest that are the baseline's nearest as well.",
                estimates_plot("Shared neighbours", f"of the {first} nearest, %", overlap),
            ),
        ),
        table("Recall", columns, scored),
        quiet="Each image asks for its nearest among all others (the gallery): in the variant's own embeddings, and in "
        "the baseline's.",
    )


def _maps(report: EvalReport) -> list[Markup]:
    found = []
    for score in report.variants:
        places = score.likeness.positions if score.likeness is not None else None
        if places is None:
            continue
        side = math.isqrt(len(places.mean))
        grid = Grid(*(report.grid or (side, side)))
        if grid.patches != len(places.mean):
            continue
        draw = partial(position_map, grid=grid)
        mean = draw(f"{score.label}: mean cosine by position", "mean cosine to the baseline", places.mean)
        gone = draw(f"{score.label}: how often a place is filled", "share of images", places.filled_at)
        drawn = plots(
            Figure("Where features stay what they are", "Mean over the images, for each place of the grid.", mean),
            Figure("Where tokens go", "Share of the images in which a place's own token is gone.", gone),
        )
        found.append(section(score.label, drawn))
    return found

"""The page of an evaluation: what `eval --page` writes. Names come from files, so all pass through `element`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ztdeploy.core.errors import InputError
from ztdeploy.core.files import read_bytes
from ztdeploy.core.preprocess_spec import NOUNS
from ztdeploy.report.evaluate.position_map import position_map
from ztdeploy.report.kit.document import document
from ztdeploy.report.kit.figure import Figure, plots
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.numbers import counted, short
from ztdeploy.report.kit.plots.estimates import Estimate, estimates_plot
from ztdeploy.report.kit.sheet import Cell, number, sheet
from ztdeploy.report.show.tiles import Grid
from ztdeploy.target.evaluate.eval_report import EvalReport, Mean, Quantile, Share, VariantScore
from ztdeploy.target.measure.report_file import check_overwritable
from ztdeploy.version import __version__

_INTERVAL = "95 % interval"
_WRITTEN = "Written by ztdeploy"
_LARGEST = 2**30  #: bytes of a page


def check_page_path(out: Path) -> None:
    """Fail early where a page could not be written in the end.

    Raises:
        OutputError: a folder, or a file that no page of ours is in.
    """

    def is_page() -> bool:
        try:
            return _WRITTEN.encode() in read_bytes(out, _LARGEST)
        except InputError:
            return False

    check_overwritable(out, "page of 'ztdeploy eval'", is_page, "--page FILE.html")


def eval_page(report: EvalReport) -> str:
    """The whole document, which is well-formed XML as well."""
    title = f"What pruning costs: {Path(report.bundle.path).resolve().name}"
    images = f"{counted(report.data.images, 'image')} of {report.data.name} ({report.data.rule})"
    facts = f"{report.bundle.timm_name}, profile {report.bundle.profile}, {report.bundle.runtime}; {images}."
    random = "The weights are random: outputs mean nothing." if report.bundle.weights == "random" else None
    main = element(
        "main",
        element("header", element("h1", title), element("p", facts, class_="lead")),
        None if random is None else element("p", random),
        _answers(report) if report.output == "logits" else [_likeness(report), _recall(report), *_maps(report)],
        element("footer", f"{_WRITTEN} {__version__}; images' sha256 {report.data.digest[:12]}."),
    )
    return document(title, main)


def _section(title: str, text: str | None, drawn: Sequence[Figure], table: Markup | None) -> Markup:
    quiet = None if text is None else element("p", text, class_="quiet")
    return element("section", element("h2", title), quiet, plots(*drawn), table)


def _answers(report: EvalReport) -> Markup:
    found = [(score, score.against_dense) for score in report.variants if score.against_dense is not None]
    kl = [_estimate(score.label, against.kl) for score, against in found]
    agreement = [_estimate(score.label, against.agreement, 100) for score, against in found]
    top1 = [_estimate(score.label, score.top1, 100) for score in report.variants if score.top1 is not None]
    rows = [
        [
            *_named(score),
            *_cells(score.top1, 100),
            *_cells(score.against_dense.agreement if score.against_dense else None, 100),
            *_cells(score.against_dense.kl if score.against_dense else None),
        ]
        for score in report.variants
    ]
    heads = ["variant", "GMACs", "top-1, %", _INTERVAL, "same answer, %", _INTERVAL, "KL, nats", _INTERVAL]
    drawn = [
        Figure("Accuracy", "Top-1 on labelled images.", estimates_plot("Top-1", "top-1, %", top1)),
        Figure("Agreement", "Images with dense's answer.", estimates_plot("Agreement", "same answer, %", agreement)),
        Figure("Divergence", "Of outputs from dense's.", estimates_plot("Divergence", "mean KL, nats", kl)),
    ]
    return _section("Answers", None, drawn, sheet("Answers", heads, rows))


def _likeness(report: EvalReport) -> Markup | None:
    found = [(score, score.likeness) for score in report.variants if score.likeness is not None]
    if not found:
        return None
    means = [_estimate(score.label, one.mean) for score, one in found]
    low = [_estimate(score.label, one.p5) for score, one in found]
    rows = [
        [*_named(score), *_cells(one.mean), *_cells(one.p5), number(f"{one.lowest:.4f}", one.lowest)]
        for score, one in found
    ]
    by_kind = [
        _estimate(f"{score.label}, {name}", mean, colour=colour)
        for score, one in found
        if one.positions is not None
        for name, mean, colour in (("kept", one.positions.kept, "c2"), ("filled", one.positions.filled, "c1"))
        if mean is not None
    ]
    heads = ["variant", "GMACs", "mean", _INTERVAL, "5 % are below", _INTERVAL, "lowest"]
    each = "Of each position of each image" if report.output == "features" else "Of each image"
    filled = "Filled: the place's own token went, and it has the features of what stands for it."
    drawn = [
        Figure("Mean", f"Whiskers: {_INTERVAL} over images.", estimates_plot("Mean cosine", "mean cosine", means)),
        Figure("5 % are below", "The lower end of what is met.", estimates_plot("5 % quantile", "cosine", low)),
        Figure("By what stands there", filled, estimates_plot("Cosine by kind of position", "mean cosine", by_kind)),
    ]
    return _section(
        f"Cosine to dense's {NOUNS[report.output]}",
        f"{each}, against the dense engine's on the same image.",
        drawn,
        sheet("Cosine to dense", heads, rows),
    )


def _recall(report: EvalReport) -> Markup | None:
    scored = [(score, one) for score in report.variants for one in score.recalls]
    if not scored:
        return None
    first = min(one.k for _, one in scored)
    drawn = [
        (score.label if one.gallery == "own" else f"{score.label} / dense", one)  # room is scarce
        for score, one in scored
        if one.k == first
    ]
    recall = [_estimate(name, one.recall, 100) for name, one in drawn if one.recall is not None]
    overlap = [_estimate(name, one.overlap, 100) for name, one in drawn if one.overlap is not None]
    rows = [
        [
            Cell(score.label, heading=True),
            Cell(one.gallery),
            number(f"{one.k}", one.k),
            *_cells(one.recall, 100),
            *_cells(one.overlap, 100),
        ]
        for score, one in scored
    ]
    heads = ["variant", "gallery", "k", "recall, %", _INTERVAL, "dense's neighbours, %", _INTERVAL]
    return _section(
        "Recall",
        "Each image asks for its nearest among all others: in the variant's own embeddings, and in dense's.",
        [
            Figure(
                f"Recall at {first}",
                "Images with one of their class among the nearest; / dense: in dense's gallery.",
                estimates_plot(f"Recall at {first}", f"recall at {first}, %", recall),
            ),
            Figure(
                "Dense's neighbours",
                "Share of the nearest that are dense's nearest; / dense: in dense's gallery.",
                estimates_plot("Shared neighbours", f"of the {first} nearest, %", overlap),
            ),
        ],
        sheet("Recall", heads, rows),
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
        cosine = position_map(f"{score.label}: mean cosine by position", "mean cosine to dense", places.mean, grid)
        filled = f"{score.label}: how often a place is filled"
        drawn = [
            Figure("Where features stay what they are", "Mean over the images, for each place of the grid.", cosine),
            Figure(
                "Where tokens go",
                "Share of the images in which a place's own token is gone.",
                position_map(filled, "share of images", places.filled_at, grid),
            ),
        ]
        found.append(_section(score.label, None, drawn, None))
    return found


def _named(score: VariantScore) -> list[Cell]:
    return [Cell(score.label, heading=True), number(short(score.gmacs), score.gmacs)]


def _estimate(name: str, found: Mean | Quantile | Share, scale: float = 1, colour: str = "c0") -> Estimate:
    value, span = _words(found, scale)
    return Estimate(name, scale * found.value, found.interval.scaled(scale), f"{name}: {value} ({span})", colour)


def _cells(found: Mean | Quantile | Share | None, scale: float = 1) -> list[Cell]:
    if found is None:
        return [number("-", None), number("", None)]
    value, span = _words(found, scale)
    return [number(value, found.value), number(span, None)]


def _words(found: Mean | Quantile | Share, scale: float) -> tuple[str, str]:
    """A figure and its interval."""
    spec = ".4f" if scale == 1 else ".1f"
    return f"{scale * found.value:{spec}}", f"{found.interval.scaled(scale):{spec}}"

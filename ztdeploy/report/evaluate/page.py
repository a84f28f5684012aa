"""The page of an evaluation: what `eval --page` writes. Names come from files, so all pass through `element`."""

from __future__ import annotations

import math
from pathlib import Path

from ztdeploy.core.errors import InputError
from ztdeploy.core.files import read_bytes, write
from ztdeploy.core.preprocess_spec import NOUNS
from ztdeploy.report.evaluate.position_map import position_map
from ztdeploy.report.kit.document import document
from ztdeploy.report.kit.figure import figure, plots
from ztdeploy.report.kit.figures import counted, short
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.plots.estimates import Estimate, estimates_plot
from ztdeploy.report.kit.sheet import Cell, number, sheet
from ztdeploy.report.show.tiles import Grid
from ztdeploy.target.evaluate.eval_report import EvalReport, Mean, Quantile, Recall, Share, VariantScore
from ztdeploy.target.measure.report_file import check_overwritable
from ztdeploy.version import __version__

_INTERVAL = "95 % interval"
_WRITTEN = "Written by ztdeploy"
_LARGEST = 2**30  #: bytes of a page


def write_eval_page(report: EvalReport, out: Path) -> None:
    """Write the page, whole or not at all, in place of an earlier one.

    Raises:
        OutputError: the file exists and is no such page, or cannot be written.
    """
    check_page_path(out)
    write(out, eval_page(report))


def check_page_path(out: Path) -> None:
    """
    Raises:
        OutputError: a folder, or a file that no page of ours is in.
    """
    check_overwritable(out, "page of 'ztdeploy eval'", lambda: _is_page(out), "--page FILE.html")


def _is_page(path: Path) -> bool:
    try:
        return _WRITTEN.encode() in read_bytes(path, _LARGEST)
    except InputError:
        return False


def eval_page(report: EvalReport) -> str:
    """The whole document, which is well-formed XML as well."""
    name = Path(report.bundle.path).resolve().name
    images = f"{counted(report.data.images, 'image')} of {report.data.name} ({report.data.rule})"
    facts = f"{report.bundle.timm_name}, profile {report.bundle.profile}, {report.bundle.runtime}; {images}."
    random = "The weights are random: outputs mean nothing." if report.bundle.weights == "random" else None
    main = element(
        "main",
        element("header", element("h1", f"What pruning costs: {name}"), element("p", facts, class_="lead")),
        None if random is None else element("p", random),
        _answers(report) if report.output == "logits" else [_likeness(report), _recall(report), *_maps(report)],
        element("footer", f"{_WRITTEN} {__version__}; images' sha256 {report.data.digest[:12]}."),
    )
    return document(f"What pruning costs: {name}", main)


def _answers(report: EvalReport) -> Markup:
    found = [(score, score.against_dense) for score in report.variants if score.against_dense is not None]
    kl = [_estimate(score.label, against.kl) for score, against in found]
    agreement = [_estimate(score.label, against.agreement, 100) for score, against in found]
    top1 = [_estimate(score.label, score.top1, 100) for score in report.variants if score.top1 is not None]
    rows = [
        [
            Cell(score.label, heading=True),
            number(short(score.gmacs), score.gmacs),
            *_cells(score.top1, 100),
            *_cells(score.against_dense.agreement if score.against_dense else None, 100),
            *_cells(score.against_dense.kl if score.against_dense else None),
        ]
        for score in report.variants
    ]
    heads = ["variant", "GMACs", "top-1, %", _INTERVAL, "same answer, %", _INTERVAL, "KL, nats", _INTERVAL]
    return element(
        "section",
        element("h2", "Answers"),
        plots(
            figure("Accuracy", "Top-1 on labelled images.", estimates_plot("Top-1", "top-1, %", top1)),
            figure(
                "Agreement", "Images with dense's answer.", estimates_plot("Agreement", "same answer, %", agreement)
            ),
            figure("Divergence", "Of outputs from dense's.", estimates_plot("Divergence", "mean KL, nats", kl)),
        ),
        sheet("Answers", heads, rows),
    )


def _likeness(report: EvalReport) -> Markup | None:
    found = [(score, score.likeness) for score in report.variants if score.likeness is not None]
    if not found:
        return None
    means = [_estimate(score.label, one.mean) for score, one in found]
    low = [_estimate(score.label, one.p5) for score, one in found]
    rows = [
        [
            Cell(score.label, heading=True),
            number(short(score.gmacs), score.gmacs),
            *_cells(one.mean),
            *_cells(one.p5),
            number(f"{one.lowest:.4f}", one.lowest),
        ]
        for score, one in found
    ]
    heads = ["variant", "GMACs", "mean", _INTERVAL, "5 % are below", _INTERVAL, "lowest"]
    each = "of each position of each image" if report.output == "features" else "of each image"
    return element(
        "section",
        element("h2", f"Cosine to dense's {NOUNS[report.output]}"),
        element("p", f"{each.capitalize()}, against the dense engine's on the same image.", class_="quiet"),
        plots(
            figure("Mean", f"Whiskers: {_INTERVAL} over images.", estimates_plot("Mean cosine", "mean cosine", means)),
            figure("5 % are below", "The lower end of what is met.", estimates_plot("5 % quantile", "cosine", low)),
            *_by_kind(report),
        ),
        sheet("Cosine to dense", heads, rows),
    )


def _by_kind(report: EvalReport) -> list[Markup | None]:
    """Where a position's own token is there, and where it is not."""
    rows = []
    for score in report.variants:
        places = score.likeness.positions if score.likeness is not None else None
        for name, mean in () if places is None else (("kept", places.kept), ("filled", places.filled)):
            if mean is not None:
                colour = "c2" if name == "kept" else "c1"
                rows.append(_estimate(f"{score.label}, {name}", mean, colour=colour))
    text = "Filled: the place's own token went, and it has the features of what stands for it."
    return [figure("By what stands there", text, estimates_plot("Cosine by kind of position", "mean cosine", rows))]


def _recall(report: EvalReport) -> Markup | None:
    scored = [(score, one) for score in report.variants for one in score.recalls]
    if not scored:
        return None
    first = min(one.k for _, one in scored)
    drawn = [pair for pair in scored if pair[1].k == first]
    recall = [_estimate(_named(*pair), pair[1].recall, 100) for pair in drawn if pair[1].recall is not None]
    overlap = [_estimate(_named(*pair), pair[1].overlap, 100) for pair in drawn if pair[1].overlap is not None]
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
    text = "Each image asks for its nearest among all others: in the variant's own embeddings, and in dense's."
    return element(
        "section",
        element("h2", "Recall"),
        element("p", text, class_="quiet"),
        plots(
            figure(
                f"Recall at {first}",
                "Images with one of their class among the nearest; / dense: in dense's gallery.",
                estimates_plot(f"Recall at {first}", f"recall at {first}, %", recall),
            ),
            figure(
                "Dense's neighbours",
                "Share of the nearest that are dense's nearest; / dense: in dense's gallery.",
                estimates_plot("Shared neighbours", f"of the {first} nearest, %", overlap),
            ),
        ),
        sheet("Recall", heads, rows),
    )


def _named(score: VariantScore, one: Recall) -> str:
    return score.label if one.gallery == "own" else f"{score.label} / dense"  # room is scarce


def _maps(report: EvalReport) -> list[Markup]:
    found = []
    for score in report.variants:
        places = score.likeness.positions if score.likeness is not None else None
        if places is None:
            continue
        side = math.isqrt(len(places.mean))
        grid = Grid(*(report.grid or (side, side)))
        title = f"{score.label}: mean cosine by position"
        drawn = plots(
            figure(
                "Where features stay what they are",
                "Mean over the images, for each place of the grid.",
                position_map(title, "mean cosine to dense", places.mean, grid),
            ),
            figure(
                "Where tokens go",
                "Share of the images in which a place's own token is gone.",
                position_map(f"{score.label}: how often a place is filled", "share of images", places.filled_at, grid),
            ),
        )
        if drawn is not None:
            found.append(element("section", element("h2", score.label), drawn))
    return found


def _estimate(name: str, found: Mean | Quantile | Share, scale: float = 1, colour: str = "c0") -> Estimate:
    interval = found.interval.model_copy(
        update={"low": scale * found.interval.low, "high": scale * found.interval.high}
    )
    digits = 4 if scale == 1 else 1
    text = f"{name}: {scale * found.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"
    return Estimate(name, scale * found.value, interval, text, colour)


def _cells(found: Mean | Quantile | Share | None, scale: float = 1) -> list[Cell]:
    if found is None:
        return [number("-", None), number("", None)]
    digits = 4 if scale == 1 else 1
    low, high = scale * found.interval.low, scale * found.interval.high
    return [
        number(f"{scale * found.value:.{digits}f}", found.value),
        number(f"{low:.{digits}f} to {high:.{digits}f}", None),
    ]

"""Tables of `ztdeploy eval` for embeddings and features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztdeploy.cli.intervals import HEADING, change_words, mean_words, share_words
from ztdeploy.cli.output import say, table

if TYPE_CHECKING:
    from ztdeploy.target.evaluate.eval_report import EvalReport, Likeness, VariantScore

#: Images with the lowest cosine that are shown per variant; the report has more.
_FURTHEST = 3


def show_vectors(report: EvalReport) -> None:
    """How alike vectors are to dense's, and what embeddings find."""
    found = [(score, score.likeness) for score in report.variants if score.likeness is not None]
    if found:
        _show_likeness(report, found)
        if report.output == "features":
            _show_positions(found)
        _show_furthest(found)
    if any(score.recalls for score in report.variants):
        _show_recall(report)
    elif report.output == "embedding":
        say("Recall takes at least two images.")


def _show_likeness(report: EvalReport, found: list[tuple[VariantScore, Likeness]]) -> None:
    each = "embedding" if report.output == "embedding" else "position"
    headings = ("GMACs", "mean", HEADING, "5 % are below", HEADING, "lowest")
    rows = [
        (score.label, f"{score.gmacs:.3g}", *mean_words(one.mean), *mean_words(one.p5), f"{one.lowest:.4f}")
        for score, one in found
    ]
    table(
        f"Cosine to the dense engine's {report.output}, on {report.data.images} images",
        [("variant", "left"), *((heading, "right") for heading in headings)],
        rows,
        caption=f"of each image and {each}" if each == "position" else "of each image",
    )


def _show_positions(found: list[tuple[VariantScore, Likeness]]) -> None:
    rows = [
        (
            score.label,
            *mean_words(one.positions.kept),
            *mean_words(one.positions.filled),
            f"{100 * one.positions.filled_share:.1f}",
            f"{one.positions.lowest.cosine:.4f} at {one.positions.lowest.position}",
            one.positions.lowest.image,
        )
        for score, one in found
        if one.positions is not None
    ]
    headings = ("token kept", HEADING, "filled", HEADING, "filled, in %", "lowest")
    table(
        "Cosine by what stands at a position",
        [("variant", "left"), *((heading, "right") for heading in headings), ("of image", "left")],
        rows,
        caption="filled: its own token went, and it has the features of another; positions count from 0, row by row",
    )


def _show_furthest(found: list[tuple[VariantScore, Likeness]]) -> None:
    rows = [
        (score.label if place == 0 else "", f"{far.cosine:.4f}", far.image)
        for score, one in found
        for place, far in enumerate(one.furthest[:_FURTHEST])
    ]
    if rows:
        table("Furthest from dense", [("variant", "left"), ("cosine", "right"), ("image", "left")], rows)


def _show_recall(report: EvalReport) -> None:
    labelled = any(one.recall is not None for score in report.variants for one in score.recalls)
    rows = []
    for score in report.variants:
        for one in score.recalls:
            overlap = ("", "") if one.overlap is None else share_words(one.overlap)
            recall = (*share_words(one.recall), *change_words(one.change)) if labelled else ()
            rows.append((score.label, one.gallery, f"{one.k}", *recall, *overlap))
    recall = ("recall", HEADING, "less dense", HEADING) if labelled else ()
    headings = ("k", *recall, "dense's neighbours", HEADING)
    asking = next((one.recall.total for one in report.variants[0].recalls if one.recall is not None), None)
    queries = "" if asking is None else f", {asking} of them with others of their class"
    table(
        f"Each of {report.data.images} images asks for its nearest among the others{queries}, in %",
        [("variant", "left"), ("gallery", "left"), *((heading, "right") for heading in headings)],
        rows,
        caption="gallery: whose embeddings the others have; recall: images with their class among the k nearest\n"
        "dense's neighbours: of the k nearest, those that are dense's k nearest as well",
    )
    if report.data.labelled and not labelled:
        say("No class has two images: there is no recall, only what dense finds.")

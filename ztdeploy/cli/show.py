"""ztdeploy show"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ztdeploy.cli.help import JUDGE, OUTPUT
from ztdeploy.cli.options import (
    ALL,
    BundleArgument,
    CascadeOption,
    ImagesArgument,
    KeepRatiosOption,
    ProfileOption,
    SignedByOption,
    VariantsOption,
    demand_signature,
    option,
    path,
)
from ztdeploy.cli.output import answer, note, progress_bar, table

if TYPE_CHECKING:
    from ztdeploy.cli.results import ShowResult
    from ztdeploy.core.manifest import ModelRecord
    from ztdeploy.target.evaluate.explain import Explained, ExplainedImage
    from ztdeploy.target.evaluate.reasons import LayerReasons


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=JUDGE)(show)


def show(
    bundle: BundleArgument,
    images: ImagesArgument,
    out: Annotated[
        Path, option("-o, --out DIR", path, OUTPUT, "Folder for show.html and a NAME.show.png of each image.")
    ],
    keep_ratios: KeepRatiosOption = None,
    variants: VariantsOption = None,
    profile: ProfileOption = None,
    cascade: CascadeOption = False,
    signed_by: SignedByOption = None,
) -> None:
    """Draw which patches of images the engines keep.

    Each image becomes a PNG with its patches layer by layer; a page shows all of them.

    Patches that went by similarity are shown with what they are like, and patches that went by importance with a map
    of it. Both come from the bundle's graphs with notes, as far as these choose what the engines do.

    Examples:
        # See what each variant keeps of an image.
        ztdeploy show quickstart photo.jpg --out shown
        # Compare two keep ratios on a few images.
        ztdeploy show quickstart photos/*.jpg -k 0.7,0.5 --out shown
        # See which stage of a cascade answered each image, and how sure it was.
        ztdeploy show unsure photos/*.jpg --cascade --out shown
    """
    from ztdeploy.core.bundle import read_bundle
    from ztdeploy.report.show.page import PAGE, sheet_paths, write_show
    from ztdeploy.target.evaluate.explain import explain_bundle

    demand_signature(signed_by)
    shown, opened, sheets = [], read_bundle(bundle), sheet_paths(images, out)
    ratios = [] if keep_ratios == [ALL] else keep_ratios or []
    explained = explain_bundle(opened, images, ratios, variants or (), profile=profile, cascade=cascade)
    with progress_bar() as progress:
        for one, sheet in write_show(opened, explained, sheets, out, cascade=cascade):
            shown.append((one, sheet))
            progress(f"drew {one.image.name}", len(shown), len(images))
    answer(lambda: _result(out / PAGE, shown), lambda: _show(shown, opened.manifest.model, cascade=cascade))
    note(f"wrote {out / PAGE} and {len(shown)} PNG")


def _show(shown: Sequence[tuple[ExplainedImage, Path]], model: ModelRecord, *, cascade: bool) -> None:
    from ztdeploy.target.evaluate.maps import figures_in_words

    rows, doubts = [], dict[str, list[str]]()
    for one, sheet in shown:
        for seen in one.variants:
            kept = ", ".join(str(len(layer.kept)) for layer in seen.layers)
            best = [labels[0].words(0) if labels else "-" for labels in (one.dense_labels, seen.labels)]
            answers = best if seen.cosine is None else [f"{seen.cosine:.4f}"]
            answers = [figures_in_words(seen.figures, model.activation)] if seen.figures else answers
            decided = [seen.decision.words] if seen.decision else []
            rows.append([sheet.name, seen.variant.name, *decided, *answers, kept or "-", _gone(seen)])
            if seen.doubt is not None:
                doubts.setdefault(seen.doubt, []).append(f"{sheet.name}, {seen.variant.name}")
    vectors, maps = ("cosine to the baseline",), ("nearness to the baseline's map",)
    answers_of = {"logits": ("baseline says", "it says"), "maps": maps}.get(model.gives, vectors)
    decides = ("decision",) if cascade else ()
    columns = ("sheet", "variant", *decides, *answers_of, "patches kept per layer", "gone by similarity + importance")
    table("What stays", [(column, "left") for column in columns], rows)
    for doubt, where in doubts.items():
        note(f"{where[0]}{f' and {len(where) - 1} more' if len(where) > 1 else ''}: {doubt}")


def _result(page: Path, shown: Sequence[tuple[ExplainedImage, Path]]) -> ShowResult:
    from ztdeploy.cli.results import ShowResult

    images = [
        {
            "image": str(one.image),
            "sheet": str(sheet),
            "dense": [label.plain for label in one.dense_labels],
            "answered_by": one.answered_by,
            "variants": [_variant(seen) for seen in one.variants],
        }
        for one, sheet in shown
    ]
    return ShowResult.model_validate({"page": str(page), "images": images})


def _variant(seen: Explained) -> dict[str, Any]:
    return {
        "variant": seen.variant.name,
        "method": seen.variant.schedule.method,
        "labels": [label.plain for label in seen.labels],
        "cosine": None if seen.cosine is None else round(seen.cosine, 6),
        "map": None if seen.figures is None else seen.figures.model_dump(),
        "doubt": seen.doubt,
        "confidence": seen.decision and seen.decision.confidence,
        "threshold": seen.decision and seen.decision.threshold,
        "layers": [
            {
                "block": layer.plan.block,
                "tokens_in": layer.plan.tokens_in,
                "tokens_out": layer.plan.tokens_out,
                "kept_patches": layer.kept.tolist(),
                "merged_patches": [group.tolist() for group in layer.groups],
                **({} if reasons is None else _reasons(reasons)),
            }
            for layer, reasons in zip(seen.layers, seen.reasons, strict=True)
        ],
    }


def _reasons(reasons: LayerReasons) -> dict[str, Any]:
    importance = [round(float(value), 6) if isfinite(value) else None for value in reasons.importance]
    return {
        "dropped_by_similarity": list(reasons.by_similarity),
        "dropped_by_importance": list(reasons.by_importance),
        "pairs": [[pair.patch, pair.partner, round(pair.similarity, 6)] for pair in reasons.pairs],
        "importance": importance if reasons.has_importance else None,
    }


def _gone(seen: Explained) -> str:
    """How many patches went for which reason, over all layers."""
    known = [reasons for reasons in seen.reasons if reasons is not None]
    counts = (sum(len(one.by_similarity) for one in known), sum(len(one.by_importance) for one in known))
    return f"{counts[0]} + {counts[1]}" if known else "-"

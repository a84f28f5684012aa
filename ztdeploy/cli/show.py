"""ztdeploy show"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ztdeploy.cli.options import BundleArgument, ImagesArgument, KeepRatiosOption, ProfileOption
from ztdeploy.cli.output import JsonFlag, note, print_json, progress_bar, table

if TYPE_CHECKING:
    from ztdeploy.fidelity.show import Seen
    from ztdeploy.runtime.postprocess import Label

HELP = """Draw which patches of images the engines keep, layer by layer: a PNG per image, and a page of all.

Whether a patch went by similarity or by importance, and how important it was, is not among the engines' outputs, and
not shown.
"""


def register(app: typer.Typer) -> None:
    app.command(help=HELP)(show)


def show(
    bundle: BundleArgument,
    images: ImagesArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for show.html and a NAME.show.png per image.")],
    keep_ratio: KeepRatiosOption = None,
    profile: ProfileOption = None,
    json: JsonFlag = False,
) -> None:
    from ztdeploy.fidelity.show import PAGE, show_bundle
    from ztdeploy.measure.plan import parse_keep_ratios

    ratios, every = parse_keep_ratios(keep_ratio or [])
    rows, found = [], []
    with progress_bar(not json and len(images) > 1) as progress:
        shown = show_bundle(bundle, images, out, keep_ratios=() if every else ratios, profile=profile)
        for done, one in enumerate(shown, 1):
            progress(f"drew {one.image.name}", done, len(images))
            found.append(
                {
                    "image": str(one.image),
                    "sheet": str(one.sheet),
                    "dense": _labels(one.dense_labels),
                    "variants": [_variant(seen) for seen in one.seen],
                }
            )
            for seen in one.seen:
                kept = ", ".join(str(len(layer.kept)) for layer in seen.layers)
                rows.append((one.sheet.name, seen.variant.name, _best(one.dense_labels), _best(seen.labels), kept))
    if json:
        print_json({"page": str(out / PAGE), "images": found})
        return
    columns = ("sheet", "variant", "dense says", "it says", "patches kept per layer")
    table("What stays", [(column, "left") for column in columns], rows)
    note(f"wrote {out / PAGE} and {len(found)} PNG")


def _variant(seen: Seen) -> dict[str, Any]:
    return {
        "variant": seen.variant.name,
        "method": seen.variant.schedule.method,
        "labels": _labels(seen.labels),
        "layers": [
            {
                "block": layer.plan.block,
                "tokens_in": layer.plan.tokens_in,
                "tokens_out": layer.plan.tokens_out,
                "kept_patches": layer.kept.tolist(),
                "merged_patches": [group.tolist() for group in layer.groups],
            }
            for layer in seen.layers
        ],
    }


def _labels(labels: tuple[Label, ...]) -> list[dict[str, Any]]:
    return [{"index": one.index, "name": one.name, "probability": round(one.probability, 6)} for one in labels]


def _best(labels: tuple[Label, ...]) -> str:
    return f"{labels[0].name} ({100 * labels[0].probability:.0f} %)" if labels else "-"

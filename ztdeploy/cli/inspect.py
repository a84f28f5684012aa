"""ztdeploy inspect"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.output import JsonFlag, print_json, table

if TYPE_CHECKING:
    from ztdeploy.bundle import Bundle, VariantRecord


def register(app: typer.Typer) -> None:
    app.command(help="Show what is in a bundle: variants, blocks, tokens, GMACs, parity.")(inspect)


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Folder that 'ztdeploy build' wrote.")],
    keep_ratio: Annotated[
        float | None, typer.Option("--keep-ratio", "-k", help="Show this variant block by block.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="The same by name.")] = None,
    json: JsonFlag = False,
) -> None:
    from ztdeploy.bundle import read_bundle

    opened = read_bundle(bundle)
    if json:
        print_json(opened.manifest.model_dump(mode="json", by_alias=True))
        return
    show_bundle(opened)
    show_blocks(opened, opened.variant(keep_ratio, variant))


def show_bundle(bundle: Bundle) -> None:
    """The variants of a bundle, one a row."""
    manifest = bundle.manifest
    rows = []
    for variant in manifest.variants:
        tokens, records = variant.plan.tokens_per_block, [e.parity for e in variant.engines.values() if e.parity]
        rows.append(
            (
                variant.name + (" *" if variant.name == manifest.default_variant else ""),
                variant.schedule.method if variant.plan.layers else "-",
                " ".join(str(count) for count in dict.fromkeys(tokens)),
                f"{variant.gmacs:.3f}",
                f"{manifest.dense.gmacs / variant.gmacs:.2f}x",
                f"{variant.pruning_gmacs:.4f}",
                ", ".join(variant.engines) or "none",
                f"{max(r.max_logit_difference for r in records):.0e}" if records else "-",
            )
        )
    size = sum(record.bytes for record in manifest.files.values()) / 1e6
    weights = manifest.weights
    table(
        f"{bundle.root.name}: {manifest.model.timm_name}, {weights.source} weights ({weights.origin}), {size:.1f} MB",
        [
            ("variant", "left"),
            ("method", "left"),
            ("tokens", "left"),
            ("GMACs", "right"),
            ("less work", "right"),
            ("pruning GMACs", "right"),
            ("engines", "left"),
            ("parity", "right"),
        ],
        rows,
        caption="* default; parity: largest logit difference to PyTorch",
    )


def show_blocks(bundle: Bundle, variant: VariantRecord) -> None:
    """One variant, block by block."""
    from ztdeploy.schedule import block_gmacs

    architecture = bundle.manifest.model.architecture
    layers = {layer.block: layer for layer in variant.plan.layers}
    rows = []
    for block, tokens in enumerate(variant.plan.tokens_per_block):
        layer = layers.get(block)
        cells = ["", "", "", ""]
        if layer is not None:
            cells = [
                f"{layer.tokens_out}",
                f"{layer.similarity_drop}",
                f"{layer.importance_drop}",
                f"{layer.iterations}",
            ]
        rows.append((f"blocks.{block}", f"{tokens}", f"{block_gmacs(architecture, tokens):.4f}", *cells))
    headings = [
        "block",
        "tokens",
        "GMACs",
        "kept behind it",
        "dropped as similar",
        "dropped as unimportant",
        "iterations",
    ]
    table(f"{variant.name}, block by block", [(h, "left" if h == "block" else "right") for h in headings], rows)

"""ztdeploy inspect"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.options import BundleArgument, VariantOption, number_option
from ztdeploy.cli.output import JsonFlag, cell, print_json, say, table
from ztdeploy.core import arguments
from ztdeploy.core.names import block_name

if TYPE_CHECKING:
    from ztdeploy.core.bundle import Bundle
    from ztdeploy.core.manifest import EngineRecord, FidelityRecord, GraphRecord, VariantRecord


def register(app: typer.Typer) -> None:
    app.command(help="Show what is in a bundle: variants, blocks, tokens, GMACs, parity.")(inspect)


def inspect(
    bundle: BundleArgument,
    keep_ratio: Annotated[
        float | None,
        number_option(arguments.KEEP_RATIO, "--keep-ratio", "-k", help="Show this variant block by block."),
    ] = None,
    variant: VariantOption = None,
    json: JsonFlag = False,
) -> None:
    from ztdeploy.cli.precision import show_choices, show_ranges
    from ztdeploy.core.bundle import read_bundle

    opened = read_bundle(bundle)
    if json:
        print_json(opened.manifest.model_dump(mode="json", by_alias=True))
        return
    show_bundle(opened)
    show_engines(opened)
    for line in opened.manifest.lines_of_missing:
        say(line)
    show_drift(opened)
    show_fidelity(opened)
    show_choices(opened)
    show_ranges(opened)
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
                _method(variant),
                _counts(list(dict.fromkeys(tokens))),
                f"{variant.gmacs:.3f}",
                f"{manifest.dense.gmacs / variant.gmacs:.2f}x",
                f"{variant.pruning_gmacs:.4f}",
                ", ".join(variant.engines) or "none",
                f"{max(r.max_logit_difference for r in records):.0e}" if records else "-",
            )
        )
    size = sum(record.bytes for record in manifest.files.values()) / 1e6
    name, weights, head = bundle.root.resolve().name, manifest.weights, manifest.text_head
    texts = "" if head is None else f", text head of {head.classes} classes ({head.origin})"
    table(
        f"{name}: {manifest.model.timm_name}, {weights.source} weights ({weights.origin}){texts}, {size:.1f} MB",
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
        caption="* default; parity: largest logit difference to PyTorch, of ONNX Runtime's int8 to its graph",
    )


def _method(variant: VariantRecord) -> str:
    """And the options that are not at their default."""
    schedule = variant.schedule
    if not variant.plan.layers:
        return "-"
    return f"{schedule.method} ({schedule.options})" if schedule.options.changed else schedule.method


def _counts(tokens: Sequence[int]) -> str:
    """Token counts that fit a cell: where every block has another, the first two and the last."""
    shown = [str(count) for count in tokens]
    return " ".join(shown if len(shown) <= 6 else [*shown[:2], "...", shown[-1]])


def show_engines(bundle: Bundle) -> None:
    """What each engine is bound to, and what proves it."""
    from ztdeploy.core.manifest import plugin_kind

    rows = []
    for profile in bundle.manifest.profiles:
        for variant in bundle.manifest.variants:
            graph, engine = variant.graphs[profile], variant.engines.get(profile)
            bound = "built on the device"
            if engine is not None:
                bound = (
                    f"{engine.fingerprint.runtime} {engine.fingerprint.runtime_version}, {engine.fingerprint.device}"
                )
            megabytes = "" if engine is None else f"{bundle.manifest.files[engine.file].bytes / 1e6:.1f}"
            if engine is not None and engine.fingerprint.plugins is not None:
                bound += f", plugins ({plugin_kind(engine.fingerprint.plugins)})"
            if graph.plain_for:
                bound += f", no plugins (option {', '.join(graph.plain_for)})"
            rows.append((profile, variant.name, graph.precision, megabytes, bound, _proof(graph, engine)))
    columns = [("profile", "left"), ("variant", "left"), ("precision", "left"), ("MB", "right")]
    columns += [("bound to", "left"), ("proof", "left")]
    table(
        "Engines",
        columns,
        rows,
        caption="proof: logit difference to PyTorch on the golden images, of ONNX Runtime's int8 to its graph;"
        " layers: of the worst integer layer by itself, relative",
    )


def _proof(graph: GraphRecord, engine: EngineRecord | None) -> str:
    if engine is not None and engine.parity is not None:
        layers = "" if engine.parity.layer_error is None else f", layers {engine.parity.layer_error:.0e}"
        return f"{engine.parity.judgement}{layers}"
    if graph.parity is not None:
        what = "graph emulated" if graph.parity.emulated else "graph alone"
        return f"{what}: {graph.parity.judgement}; never run"
    return "never run"


def show_drift(bundle: Bundle) -> None:
    """How far graphs below fp32 are from fp32 by their precision alone, if there are any."""
    output = bundle.manifest.model.gives
    vectors = output != "logits"
    rows = [
        (
            profile,
            variant.name,
            graph.precision,
            ", ".join(f"{100 * layer.overlap:.1f}" for layer in graph.drift.layers) or "-",
            *(
                (cell(graph.drift.cosine, ".4f"),)
                if vectors
                else (cell(graph.drift.agreement, ".0f", 100), cell(graph.drift.kl, ".4f"))
            ),
            f"{graph.drift.median_logit_difference:.0e}",
        )
        for profile in bundle.manifest.profiles
        for variant in bundle.manifest.variants
        if (graph := variant.graphs[profile]).drift is not None
    ]
    if not rows:
        return
    columns = [("profile", "left"), ("variant", "left"), ("precision", "left"), ("same tokens, in %", "left")]
    costs = ("mean cosine",) if vectors else ("same answer, in %", "mean KL")
    columns += [(heading, "right") for heading in (*costs, f"{output}, median")]
    images = len(bundle.manifest.golden.images)
    caption = f"against fp32 with tokens of its own, on the {images} golden images; same tokens: by pruning layer"
    table("Drift by precision", columns, rows, caption=caption)


def show_fidelity(bundle: Bundle) -> None:
    """What evaluations on images found out, if there were any."""
    from ztdeploy.core.preprocess_spec import NOUNS

    vectors = bundle.manifest.model.gives != "logits"
    rows = [
        (
            name if record.dense_profile is None else f"{name} (dense: {record.dense_profile})",
            variant.name,
            f"{record.images} of {record.data} ({record.data_sha256[:8]})",
            *((cell(record.cosine, ".4f"),) if vectors else _answers(record)),
            record.created[:10],
        )
        for name in bundle.manifest.profiles
        for variant in bundle.manifest.variants
        if (record := bundle.fidelity(variant, name)) is not None
    ]
    if not rows:
        return
    answers = ("top-1, in %", "less dense, 95 % interval", "same answer, in %", "mean KL")
    costs = [(heading, "right") for heading in (("mean cosine",) if vectors else answers)]
    columns = [("profile", "left"), ("variant", "left"), ("images", "left"), *costs, ("on", "left")]
    caption = f"mean cosine: of {NOUNS[bundle.manifest.model.gives]}, to dense's"
    table("Evaluated on images", columns, rows, caption=caption if vectors else "mean KL: from dense, in nats")


def _answers(record: FidelityRecord) -> tuple[str, ...]:
    change = "-" if record.change is None else f"{100 * record.change[0]:+.1f} to {100 * record.change[1]:+.1f}"
    return cell(record.top1, ".1f", 100), change, cell(record.agreement, ".1f", 100), cell(record.kl, ".4f")


def show_blocks(bundle: Bundle, variant: VariantRecord) -> None:
    """One variant, block by block."""
    from ztdeploy.core.cost import block_gmacs

    layers = {layer.block: layer for layer in variant.plan.layers}
    graph = next(iter(variant.graphs.values()))
    rows = []
    plan = variant.plan
    counts = zip(plan.tokens_per_block, plan.mlp_tokens_per_block, strict=True)
    for nodes, (tokens, in_mlp) in zip(graph.nodes, counts, strict=True):
        layer = layers.get(nodes.block)
        work = block_gmacs(bundle.manifest.model.architecture, tokens, in_mlp)
        cells = [block_name(nodes.block), f"{tokens}", f"{work:.4f}", f"{nodes.own}"]
        if layer is not None:
            iterations = layer.iterations if layer.importance_drop else ""
            numbers = (layer.tokens_out, layer.similarity_drop, layer.importance_drop, iterations, nodes.pruning)
            cells += [str(number) for number in numbers]
        rows.append(cells + [""] * (9 - len(cells)))
    headings = ["block", "tokens", "GMACs", "ops", "keeps", "similar", "unimportant", "iterations", "pruning ops"]
    common = sorted(graph.operators.items(), key=lambda item: (-item[1], item[0]))[:6]
    table(
        f"{variant.name}, block by block",
        [(heading, "left" if heading == "block" else "right") for heading in headings],
        rows,
        caption=f"similar, unimportant: tokens that the layer {_what_it_does(variant)} as such\n"
        f"{sum(graph.operators.values())} ops: {', '.join(f'{count} {name}' for name, count in common)}, ...",
    )


def _what_it_does(variant: VariantRecord) -> str:
    layers = variant.plan.layers
    place = "inside the block" if layers and layers[0].inside else "behind the block"
    return f"{place} {'merges into others' if layers and layers[0].merges else 'drops'}"

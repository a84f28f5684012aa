"""ztdeploy inspect"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from ztdeploy.cli.help import LOOK_UP
from ztdeploy.cli.options import BundleArgument, KeepRatioOption, SignedByOption, VariantOption, demand_signature
from ztdeploy.cli.output import answer, cell, left, right, say, table
from ztdeploy.core.names import block_name

if TYPE_CHECKING:
    from ztdeploy.core.bundle import Bundle
    from ztdeploy.core.manifest import (
        CandidateRecord,
        ChoiceRecord,
        EngineRecord,
        Fidelity,
        FidelityRecord,
        GateRow,
        Manifest,
        PartRecord,
        VariantRecord,
    )


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=LOOK_UP)(inspect)


def inspect(
    bundle: BundleArgument,
    keep_ratio: KeepRatioOption = None,
    variant: VariantOption = None,
    signed_by: SignedByOption = None,
) -> None:
    """Show what is in a bundle: variants, compute, proofs.

    Examples:
        # Show the variants of a bundle, and the default one block by block.
        ztdeploy inspect quickstart
        # Show another variant block by block.
        ztdeploy inspect quickstart --keep-ratio 0.5
    """
    from ztdeploy.core.bundle import read_bundle

    demand_signature(signed_by)
    opened = read_bundle(bundle)
    chosen = opened.variant(keep_ratio, variant)
    answer(opened.manifest, lambda: _show(opened, chosen))


def _show(bundle: Bundle, variant: VariantRecord) -> None:
    show_bundle(bundle)
    _show_engines(bundle)
    _show_cascade(bundle)
    for line in bundle.manifest.lines_of_missing:
        say(line)
    show_findings(bundle)
    _show_blocks(bundle, variant)


def show_bundle(bundle: Bundle) -> None:
    """The variants of a bundle, one a row."""
    manifest, rows = bundle.manifest, []
    for variant in manifest.variants:
        schedule, tokens = variant.schedule, [str(count) for count in dict.fromkeys(variant.plan.tokens_per_block)]
        method = f"{schedule.method} ({schedule.options})" if schedule.options.changed else schedule.method
        differences = [engine.parity.max_logit_difference for engine in variant.engines.values() if engine.parity]
        rows.append(
            (
                variant.name + (" *" if variant.name == manifest.default_variant else ""),
                method if variant.plan.layers else "-",
                " ".join(tokens if len(tokens) <= 6 else [*tokens[:2], "...", tokens[-1]]),
                f"{variant.gmacs:.3f}",
                f"{manifest.dense.gmacs / variant.gmacs:.2f}x",
                ", ".join(variant.engines) or "none",
                cell(max(differences, default=None), ".0e"),
            )
        )
    size = sum(record.bytes for record in manifest.files.values()) / 1e6
    name, weights, head = bundle.root.resolve().name, manifest.weights, manifest.text_head
    texts = "" if head is None else f", text head of {head.classes} classes ({head.origin})"
    table(
        f"{name}: {manifest.model.timm_name}, {weights.source} weights ({weights.origin}){texts}, {size:.1f} MB",
        left("variant", "method", "tokens") + right("GMACs", "less work") + left("engines") + right("parity"),
        rows,
        caption=f"* default; parity: largest logit difference to PyTorch{_of_int8(manifest)}",
    )


def _show_engines(bundle: Bundle) -> None:
    """What each engine is bound to, and what proves it."""
    from ztdeploy.core.manifest import plugin_kind

    rows = []
    for profile in bundle.manifest.profiles:
        for variant in bundle.manifest.parts:
            graph, engine = variant.graphs[profile], variant.engines.get(profile)
            bound, megabytes = "built on the device", ""
            if engine is not None:
                bound_to = engine.fingerprint
                bound = f"{bound_to.runtime} {bound_to.runtime_version}, {bound_to.device}"
                bound += "" if bound_to.plugins is None else f", plugins ({plugin_kind(bound_to.plugins)})"
                megabytes = f"{bundle.manifest.files[engine.file].bytes / 1e6:.1f}"
            if graph.plain_for:
                bound += f", no plugins (option {', '.join(graph.plain_for)})"
            name = variant.name.lstrip("_")
            rows.append((profile, name, graph.precision, megabytes, bound, _proof(variant, profile, engine)))
    table(
        "Engines",
        left("profile", "variant", "precision") + right("MB") + left("bound to", "proof"),
        rows,
        caption=f"proof: logit difference to PyTorch on the golden images{_of_int8(bundle.manifest)}"
        + ("; layers: relative difference of the worst integer layer by itself" if _of_int8(bundle.manifest) else ""),
    )


def _of_int8(manifest: Manifest) -> str:
    """What int8 engines are held against, where there are any."""
    graphs = (graph for variant in manifest.variants for graph in variant.graphs.values())
    return " (int8 in ONNX Runtime: to its own graph)" if any(one.precision == "int8" for one in graphs) else ""


def _proof(variant: PartRecord, profile: str, engine: EngineRecord | None) -> str:
    from ztdeploy.core.manifest import Piece

    if engine is not None and engine.parity is not None:
        layers = "" if engine.parity.layer_error is None else f", layers {engine.parity.layer_error:.0e}"
        return f"{engine.parity.judgement}{layers}"
    parity = variant.graphs[profile].parity
    if parity is None:
        return "with its tails" if type(variant) is Piece else "never run"
    return f"{'graph emulated' if parity.emulated else 'graph alone'}: {parity.judgement}; never run"


def _show_cascade(bundle: Bundle) -> None:
    """How the cascade decides, a row per profile, and what it guarantees."""
    cascade, dense = bundle.manifest.cascade, bundle.manifest.dense
    if cascade is None or not cascade.settings:
        return
    rows = [
        (
            profile,
            " ".join(f"{threshold:.4g}" for threshold in one.thresholds),
            " -> ".join(_percent(share, 0) for share in one.shares),
            f"{one.gmacs:.3f}",
            f"{dense.gmacs / one.gmacs:.2f}x",
            cell(one.mean_ms, ".2f"),
            cell(one.worst_ms, ".2f"),
        )
        for profile, one in cascade.settings.items()
    ]
    table(
        f"Cascade of {cascade.chain}, cut in front of {block_name(cascade.block)}",
        left("profile", f"goes on below this {cascade.signal}", "images per stage")
        + right("mean GMACs", "less work", "mean ms", "worst ms"),
        rows,
        caption="ms: of one image, on the machine of the build; -: its engines did not run there",
    )
    for line in bundle.manifest.lines_of_cascade:
        say(line)


def show_findings(bundle: Bundle) -> None:
    """What was found out about precision and on images, as far as it was."""
    vectors = bundle.manifest.model.gives != "logits"
    _show_drift(bundle, vectors)
    _show_fidelity(bundle, vectors)
    _show_choices(bundle, vectors)
    _show_ranges(bundle)


def _show_drift(bundle: Bundle, vectors: bool) -> None:
    """How far graphs below fp32 are from fp32 by their precision alone."""
    manifest, rows = bundle.manifest, []
    for profile in manifest.profiles:
        for variant in manifest.variants:
            graph = variant.graphs[profile]
            if (drift := graph.drift) is not None:
                answers = (_percent(drift.agreement, 0), cell(drift.kl, ".1g"))
                costs = (cell(drift.cosine, ".4f"),) if vectors else answers
                kept = _percent(min((layer.overlap for layer in drift.layers), default=None))
                median = f"{drift.median_logit_difference:.0e}"
                rows.append((profile, variant.name, graph.precision, kept, *costs, median))
    if rows:
        costs = ("mean cosine",) if vectors else ("same answer", "mean KL, in nats")
        headings = ("same tokens", *costs, f"{manifest.model.gives}, median difference")
        table(
            "Drift by precision",
            left("profile", "variant", "precision") + right(*headings),
            rows,
            caption=f"from fp32, on the {len(manifest.golden.images)} golden images; "
            "same tokens: of those that a pruning layer keeps, in the layer where fewest are",
        )


def _show_fidelity(bundle: Bundle, vectors: bool) -> None:
    """What evaluations on images found out."""
    from ztdeploy.core.cascade import CASCADE
    from ztdeploy.core.preprocess_spec import NOUNS

    manifest = bundle.manifest
    known: list[tuple[str, str, FidelityRecord | None]] = [
        (name, variant.name, bundle.fidelity(variant, name))
        for name in manifest.profiles
        for variant in manifest.variants
    ]
    known += [(name, CASCADE, one) for name, one in (manifest.cascade.evaluations if manifest.cascade else {}).items()]
    rows = [
        (
            name if record.dense_profile is None else f"{name} (baseline: {record.dense_profile})",
            variant,
            f"{record.images} of {record.data} ({record.data_sha256[:8]})",
            *((_near(record),) if vectors else _answers(record)),
            record.created[:10],
        )
        for name, variant, record in known
        if record is not None
    ]
    if rows:
        answers = ("top-1", "change", "same answer", "KL")
        near = _near_head(manifest)
        of_vectors = f"{near}: of {NOUNS[manifest.model.gives]}, to the baseline's"
        table(
            "Evaluated on images",
            left("profile", "variant", "images") + right(*((near,) if vectors else answers)) + left("on"),
            rows,
            caption=of_vectors
            if vectors
            else "from the baseline: change of top-1, 95 % interval in points; same answer; mean KL in nats",
        )


def _near_head(manifest: Manifest) -> str:
    if manifest.model.gives != "maps":
        return "mean cosine"
    return "mean error" if manifest.model.activation == "none" else "mean IoU"


def _near(found: Fidelity | GateRow) -> str:
    """How near vectors or maps are to the baseline's."""
    return cell(next((one for one in (found.cosine, found.iou, found.error) if one is not None), None), ".4f")


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def _answers(record: FidelityRecord) -> tuple[str, ...]:
    change = "-" if record.change is None else f"{100 * record.change[0]:+.1f} to {100 * record.change[1]:+.1f}"
    return _percent(record.top1), change, _percent(record.agreement), cell(record.kl, ".2g")


def _show_choices(bundle: Bundle, vectors: bool) -> None:
    """What `build --precision auto` found out, a table per profile."""
    for choice in bundle.manifest.choices:
        plural = "s" if choice.threads > 1 else ""
        where = f"{choice.variant}, batch {choice.batch}, {choice.threads} thread{plural} of {choice.processor}"
        answers = f"against the baseline of {choice.asked} on {choice.images} images of '{choice.data}'"
        costs = (_near_head(bundle.manifest),) if vectors else ("same answer", "mean KL, in nats", "top-1, points")
        table(
            f"Candidates for '{choice.asked}': '{choice.shipped}' is in the bundle",
            left("candidate", "precision") + right("ms", "speed-up", *costs) + left("result"),
            [_candidate(one, choice, vectors=vectors) for one in choice.candidates],
            caption=f"{where}, {choice.rounds} rounds; in brackets: 95 % intervals; answers: {answers}",
        )


def _candidate(one: CandidateRecord, choice: ChoiceRecord, *, vectors: bool) -> tuple[str, ...]:
    timing, row = one.timing, next((row for row in one.rows if row.variant == choice.variant), None)
    times = ("-", "-")
    if timing is not None:
        spans = ["{:.2f} to {:.2f}".format(*interval) for interval in (timing.interval, timing.speedup_interval)]
        times = (f"{timing.median_ms:.2f} ({spans[0]})", f"{timing.speedup:.2f}x ({spans[1]})")
    costs: tuple[str, ...] = ("-",) if vectors else ("-", "-", "-")
    if row is not None and vectors:
        costs = (_near(row),)
    elif row is not None:
        costs = (_percent(row.agreement), cell(row.kl, ".2g"), cell(row.drop, "+.1f", -1))
    return one.profile, one.precision, *times, *costs, "ships" if one.reason is None else one.reason


def _show_ranges(bundle: Bundle) -> None:
    """What fp16 would have to hold, by block, where that was probed."""
    for variant in bundle.manifest.variants:
        if (found := variant.fp16_range) is not None:
            table(
                f"{variant.name}: largest magnitudes, of which fp16 holds 65504",
                left("block") + right("residual stream", "attention, linear", "attention logits", "MLP"),
                [
                    (
                        block_name(one.block),
                        *(f"{value:.4g}" for value in (one.residual, one.attention, one.logits, one.mlp)),
                    )
                    for one in found.blocks
                ],
                caption=f"in fp32, on {found.images} images of '{found.data}'",
            )


def _show_blocks(bundle: Bundle, variant: VariantRecord) -> None:
    """One variant, block by block."""
    from ztdeploy.core.cost import block_gmacs
    from ztdeploy.core.methods import METHODS

    plan, graph = variant.plan, next(iter(variant.graphs.values()))
    layers, rows = {layer.block: layer for layer in plan.layers}, []
    counts = zip(plan.tokens_per_block, plan.mlp_tokens_per_block, strict=True)
    for nodes, (tokens, in_mlp) in zip(graph.nodes, counts, strict=True):
        work = block_gmacs(bundle.manifest.model.architecture, tokens, in_mlp)
        pruning: tuple[object, ...] = ("",) * 5
        if (layer := layers.get(nodes.block)) is not None:
            iterations = layer.iterations if layer.importance_drop else ""
            pruning = (layer.tokens_out, layer.similarity_drop, layer.importance_drop, iterations, nodes.pruning)
        rows.append((block_name(nodes.block), f"{tokens}", f"{work:.4f}", f"{nodes.own}", *map(str, pruning)))
    common = sorted(graph.operators.items(), key=lambda item: (-item[1], item[0]))[:6]
    place = "inside the block" if plan.layers and plan.layers[0].inside else "behind the block"
    method = METHODS.get(variant.schedule.method)
    does = "merges into others" if plan.layers and plan.layers[0].merges else "drops"
    if method is not None and method.drops is not None:
        does = "drops, or merges into others,"
    table(
        f"{variant.name}, block by block",
        left("block") + right("tokens", "GMACs", "ops", "keeps", "similar", "unimportant", "iterations", "pruning ops"),
        rows,
        caption=f"similar, unimportant: tokens that the layer {place} {does} for that reason\n"
        f"{sum(graph.operators.values())} ops: {', '.join(f'{count} {name}' for name, count in common)}, ...",
    )

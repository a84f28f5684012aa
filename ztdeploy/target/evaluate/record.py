"""Writing down in a bundle what an evaluation found out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ztdeploy.core.bundle import Bundle, is_signed, new_manifest, read_bundle, write_manifest
from ztdeploy.core.errors import BundleError, OutputError
from ztdeploy.core.files import move
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.locks import only_writer
from ztdeploy.core.manifest import CascadeFidelity, FidelityRecord, Manifest, VariantRecord
from ztdeploy.target.adaptive.guarantee import lower_bound
from ztdeploy.target.bundle_readme import README, with_readme
from ztdeploy.target.evaluate.eval_report import CascadeScore, EvalReport, VariantScore
from ztdeploy.target.runtime.runner import engine_of


def check_recordable(root: Path) -> None:
    """Fail before anything is run where nothing could be written in the end.

    Raises:
        OutputError: the bundle cannot be written, or is signed as it is.
    """
    if is_signed(root):
        raise OutputError(
            f"'{root}' is signed, and figures would change it",
            "a bundle to add to",
            "add --no-record, or sign afterwards",
        )
    if root.exists() and not os.access(root, os.W_OK):
        raise OutputError(
            f"'{root}' cannot be written", "a bundle that may be added to", "add --no-record, or copy the bundle"
        )


def record(report: EvalReport, root: Path, waiting: Callable[[], None] = lambda: None) -> Bundle:
    """Add the figures to the bundle's manifest, which is replaced whole or not at all.

    Args:
        waiting: called where another process is writing to the bundle.

    Raises:
        BundleError: the engines are others by now than those that were evaluated.
        OutputError: it cannot be written.
    """
    with only_writer(root, waiting):
        manifest = recorded(read_bundle(root), report)
        if report.cascade is None:
            write_manifest(root, manifest)
        else:  # of which the README says what was found
            with scratch_folder(root, "add --no-record, or copy the bundle") as scratch:
                manifest = with_readme(manifest, scratch)
                with new_manifest(root, manifest):
                    move(scratch / README, root / README)
    return Bundle(root, manifest)


def recorded(bundle: Bundle, report: EvalReport) -> Manifest:
    """The manifest with the figures in it.

    Raises:
        BundleError: an engine is another one by now than the one that was evaluated.
    """
    cascade, row = bundle.manifest.cascade, report.variants[-1]
    scores = {one.variant: one for one in report.variants if one.profile is None and one.cascade is None}
    variants, profile = list[VariantRecord](), report.bundle.profile
    for variant in bundle.manifest.variants:
        if score := scores.get(variant.name):
            engine = engine_of(bundle, variant, profile)
            _check_same(bundle, variant.name, bundle.engine_digest(engine), score)
            engine = engine.model_copy(update={"fidelity": fidelity_record(report, score)})
            variant = variant.model_copy(update={"engines": {**variant.engines, profile: engine}})
        variants.append(variant)
    if cascade is not None and row.cascade is not None:
        _check_same(bundle, row.variant, bundle.cascade_digest(profile), row)
        found = {**cascade.evaluations, profile: _cascade_fidelity(report, row, row.cascade)}
        cascade = cascade.model_copy(update={"evaluations": found})
    return bundle.manifest.model_copy(update={"variants": tuple(variants), "cascade": cascade})


def _check_same(bundle: Bundle, name: str, digest: str, score: VariantScore) -> None:
    """
    Raises:
        BundleError: it is not the digest of what was evaluated.
    """
    if digest != score.engine_sha256:
        raise BundleError(
            f"the engine of '{name}' in {bundle.root} was replaced meanwhile",
            "the engine that was evaluated",
            "evaluate again",
        )


def _cascade_fidelity(report: EvalReport, row: VariantScore, score: CascadeScore) -> CascadeFidelity:
    agrees = score.agreement
    return CascadeFidelity(
        **{**dict(fidelity_record(report, row)), "agreement": agrees.value},
        bound=lower_bound(agrees.total - agrees.count, agrees.total),
        shares=tuple(stage.reached.value for stage in score.stages),
        gmacs=row.gmacs,
    )


def fidelity_record(report: EvalReport, score: VariantScore) -> FidelityRecord:
    """The part of a report that a manifest keeps."""
    against, dense = score.against_dense, report.dense
    change, classes, maps = against.change if against is not None else None, report.output == "logits", score.maps
    of_maps, vectors = report.output == "maps", report.output in ("embedding", "features")
    overlaps = of_maps and report.activation != "none"
    return FidelityRecord(
        created=report.created,
        data=report.data.name,
        data_sha256=report.data.digest,
        images=report.data.images,
        engine_sha256=score.engine_sha256,
        dense_sha256=dense.engine_sha256,
        dense_profile=dense.profile,
        top1=None if score.top1 is None else score.top1.value,
        top5=None if score.top5 is None else score.top5.value,
        dense_top1=None if dense.top1 is None else dense.top1.value,
        change=None if change is None else (change.interval.low, change.interval.high),
        agreement=None if not classes else 1.0 if against is None else against.agreement.value,
        kl=None if not classes else 0.0 if against is None else against.kl.value,
        cosine=None if not vectors else 1.0 if score.likeness is None else score.likeness.mean.value,
        error=None if not of_maps else 0.0 if maps is None else maps.error.value,
        iou=None if not overlaps else 1.0 if maps is None or maps.iou is None else maps.iou.value,
    )

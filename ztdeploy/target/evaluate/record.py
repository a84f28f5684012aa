"""Writing down in a bundle what an evaluation found out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ztdeploy.core.bundle import Bundle, read_bundle, write_manifest
from ztdeploy.core.errors import BundleError, OutputError
from ztdeploy.core.locks import only_writer
from ztdeploy.core.manifest import FidelityRecord, Manifest, VariantRecord
from ztdeploy.target.evaluate.eval_report import EvalReport, VariantScore
from ztdeploy.target.runtime.runner import engine_of


def check_recordable(root: Path) -> None:
    """Fail before anything is run where nothing could be written in the end.

    Raises:
        OutputError: the bundle cannot be written.
    """
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
        write_manifest(root, manifest)
    return Bundle(root, manifest)


def recorded(bundle: Bundle, report: EvalReport) -> Manifest:
    """The manifest with the figures in it.

    Raises:
        BundleError: an engine is another one by now than the one that was evaluated.
    """
    scores = {one.variant: one for one in report.variants if one.profile is None and one.cascade is None}
    variants, profile = list[VariantRecord](), report.bundle.profile
    for variant in bundle.manifest.variants:
        if score := scores.get(variant.name):
            engine = engine_of(bundle, variant, profile)
            if bundle.engine_digest(engine) != score.engine_sha256:
                raise BundleError(
                    f"the engine of '{variant.name}' in {bundle.root} was replaced meanwhile",
                    "the engine that was evaluated",
                    "evaluate again",
                )
            engine = engine.model_copy(update={"fidelity": fidelity_record(report, score)})
            variant = variant.model_copy(update={"engines": {**variant.engines, profile: engine}})
        variants.append(variant)
    return bundle.manifest.model_copy(update={"variants": tuple(variants)})


def fidelity_record(report: EvalReport, score: VariantScore) -> FidelityRecord:
    """The part of a report that a manifest keeps."""
    against, dense = score.against_dense, report.dense
    change, vectors = against.change if against is not None else None, report.output != "logits"
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
        agreement=None if vectors else 1.0 if against is None else against.agreement.value,
        kl=None if vectors else 0.0 if against is None else against.kl.value,
        cosine=None if not vectors else 1.0 if score.likeness is None else score.likeness.mean.value,
    )

"""What a bundle in the making says about itself: its manifest, and the files that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from ztdeploy.core.bundle import file_records
from ztdeploy.core.cache import tool_versions
from ztdeploy.core.cost import plan_gmacs, pruning_gmacs
from ztdeploy.core.files import write
from ztdeploy.core.manifest import (
    SCHEMA_VERSION,
    CascadeRecord,
    EngineRecord,
    GoldenRecord,
    Manifest,
    ModelRecord,
    VariantRecord,
    WeightsRecord,
)
from ztdeploy.core.plan import Variant
from ztdeploy.host.board_files import write_board_files
from ztdeploy.jobs.graphs import Graphs
from ztdeploy.target.backends import runtime_versions
from ztdeploy.target.bundle_readme import with_readme

CLASSES = "classes.txt"


def draft_manifest(
    graphs: Graphs,
    variants: Sequence[Variant],
    engines: Mapping[tuple[str, str], EngineRecord],
    golden: GoldenRecord,
    cascade: CascadeRecord | None = None,
) -> Manifest:
    """The manifest, without the records of parity and what depends on them.

    Args:
        engines: by the names of their variant and profile.
    """
    model, profiles = graphs.tracer.model, graphs.profiles
    if model.class_names is not None:
        write(graphs.folder / CLASSES, "\n".join(model.class_names) + "\n")
    return Manifest(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tools={**tool_versions(), **runtime_versions()},
        model=ModelRecord(
            name=model.name,
            timm_name=model.timm_name,
            family=model.adapter.family,
            architecture=model.adapter.architecture,
            output=model.output,
            activation=model.activation,
            activation_source=model.activation_source,
            map_shape=model.adapter.map_shape,
        ),
        weights=WeightsRecord.model_validate(
            {
                "source": model.weights_source,
                "origin": model.weights_origin,
                "sha256": model.weights_sha256,
                "remarks": model.remarks,
            }
        ),
        text_head=model.text_head,
        preprocess=model.preprocess,
        preprocess_sources=dict(model.preprocess_sources),
        class_names=None if model.class_names is None else CLASSES,
        profiles={profile.name: profile for profile in profiles},
        default_variant=variants[0].schedule.name,
        variants=tuple(_variant_record(variant, graphs, engines) for variant in variants),
        cascade=cascade,
        golden=golden,
        blocks=graphs.blocks,
        missing=(),
        files=file_records(graphs.folder),
    )


def documented(folder: Path, manifest: Manifest) -> Manifest:
    """Write what people read in a bundle: its README, and what boards need where engines are built by hand.

    Returns:
        The manifest with these files, and with what the bundle lacks.
    """
    manifest = with_readme(manifest, folder)
    files = file_records(folder, write_board_files(folder, manifest))
    return manifest.model_copy(update={"files": {**manifest.files, **files}})


def _variant_record(variant: Variant, graphs: Graphs, engines: Mapping[tuple[str, str], EngineRecord]) -> VariantRecord:
    name, architecture = variant.schedule.name, graphs.tracer.model.adapter.architecture
    return VariantRecord(
        name=name,
        schedule=variant.schedule,
        plan=variant.plan,
        gmacs=plan_gmacs(architecture, variant.plan),
        pruning_gmacs=pruning_gmacs(architecture, variant.plan, variant.schedule.method, variant.schedule.options),
        graphs={profile.name: graphs.record(name, profile) for profile in graphs.profiles},
        engines={profile: engine for (own, profile), engine in engines.items() if own == name},
    )

"""The cascade of a bundle in the making: its record, and the choice of its thresholds in the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ztdeploy.core.bundle import read_bundle, write_manifest
from ztdeploy.core.cascade import CascadeSetting
from ztdeploy.core.errors import step_of
from ztdeploy.core.manifest import CascadeRecord, CascadeStage, EngineRecord, Piece
from ztdeploy.core.progress import Progress
from ztdeploy.jobs.chain import PREFIX, Chain, tail_name
from ztdeploy.jobs.graphs import Graphs
from ztdeploy.jobs.request import BuildRequest
from ztdeploy.target.adaptive.calibrate import calibrate
from ztdeploy.target.backends import why_not_run
from ztdeploy.target.bundle_readme import with_readme
from ztdeploy.target.evaluate.data import label_classes, read_data
from ztdeploy.target.runtime.runner import class_names


def cascade_record(graphs: Graphs, chain: Chain, engines: Mapping[tuple[str, str], EngineRecord]) -> CascadeRecord:
    """The record of a cascade that decides nothing yet.

    Args:
        engines: by the names of their part and profile.
    """

    def content(name: str) -> dict[str, object]:
        return {
            "name": name,
            "graphs": {profile.name: graphs.record(name, profile) for profile in graphs.profiles},
            "engines": {profile: engine for (own, profile), engine in engines.items() if own == name},
        }

    stages = (CascadeStage.model_validate({**content(tail_name(name)), "variant": name}) for name in chain.names)
    prefix = Piece.model_validate(content(PREFIX))
    return CascadeRecord(block=chain.block, signal=chain.signal, prefix=prefix, stages=tuple(stages))


def calibrate_cascade(folder: Path, request: BuildRequest, progress: Progress) -> None:
    """Choose the thresholds of a finished bundle's cascade for every profile whose engines or graphs run here.

    Raises:
        StepError: for one profile, no thresholds reach the goal, or there are too few images.
    """
    bundle = read_bundle(folder)
    manifest, goal, gate = bundle.manifest, request.cascade, request.gate
    assert goal is not None
    assert gate is not None
    assert manifest.cascade is not None
    classes = label_classes(manifest.model.gives, manifest.model.architecture.num_classes)
    data = read_data(gate.data, class_names(bundle), classes, manifest.preprocess.channels).without_labels()
    settings = dict[str, CascadeSetting]()
    for name, profile in manifest.profiles.items():
        if why_not_run(profile) is None or profile.precision != "bf16":  # ONNX Runtime has few bf16 kernels on a CPU
            with step_of(name):
                settings[name] = calibrate(bundle, name, data, goal, progress)
    cascade = manifest.cascade.model_copy(update={"settings": settings})
    write_manifest(folder, with_readme(manifest.model_copy(update={"cascade": cascade}), folder))

"""The cascade of a bundle in the making: its record, and the choice of its thresholds in the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ztdeploy.core.bundle import read_bundle, write_manifest
from ztdeploy.core.cascade import CascadeSetting
from ztdeploy.core.errors import failing
from ztdeploy.core.manifest import CascadeRecord, CascadeStage, EngineRecord, FailedProfile, Piece
from ztdeploy.core.profile import HardwareProfile
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

    A profile for which none reach the goal keeps its engines, without a cascade; the manifest says so (`failed`).

    Raises:
        ImageError: too few images.
        ZtdeployError: no profile has thresholds that reach the goal; the error of the first.
    """
    bundle = read_bundle(folder)
    manifest, goal, gate = bundle.manifest, request.cascade, request.gate
    assert goal is not None
    assert gate is not None
    assert manifest.cascade is not None
    classes = label_classes(manifest.model.gives, manifest.model.architecture.num_classes)
    data = read_data(gate.data, class_names(bundle), classes, manifest.preprocess.channels).without_labels()
    settings = dict[str, CascadeSetting]()

    def choose(profile: HardwareProfile) -> None:
        settings[profile.name] = calibrate(bundle, profile.name, data, goal, progress)

    # ONNX Runtime has few bf16 kernels on a CPU.
    runs = [one for one in manifest.profiles.values() if why_not_run(one) is None or one.precision != "bf16"]
    failed = [FailedProfile.of(name, error, "cascade") for name, error in failing(runs, choose).items()]
    cascade = manifest.cascade.model_copy(update={"settings": settings})
    changes = {"cascade": cascade, "failed": (*manifest.failed, *failed)}
    write_manifest(folder, with_readme(manifest.model_copy(update=changes), folder))

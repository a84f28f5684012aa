"""The cascade of a bundle in the making: its stages, where their graphs are cut, and its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ztdeploy.core.bundle import read_bundle, write_manifest
from ztdeploy.core.cascade import CascadeSetting, Signal
from ztdeploy.core.cost import plan_gmacs
from ztdeploy.core.errors import InputError, step_of
from ztdeploy.core.manifest import CascadeRecord, CascadeStage, EngineRecord, GateLimits, Piece
from ztdeploy.core.plan import Variant
from ztdeploy.core.progress import Progress
from ztdeploy.core.schedule import Architecture
from ztdeploy.jobs.request import BuildRequest
from ztdeploy.target.adaptive.calibrate import calibrate
from ztdeploy.target.backends import why_not_run
from ztdeploy.target.evaluate.data import label_classes, read_data
from ztdeploy.target.runtime.runner import class_names

if TYPE_CHECKING:
    from ztdeploy.jobs.graphs import Graphs

PREFIX = "_prefix"


@dataclass(frozen=True)
class Chain:
    """The stages of a cascade, the cheapest first, the baseline last."""

    stages: tuple[Variant, ...]

    @property
    def block(self) -> int:
        """The block, from 0, in front of which graphs are cut: the first whose pruning layer not all stages have.

        The baseline has none, so this is the block of the first pruning layer of any stage. That block itself belongs
        to the tails, because a pruning layer needs more of its block than tokens.
        """
        return min(variant.plan.layers[0].block for variant in self.stages[:-1])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(variant.schedule.name for variant in self.stages)


def chain_of(variants: Sequence[Variant], architecture: Architecture) -> Chain:
    """The cascade of all variants of a build.

    Raises:
        InputError: no variant prunes.
    """
    pruned = [variant for variant in variants if variant.plan.layers]
    if not pruned:
        raise InputError("--cascade without a variant that prunes", "a keep ratio below 1", "give for instance -k 0.55")
    by_cost = sorted(pruned, key=lambda variant: plan_gmacs(architecture, variant.plan))
    return Chain((*by_cost, next(variant for variant in variants if not variant.plan.layers)))


def tail_name(stage: str) -> str:
    """The name of a stage's piece."""
    return f"_tail.{stage}"


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
    signal: Signal = "margin" if graphs.tracer.model.output == "logits" else "novelty"
    return CascadeRecord(block=chain.block, signal=signal, prefix=prefix, stages=tuple(stages))


def check_goal(request: BuildRequest) -> None:
    """
    Raises:
        InputError: a cascade without calibration images, or together with limits that may take away its stages.
    """
    if request.cascade is None:
        return
    if request.gate is None:
        raise InputError("--cascade without --calib", "images to choose thresholds on", "give --calib DIR as well")
    if request.gate.limits != GateLimits():
        raise InputError(
            "--cascade with a limit on variants, which may remove its stages",
            "one of them: the cascade bounds agreement itself",
            "leave out --cascade, or --max-drop, --min-agreement, --max-kl and --min-cosine",
        )


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
    write_manifest(folder, manifest.model_copy(update={"cascade": cascade}))

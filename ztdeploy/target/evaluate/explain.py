"""Which patches of images engines keep, and why: `explain_bundle` runs engines, and their graphs with notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.bundle import WEIGHTS_FILE, Bundle
from ztdeploy.core.errors import BundleError, InputError
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.methods import METHODS
from ztdeploy.target.adaptive.calibrate import mean_gmacs
from ztdeploy.target.adaptive.opening import load
from ztdeploy.target.backends import load_noted
from ztdeploy.target.evaluate.eval_report import MapFigures
from ztdeploy.target.evaluate.maps import compare_maps
from ztdeploy.target.evaluate.patches import LayerPatches, follow
from ztdeploy.target.evaluate.reasons import LayerReasons, agreed_layers, reasons_of
from ztdeploy.target.runtime.interface import Outputs
from ztdeploy.target.runtime.postprocess import Label, cosines, top_labels
from ztdeploy.target.runtime.preprocess import load_pixels
from ztdeploy.target.runtime.runner import BundleRunner, class_names, load_engine

_TOP = 3  #: labels per image
_UNEXPLAINED = (
    "Why patches went, and how important they were, is not in this bundle: build it again with this version, and not "
    "in bf16 for GPUs alone."
)


@dataclass(frozen=True)
class StageDecision:
    """What a stage of a cascade decided about one image."""

    stage: str  #: which it is, in words
    answers: bool  #: whether the image ends here
    confidence: float | None  #: None: the last stage, at which every image ends
    threshold: float | None  #: an image goes on where the confidence is below it
    gmacs: float  #: what the image took up to here, in units of 1e9 multiply-adds

    @property
    def words(self) -> str:
        if self.confidence is None or self.threshold is None:
            return "the last stage answers"
        what = "at least {:.4g}: answers" if self.answers else "below {:.4g}: goes on"
        return f"confidence {self.confidence:.4g}, {what.format(self.threshold)}"


@dataclass(frozen=True)
class Explained:
    """What one variant does with one image."""

    variant: VariantRecord
    labels: tuple[Label, ...]  #: likeliest first; none of a model without classes
    cosine: float | None  #: to dense's embedding, features (mean over positions) or whole map; None of a classifier
    layers: tuple[LayerPatches, ...]
    reasons: tuple[LayerReasons | None, ...]  #: one per layer
    doubt: str | None  #: why some reasons are missing
    decision: StageDecision | None = None  #: None where no cascade runs
    maps: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None  #: dense's and its own, `[C, h, w]`
    figures: MapFigures | None = None  #: how near they are


@dataclass(frozen=True)
class ExplainedImage:
    """What all variants do with one image, or the stages of a cascade that ran on it."""

    image: Path
    pixels: NDArray[np.uint8]  #: `[H, W, C]` as the model sees it
    dense_labels: tuple[Label, ...]
    variants: tuple[Explained, ...]

    @property
    def answered_by(self) -> str | None:
        """The variant of the stage that answered; None where no cascade runs."""
        return next((one.variant.name for one in self.variants if one.decision and one.decision.answers), None)


@dataclass(frozen=True)
class _Ran:
    """What one variant's engine gave, and the images that it ran on."""

    variant: VariantRecord
    engine: Outputs
    decisions: dict[int, StageDecision | None]  #: by place of the image, in the engine's order


@dataclass(frozen=True)
class _Found:
    """What one variant makes of its images."""

    ran: _Ran
    noted: Outputs | None = None  #: the same graph with more outputs
    unexplained: str | None = None  #: why there are none, where the method would have reasons


def explain_bundle(
    bundle: Bundle,
    images: Sequence[Path],
    keep_ratios: Sequence[float] = (),
    variants: Sequence[str] = (),
    *,
    profile: str | None = None,
    cascade: bool = False,
) -> Iterator[ExplainedImage]:
    """Run the dense engine and those that prune on images, before the first image is given.

    Args:
        keep_ratios: which variants; by default all that prune.
        variants: names of variants, for keep ratios that several share and for schedules without one.
        profile: run the engines of this profile; by default the first that runs here.
        cascade: run the bundle's cascade instead, each image through the stages that it needs.

    Raises:
        BundleError: the bundle is damaged.
        ImageError: an image cannot be read.
        InputError: no variant that prunes, or a keep ratio that several variants share; a cascade that the bundle does
            not have, or beside a choice of variants.
        ParityError: an engine gives what cannot be right.
    """
    manifest, names = bundle.manifest, class_names(bundle)
    pruned = [variant for variant in bundle.variants(keep_ratios, variants) if variant.plan.layers]
    if cascade and (keep_ratios or variants):
        choice = ", ".join([*(f"{ratio:g}" for ratio in keep_ratios), *variants])
        raise InputError(f"{choice} beside a cascade, which has stages of its own", "one of them", "leave one out")
    if not pruned:
        raise InputError(
            f"only the dense variant of '{bundle.root}'",
            "a variant that prunes",
            "choose another --keep-ratio, or build one with --keep-ratio 0.7",
        )
    pixels = load_pixels(images, manifest.preprocess)
    staged = _run_stages(bundle, pixels, images, profile) if cascade else []
    with load_engine(bundle, variant=manifest.dense.name, profile=profile) as runner:
        dense = runner.infer(pixels)
        whole = (_run_whole(runner, variant, pixels) for variant in pruned)
        found = [_find(runner, one, pixels) for one in (staged if cascade else whole)]

    def labels(outputs: Outputs, image: int) -> tuple[Label, ...]:
        top = _TOP if manifest.model.architecture.num_classes else 0
        return top_labels(outputs.logits[image], names, top, manifest.model.activation) if top else ()

    def explained(one: _Found, image: int) -> Explained:
        ran = one.ran
        own = list(ran.decisions).index(image)
        layers, reasons, doubt = _reasons(one, own, manifest.model.architecture.patch_tokens)
        pair, answers = (dense.logits[image], ran.engine.logits[own]), labels(ran.engine, own)
        cosine, maps, figures = None, None, None
        if manifest.model.gives == "maps":
            cosine = float(cosines(pair[0].reshape(-1), pair[1].reshape(-1)))
            maps, figures = pair, compare_maps(*pair, manifest.model.activation)
        elif manifest.model.gives != "logits":
            cosine = float(cosines(*pair).mean())
        return Explained(ran.variant, answers, cosine, layers, reasons, doubt, ran.decisions[image], maps, figures)

    return (
        ExplainedImage(
            path,
            pixels[image],
            labels(dense, image),
            tuple(explained(one, image) for one in found if image in one.ran.decisions),
        )
        for image, path in enumerate(images)
    )


def _run_whole(runner: BundleRunner, variant: VariantRecord, pixels: NDArray[np.uint8]) -> _Ran:
    runner.switch(variant=variant.name)
    return _Ran(variant, runner.infer(pixels), dict.fromkeys(range(len(pixels))))


def _run_stages(bundle: Bundle, pixels: NDArray[np.uint8], images: Sequence[Path], profile: str | None) -> list[_Ran]:
    """What each stage of the cascade gave to the images that came to it."""
    with load(bundle, cascade=True, profile=profile) as runner:
        found, thresholds = runner.infer(pixels, [repr(str(image)) for image in images]), runner.setting.thresholds
        stages = runner.cascade.stages

    def decision(stage: int, image: int) -> StageDecision:
        decides = stage < len(thresholds)
        return StageDecision(
            stage=f"stage {stage + 1} of {len(stages)}",
            answers=int(found.stage[image]) == stage,
            confidence=float(found.confidence[stage, image]) if decides else None,
            threshold=thresholds[stage] if decides else None,
            gmacs=mean_gmacs(bundle, [float(other <= stage) for other in range(len(stages))]),
        )

    return [
        _Ran(
            bundle.variant(name=stages[stage].variant),
            one.outputs,
            {image: decision(stage, image) for image in one.places.tolist()},
        )
        for stage, one in enumerate(found.ran)
    ]


def _reasons(
    found: _Found, image: int, patches: int
) -> tuple[tuple[LayerPatches, ...], tuple[LayerReasons | None, ...], str | None]:
    """One image's patches behind each layer, the reasons of those that went, and why reasons are missing."""
    variant, engine = found.ran.variant, found.ran.engine
    layers = follow(variant, engine, image, patches)
    if found.noted is None:
        return layers, (None,) * len(layers), found.unexplained
    agreed = agreed_layers(engine, found.noted, image)
    doubt = _disagreement(layers[agreed].plan.block) if agreed < len(layers) else None
    return layers, reasons_of(variant, layers, found.noted, image, agreed), doubt


def _find(runner: BundleRunner, ran: _Ran, pixels: NDArray[np.uint8]) -> _Found:
    """Where the bundle has a variant's graph with notes, run it on the same images."""
    variant, bundle = ran.variant, runner.bundle
    if not variant.plan.layers:
        return _Found(ran)
    notes = variant.graphs[runner.profile].notes_file
    if notes is None:
        method = METHODS.get(variant.schedule.method)
        explains = method is not None and method.decides_by_image
        return _Found(ran, unexplained=_UNEXPLAINED if explains else None)
    bundle.verify_files([notes, WEIGHTS_FILE])
    record = variant.engines[runner.profile]
    noted_graph, file = bundle.path(notes), bundle.path(record.file)
    runner.close()  # one of them in memory at a time
    try:
        bundle.verify_files(sorted({*bundle.files_of_graph(notes)} - {notes, WEIGHTS_FILE}))
        graph = load_noted(record.backend, noted_graph, engine=file, threads=runner.threads)
    except BundleError as error:  # the engine's runtime may know operators that this ONNX Runtime lacks
        return _Found(ran, unexplained=f"Why patches went is not known: {error.given.rstrip('.')}.")
    try:
        runner.adopt(variant.name, graph)
        return _Found(ran, runner.infer(pixels[list(ran.decisions)]))
    except BundleError:  # another variant's, perhaps
        return _Found(ran, unexplained=_disagreement(variant.plan.layers[0].block))
    finally:
        runner.close()


def _disagreement(block: int) -> str:
    """What to say where the graph with notes chooses otherwise than the engine, from a block (from 0) on."""
    return (
        f"From block {block + 1} on there are no reasons: there the engine keeps other tokens than the same "
        "graph with reasons as outputs. What stays is what the engine keeps."
    )

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
from ztdeploy.target.backends import load_noted
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
class Explained:
    """What one variant does with one image."""

    variant: VariantRecord
    labels: tuple[Label, ...]  #: likeliest first; none of a model without classes
    cosine: float | None  #: to dense's embedding or features (mean over positions); None of a classifier
    layers: tuple[LayerPatches, ...]
    reasons: tuple[LayerReasons | None, ...]  #: one per layer
    doubt: str | None  #: why some reasons are missing


@dataclass(frozen=True)
class ExplainedImage:
    """What all variants do with one image."""

    image: Path
    pixels: NDArray[np.uint8]  #: `[H, W, C]` as the model sees it
    dense_labels: tuple[Label, ...]
    variants: tuple[Explained, ...]


@dataclass(frozen=True)
class _Found:
    """What one variant makes of all images."""

    variant: VariantRecord
    engine: Outputs
    noted: Outputs | None = None  #: the same graph with more outputs
    unexplained: str | None = None  #: why there are none, where the method would have reasons


def explain_bundle(
    bundle: Bundle,
    images: Sequence[Path],
    keep_ratios: Sequence[float] = (),
    variants: Sequence[str] = (),
    *,
    profile: str | None = None,
) -> Iterator[ExplainedImage]:
    """Run the dense engine and those that prune on images, before the first image is given.

    Args:
        keep_ratios: which variants; by default all that prune.
        variants: names of variants, for keep ratios that several share and for schedules without one.
        profile: run the engines of this profile; by default the first that runs here.

    Raises:
        BundleError: the bundle is damaged.
        ImageError: an image cannot be read.
        InputError: no variant that prunes, or a keep ratio that several variants share.
        ParityError: an engine gives what cannot be right.
    """
    manifest, names = bundle.manifest, class_names(bundle)
    pruned = [variant for variant in bundle.variants(keep_ratios, variants) if variant.plan.layers]
    if not pruned:
        raise InputError(
            f"only the dense variant of '{bundle.root}'",
            "a variant that prunes",
            "choose another --keep-ratio, or build one with --keep-ratio 0.7",
        )
    pixels = load_pixels(images, manifest.preprocess)
    with load_engine(bundle, variant=manifest.dense.name, profile=profile) as runner:
        dense = runner.infer(pixels)
        found = [_find(runner, variant, pixels) for variant in pruned]

    def labels(outputs: Outputs, image: int) -> tuple[Label, ...]:
        top = _TOP if manifest.model.architecture.num_classes else 0
        return top_labels(outputs.logits[image], names, top, manifest.model.activation)

    def explained(one: _Found, image: int) -> Explained:
        layers, reasons, doubt = _reasons(one, image, manifest.model.architecture.patch_tokens)
        cosine = None
        if manifest.model.gives != "logits":
            cosine = float(cosines(dense.logits[image], one.engine.logits[image]).mean())
        return Explained(one.variant, labels(one.engine, image), cosine, layers, reasons, doubt)

    return (
        ExplainedImage(path, pixels[image], labels(dense, image), tuple(explained(one, image) for one in found))
        for image, path in enumerate(images)
    )


def _reasons(
    found: _Found, image: int, patches: int
) -> tuple[tuple[LayerPatches, ...], tuple[LayerReasons | None, ...], str | None]:
    """One image's patches behind each layer, the reasons of those that went, and why reasons are missing."""
    layers = follow(found.variant, found.engine, image, patches)
    if found.noted is None:
        return layers, (None,) * len(layers), found.unexplained
    agreed = agreed_layers(found.engine, found.noted, image)
    doubt = _disagreement(layers[agreed].plan.block) if agreed < len(layers) else None
    return layers, reasons_of(found.variant, layers, found.noted, image, agreed), doubt


def _find(runner: BundleRunner, variant: VariantRecord, pixels: NDArray[np.uint8]) -> _Found:
    """Run a variant's engine, and where the bundle has it its graph with notes."""
    runner.switch(variant=variant.name)
    engine, bundle, notes = runner.infer(pixels), runner.bundle, runner.graph.notes_file
    if notes is None:
        method = METHODS.get(variant.schedule.method)
        explains = method is not None and method.decides_by_image
        return _Found(variant, engine, unexplained=_UNEXPLAINED if explains else None)
    bundle.verify_files([notes, WEIGHTS_FILE])
    record = variant.engines[runner.profile]
    noted_graph, file = bundle.path(notes), bundle.path(record.file)
    runner.close()  # one of them in memory at a time
    try:
        bundle.verify_files(sorted({*bundle.files_of_graph(notes)} - {notes, WEIGHTS_FILE}))
        graph = load_noted(record.backend, noted_graph, engine=file, threads=runner.threads)
    except BundleError as error:  # the engine's runtime may know operators that this ONNX Runtime lacks
        return _Found(variant, engine, unexplained=f"Why patches went is not known: {error.given.rstrip('.')}.")
    try:
        runner.adopt(variant.name, graph)
        return _Found(variant, engine, runner.infer(pixels))
    except BundleError:  # another variant's, perhaps
        return _Found(variant, engine, unexplained=_disagreement(variant.plan.layers[0].block))
    finally:
        runner.close()


def _disagreement(block: int) -> str:
    """What to say where the graph with notes chooses otherwise than the engine, from a block (from 0) on."""
    return (
        f"From block {block + 1} on there are no reasons: there the engine keeps other tokens than the same "
        "graph with reasons as outputs. What stays is what the engine keeps."
    )

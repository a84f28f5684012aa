"""Does an engine reproduce its reference? Kept tokens first, tie-aware, then the logits.

Kept sets are discrete: two correct implementations may differ where two scores at the cut are within rounding.
Such a difference counts as a tie, and is reported; any other fails, and the pruning layer is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.errors import BundleError, ImageError, ParityError
from ztdeploy.core.manifest import GraphRecord, LayerParity, ParityRecord, VariantRecord
from ztdeploy.core.names import GAP, INTO, KEPT, LOGITS, golden_array, pruning_scope
from ztdeploy.core.preprocess_spec import Activation, Output
from ztdeploy.core.profile import Precision
from ztdeploy.target.runtime.arrays import read_arrays
from ztdeploy.target.runtime.interface import Outputs, joined_layers, output_shape, shape_fits, shape_words
from ztdeploy.target.runtime.postprocess import cosines, divergences, original_tokens, same_answers
from ztdeploy.target.runtime.preprocess import load_pixels
from ztdeploy.target.runtime.runner import BundleRunner

#: Relative to the largest logit, see `_scale`. In fp32, rounding differs by no more than the order of summation.
#: In int8, the range of what one call is given sets the steps of all its activations.
LOGIT_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 2e-1, "int8": 2e-1}
#: Scores have mean 1 and similarities lie in [-1, 1]; thirty fp32 iterations move either by far less.
GAP_TOLERANCE = 1e-5
#: An engine below fp32: how many times as far as its graph, as run at build time, its median image may be off; and on
#: its own choices, how much smaller a share of the reference's tokens it may keep.
DRIFT_FACTOR, DRIFT_OVERLAP = 3.0, 0.1
_LEAST_OF_MAPS = 1e-6
_MOST_FEATURES = 2**16  #: the longest embedding that is read; no manifest says its length


@dataclass(frozen=True)
class Reference:
    """What should come out, and how close the calls were."""

    logits: NDArray[Any]  #: `[B, classes]`, or what else the model gives
    kept: tuple[NDArray[Any], ...]  #: per pruning layer `[B, k]`
    #: per pruning layer `[B]`: the smallest gap at any of its cuts; not finite where none was measured
    gaps: tuple[NDArray[Any], ...]
    replayed: bool  #: whether the reference was made to keep what the engine kept, after each of its own decisions
    into: tuple[NDArray[Any], ...] = ()  #: per merging layer `[B, N - k]`
    unmeasured: str = "the layer compared no scores"  #: why a gap is not finite, in words

    @classmethod
    def joined(cls, parts: Sequence[Reference]) -> Reference:
        """The reference of one batch that was run in parts."""
        layers = ([getattr(part, name) for part in parts] for name in ("kept", "gaps", "into"))
        kept, gaps, into = map(joined_layers, layers)
        first = parts[0]
        return cls(np.concatenate([p.logits for p in parts]), kept, gaps, first.replayed, into, first.unmeasured)

    def of_images(self, rows: Sequence[int]) -> Reference:
        """The reference of some images, in the given order."""
        kept, gaps, into = (tuple(layer[rows] for layer in layers) for layers in (self.kept, self.gaps, self.into))
        return Reference(self.logits[rows], kept, gaps, self.replayed, into, self.unmeasured)


def compare(
    name: str,
    blocks: Sequence[int],
    actual: Outputs,
    reference: Reference,
    precision: Precision = "fp32",
    *,
    graph: ParityRecord | None = None,
) -> ParityRecord:
    """Hold an engine's outputs against a reference.

    Where the reference was not replayed, an image is left out behind the first layer at which it was a tie. Below
    fp32 nearly every image is one: replay its choices, or use `compare_drift`.

    Args:
        graph: how far its graph was from the same reference, with all rounding spelt out; then the median image may
            not be off by more than `DRIFT_FACTOR` times that.

    Raises:
        ParityError: names the first pruning layer that kept other tokens, or the logits.
    """
    _check_shapes(name, actual, reference)
    gap_tolerance = GAP_TOLERANCE if precision == "fp32" else None
    images = len(reference.logits)
    comparable = np.ones(images, dtype=bool)
    layers = []
    agreed = zip(actual.kept, reference.kept, same_choices(actual, reference), strict=True)
    for block, (kept, wanted, same), gap in zip(blocks, agreed, reference.gaps, strict=True):
        tie = comparable & ~same & (True if gap_tolerance is None else gap <= gap_tolerance)
        wrong = comparable & ~same & ~tie
        if wrong.any():
            raise _layer_error(name, block, images, gap[wrong], reference.unmeasured)
        layers.append(
            LayerParity(
                block=block,
                identical=int((comparable & same).sum()),
                ties=int(tie.sum()),
                overlap=_overlap(kept[comparable], wanted[comparable]),
            )
        )
        if not reference.replayed:
            comparable &= same
    if not comparable.any():
        raise ParityError(
            f"{name}: every image is a tie", "an image with a clear-cut choice", "use other weights or images"
        )
    tolerance = LOGIT_TOLERANCE[precision] * _scale(reference)
    differences = _logit_differences(name, actual, reference, tolerance)[comparable]
    if differences.max() > tolerance:
        raise _logits_error(name, "differ", float(differences.max()), tolerance)
    median = float(np.median(differences))
    if graph is not None:
        explained = LOGIT_TOLERANCE["fp32"] * _scale(reference) + DRIFT_FACTOR * graph.median_logit_difference
        if median > explained:
            raise _logits_error(name, "of the median image differ", median, explained)
    return ParityRecord(
        images=int(comparable.sum()),
        max_logit_difference=float(differences.max()),
        median_logit_difference=median,
        logit_tolerance=tolerance,
        gap_tolerance=gap_tolerance,
        layers=tuple(layers),
    )


def measure_drift(
    name: str,
    blocks: Sequence[int],
    actual: Outputs,
    reference: Reference,
    output: Output = "logits",
    activation: Activation = "softmax",
) -> ParityRecord:
    """How far its precision moves a graph from the fp32 reference, each keeping the tokens of its own choice.

    Args:
        output: what it gives: answers are compared by class, vectors by their cosine.

    Raises:
        ParityError: logits that are no numbers.
    """
    _check_shapes(name, actual, reference)
    differences = _logit_differences(name, actual, reference, np.inf)
    layers = []
    absolute = zip(original_tokens(actual.kept), original_tokens(reference.kept), strict=True)
    for block, (kept, wanted) in zip(blocks, absolute, strict=True):
        same = (kept == wanted).all(-1)
        identical, overlap = int(same.sum()), _overlap(kept, wanted)
        layers.append(LayerParity(block=block, identical=identical, ties=len(same) - identical, overlap=overlap))
    return ParityRecord(
        images=len(differences),
        max_logit_difference=float(differences.max()),
        median_logit_difference=float(np.median(differences)),
        logit_tolerance=None,
        gap_tolerance=None,
        layers=tuple(layers),
        replayed=False,
        **_likeness(actual, reference, output, activation),
    )


def compare_drift(
    name: str,
    blocks: Sequence[int],
    actual: Outputs,
    reference: Reference,
    graph: GraphRecord,
    output: Output = "logits",
    activation: Activation = "softmax",
) -> ParityRecord:
    """Hold an engine below fp32 against the fp32 reference, knowing how far its graph drifts by itself.

    A token that falls the other way can move one image's logits far; hence the median image is judged.

    Raises:
        ParityError: it drifts much further, in its logits or in the tokens that it keeps.
    """
    found = measure_drift(name, blocks, actual, reference, output, activation)
    tolerance = LOGIT_TOLERANCE[graph.precision] * _scale(reference)
    known = {layer.block: layer.overlap for layer in graph.drift.layers} if graph.drift is not None else {}
    if graph.drift is not None:
        tolerance = max(tolerance, DRIFT_FACTOR * graph.drift.median_logit_difference)
    for layer in found.layers:
        wanted = known.get(layer.block, 1.0) - DRIFT_OVERLAP
        if layer.overlap < wanted:
            raise ParityError(
                f"{name}: pruning layer {pruning_scope(layer.block)} keeps {layer.overlap:.2f} of the reference's"
                " tokens",
                f"at least {wanted:.2f}, as its precision alone explains",
                "report it with the model and tool versions",
            )
    if found.median_logit_difference > tolerance:
        raise _logits_error(name, "of the median image differ", found.median_logit_difference, tolerance)
    return found.model_copy(update={"logit_tolerance": tolerance})


def _logit_differences(name: str, actual: Outputs, reference: Reference, tolerance: float) -> NDArray[np.floating[Any]]:
    """The largest difference of each image, `[B]`; NaN is no parity, nor is a reference that overflowed."""
    with np.errstate(invalid="ignore"):  # infinite on both sides
        differences: NDArray[np.floating[Any]] = np.abs(actual.logits - reference.logits)
        differences = differences.reshape(len(differences), -1).max(-1)
    if not np.isfinite(differences).all() or not np.isfinite(_scale(reference)):
        raise _logits_error(name, "differ", float(differences.max()), tolerance)
    return differences


def _likeness(actual: Outputs, reference: Reference, output: Output, activation: Activation) -> dict[str, float]:
    """The fields of a record that say how alike answers are; none of values that are no answers."""
    if output == "logits" and activation == "none":
        return {}
    if output != "logits":
        vectors = (
            one.logits.reshape(len(one.logits), -1) if output == "maps" else one.logits for one in (reference, actual)
        )
        return {"cosine": float(cosines(*vectors).mean())}
    return {
        "agreement": float(same_answers(reference.logits, actual.logits, activation).mean()),
        "kl": float(divergences(reference.logits, actual.logits, activation).mean()),
    }


def _logits_error(name: str, what: str, difference: float, tolerance: float) -> ParityError:
    return ParityError(
        f"{name}: logits {what} by {difference:.2e}",
        f"at most {tolerance:.2e}" if np.isfinite(tolerance) else "numbers",
        "report it with the model and tool versions",
    )


def _scale(reference: Reference) -> float:
    """The largest magnitude, which is at least 1 but for maps `[B, C, h, w]`: their values may be of any unit."""
    least = _LEAST_OF_MAPS if reference.logits.ndim == 4 else 1.0
    return max(least, float(np.abs(reference.logits).max()))


def same_choices(actual: Outputs, reference: Reference) -> list[NDArray[np.bool_]]:
    """Per pruning layer `[B]`: whether the same tokens stayed, and the others went into the same slots."""
    same = [(kept == wanted).all(-1) for kept, wanted in zip(actual.kept, reference.kept, strict=True)]
    for layer, (into, wanted) in enumerate(zip(actual.into, reference.into, strict=True)):
        same[layer] &= (into == wanted).all(-1)
    return same


def _overlap(kept: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The share of the wanted tokens that were kept, mean over the images; 1 where there is none."""
    shares = [np.isin(theirs, ours).mean() for ours, theirs in zip(kept, wanted, strict=True)]
    return float(np.mean(shares)) if shares else 1.0


def _check_shapes(name: str, actual: Outputs, reference: Reference) -> None:
    found, wanted = (
        [one.logits.shape, *(choice.shape for choice in (*one.kept, *one.into))] for one in (actual, reference)
    )
    if found != wanted:
        raise ParityError(f"{name}: logits and kept tokens of shapes {found}", f"{wanted}", "build the bundle again")


def golden_pixels(bundle: Bundle) -> NDArray[np.uint8]:
    """The golden inputs, uint8 `[n, H, W, C]`.

    Raises:
        BundleError: damaged, or of another type, number or size.
    """
    golden = bundle.manifest.golden
    wanted = {"": (np.dtype(np.uint8), (len(golden.images), *bundle.manifest.preprocess.shape))}
    return _read_golden(bundle, golden.pixels, wanted)[""]


def check_preprocessing(bundle: Bundle) -> None:
    """Resize and crop the golden images here; every byte must be as at build time.

    Raises:
        BundleError: a golden image or the golden pixels are damaged.
        ParityError: this machine's image library gives other pixels.
    """
    wanted = golden_pixels(bundle)
    try:
        given = load_pixels([bundle.path(name) for name in bundle.manifest.golden.images], bundle.manifest.preprocess)
    except ImageError as error:
        raise BundleError(error.given, "a golden image as built", "copy or build the bundle again") from error
    different = (given != wanted).mean()
    if different:
        raise ParityError(
            f"pre-processing gives other pixels than at build time ({100 * different:.2f} % of the values)",
            "identical pixels",
            "install the Pillow version that the manifest names under tools",
        )


def check_golden(bundle: Bundle, runner: BundleRunner, variant: VariantRecord) -> ParityRecord:
    """Run a variant on the golden inputs and compare with the outputs of the PyTorch reference.

    Raises:
        ParityError: the engine does not reproduce them.
    """
    runner.switch(variant=variant.name)
    blocks = [layer.block for layer in variant.plan.layers]
    actual, reference = runner.infer(golden_pixels(bundle)), golden_reference(bundle, variant)
    if runner.graph.precision == "fp32":
        return compare(variant.name, blocks, actual, reference)
    model = bundle.manifest.model
    return compare_drift(variant.name, blocks, actual, reference, runner.graph, model.gives, model.activation)


def golden_reference(bundle: Bundle, variant: VariantRecord) -> Reference:
    """
    Raises:
        BundleError: damaged, or of other names, types or shapes.
    """
    images, layers = len(bundle.manifest.golden.images), variant.plan.layers
    wanted: dict[str, _Array] = {LOGITS: (np.dtype(np.float32), (images, *output_shape(bundle.manifest)))}
    for layer in layers:
        wanted[golden_array(KEPT, layer.block)] = (np.dtype(np.int32), (images, layer.tokens_out))
        wanted[golden_array(GAP, layer.block)] = (np.dtype(np.float32), (images,))
        if layer.merges:
            wanted[golden_array(INTO, layer.block)] = (np.dtype(np.int32), (images, layer.tokens_in - layer.tokens_out))
    arrays = _read_golden(bundle, bundle.manifest.golden.outputs[variant.name], wanted)
    for layer in layers:
        kept = arrays[golden_array(KEPT, layer.block)]
        if kept.min() < 0 or kept.max() >= layer.tokens_in or not (arrays[golden_array(GAP, layer.block)] >= 0).all():
            raise BundleError(
                f"golden outputs of '{variant.name}' at block {layer.block + 1} that cannot be right",
                f"tokens from 0 to {layer.tokens_in - 1}, and gaps that are no less than 0",
                "build the bundle again",
            )
    return Reference(
        logits=arrays[LOGITS],
        kept=tuple(arrays[golden_array(KEPT, layer.block)] for layer in layers),
        gaps=tuple(arrays[golden_array(GAP, layer.block)] for layer in layers),
        replayed=False,
        into=tuple(arrays[golden_array(INTO, layer.block)] for layer in layers if layer.merges),
    )


_Array = tuple[np.dtype[Any], tuple[int | None, ...]]


def _read_golden(bundle: Bundle, name: str, wanted: Mapping[str, _Array]) -> dict[str, NDArray[Any]]:
    """The arrays of a golden file, all of the types and shapes that are wanted (None: any length), and no others."""
    shapes = ([length or _MOST_FEATURES for length in shape] for _, shape in wanted.values())
    arrays = read_arrays(bundle.path(name), sum(8 * math.prod(shape) for shape in shapes))
    for key, (dtype, shape) in wanted.items():
        found = arrays.get(key)
        if found is None or found.dtype != dtype or not shape_fits(shape, found.shape):
            have = "is not there" if found is None else f"is {found.dtype} {list(found.shape)}"
            raise BundleError(
                f"golden '{name}': '{key or 'pixels'}' {have}",
                f"{dtype} {shape_words(shape)}",
                "build the bundle again",
            )
    if extra := sorted(arrays.keys() - wanted.keys()):
        raise BundleError(f"golden '{name}' holds '{extra[0][:80]}'", f"{len(wanted)} arrays", "build the bundle again")
    return arrays


def _layer_error(name: str, block: int, images: int, gaps: NDArray[Any], unmeasured: str) -> ParityError:
    measured = gaps[np.isfinite(gaps)]
    gap = f"smallest gap {measured.min():.1e}" if measured.size else f"no gap was measured: {unmeasured}"
    return ParityError(
        f"{name}: pruning layer {pruning_scope(block)} keeps other tokens for {len(gaps)} of {images} images ({gap})",
        f"the reference's tokens wherever the gap at the cut is above {GAP_TOLERANCE:.0e}",
        "report it with the model and tool versions",
    )

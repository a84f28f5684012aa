"""Compare every engine with PyTorch, each pruning layer on identical input."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray

from ztdeploy.core.errors import ParityError
from ztdeploy.core.manifest import ParityRecord, VariantRecord
from ztdeploy.host.export import Deployable
from ztdeploy.host.graph.integer_layers import IntegerLayers
from ztdeploy.host.pruning.layer import Choice
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.backends.base import Runner
from ztdeploy.target.runtime.interface import Outputs
from ztdeploy.target.runtime.parity import Reference, compare, measure_drift, same_choices
from ztdeploy.target.runtime.runner import BundleRunner

#: Tokens that PyTorch runs at once in a reference. Attention matrices grow with their square, and one large image uses
#: the processor as well as four.
TOKENS_AT_ONCE = 2048
#: Allowed error of an integer layer, relative to its largest result: sums are exact, and scales are fp32.
LAYER_TOLERANCE = 1e-5
SMALLER_WEIGHTS = "set weight_bits = 7 under [int8] in the profile, or build on a processor with VNNI"


def prove_products(
    runner: BundleRunner, variant: VariantRecord, exact: Runner, pixels: NDArray[np.uint8]
) -> ParityRecord:
    """Compare an int8 engine with its graph in exact products, on all pixels as a batch and on the first image alone.

    Everything else is the same on both sides, so the same tokens are kept and logits agree as closely as in fp32.

    Args:
        exact: a runner of that graph; this function closes it.

    Raises:
        ParityError: this CPU's integer kernels give other sums.
    """
    actual = _run_twice(runner, variant, pixels)
    runner.adopt(variant.name, exact)
    expected = _run_twice(runner, variant, pixels)
    blocks = [layer.block for layer in variant.plan.layers]
    no_ties = tuple(np.full(len(expected.logits), np.nan) for _ in blocks)
    reference = Reference(
        expected.logits,
        expected.kept,
        no_ties,
        replayed=False,
        into=expected.into,
        unmeasured="an engine must choose exactly as its own graph",
    )
    try:
        parity = compare(f"{variant.name} ({runner.profile})", blocks, actual, reference)
    except ParityError as error:
        raise ParityError(
            f"integer products on this CPU are not exact: {error.given}",
            "what the graph gives with exact ones",
            SMALLER_WEIGHTS,
        ) from error
    return parity.model_copy(update={"against": "graph"})


def _run_twice(runner: BundleRunner, variant: VariantRecord, pixels: NDArray[np.uint8]) -> Outputs:
    """Outputs of a variant for the pixels as a batch, followed by those for the first image alone."""
    runner.switch(variant=variant.name)
    return Outputs.joined([runner.infer(pixels), runner.infer(pixels[:1])])


def prove_layers(name: str, runner: Runner, layers: IntegerLayers) -> float:
    """Compare each integer layer of a runtime with the known products of its integer inputs.

    Returns:
        The error of the worst layer, relative to its largest result.

    Raises:
        ParityError: this CPU's integer kernels give other sums.
    """
    given = runner.infer(layers.feeds)
    least = np.finfo(np.float32).tiny
    errors = {
        layer: float(np.abs(given[layer] - wanted).max() / max(np.abs(wanted).max(), least))
        for layer, wanted in layers.wanted.items()
    }
    wrong = [layer for layer, error in errors.items() if not error <= LAYER_TOLERANCE]  # NaN is wrong, too
    if wrong:
        raise ParityError(
            f"{name}: integer products on this CPU are not exact: off by {100 * errors[wrong[0]]:.1g} % in {wrong[0]}"
            f" ({len(wrong)} of {len(errors)} layers)",
            "the sums of the products",
            SMALLER_WEIGHTS,
        )
    return max(errors.values())


def reference_outputs(
    pruned: PrunedModel, module: Deployable, pixels: NDArray[np.uint8], actual: Outputs | None = None
) -> Reference:
    """PyTorch's outputs for pixels, uint8 `[B, H, W, C]`; it takes fewer images at a time where they have many tokens.

    Args:
        actual: outputs of an engine, whose choices PyTorch replays.
    """
    at_once = max(1, TOKENS_AT_ONCE // pruned.token_plan.tokens_per_block[0])
    parts = []
    for start in range(0, len(pixels), at_once):
        some = slice(start, start + at_once)
        forced = None if actual is None else _choices(_of_images(actual, some))
        parts.append(_reference_at_once(pruned, module, pixels[some], forced))
    return Reference.joined(parts)


def _reference_at_once(
    pruned: PrunedModel, module: Deployable, pixels: NDArray[np.uint8], forced: list[Choice] | None
) -> Reference:
    replay = pruned.replay(module.normalise(torch.from_numpy(pixels)), forced)
    return Reference(
        logits=replay.output.numpy(),
        kept=tuple(choice.kept.int().numpy() for choice in replay.choices),
        into=tuple(choice.into.int().numpy() for choice in replay.choices if choice.into is not None),
        gaps=tuple(np.asarray(record.smallest_gap(len(pixels)).numpy()) for record in replay.records),
        replayed=forced is not None,
    )


def replayed_reference(
    pruned: PrunedModel, module: Deployable, pixels: NDArray[np.uint8], actual: Outputs, own: Reference
) -> Reference:
    """PyTorch's outputs for the pixels with the choices of an engine.

    Where the engine chose like PyTorch in all layers, these are the outputs that PyTorch gave with its own choices.

    Args:
        own: PyTorch's outputs with its own choices.
    """
    if any(a.shape != b.shape for a, b in zip((*actual.kept, *actual.into), (*own.kept, *own.into), strict=False)):
        return reference_outputs(pruned, module, pixels, actual)
    same = np.all([np.ones(len(pixels), bool), *same_choices(actual, own)], axis=0)
    agreed, others = np.flatnonzero(same).tolist(), np.flatnonzero(~same).tolist()
    parts = [own.of_images(agreed)]
    if others:
        parts.append(reference_outputs(pruned, module, pixels[others], _of_images(actual, others)))
    order = np.argsort([*agreed, *others]).tolist()
    return replace(Reference.joined(parts), replayed=True).of_images(order)


def _of_images(outputs: Outputs, rows: list[int] | slice) -> Outputs:
    kept, into = (tuple(layer[rows] for layer in layers) for layers in (outputs.kept, outputs.into))
    return Outputs(outputs.logits[rows], kept, into)


def _choices(outputs: Outputs) -> list[Choice]:
    """One choice per pruning layer; either all layers of a variant merge, or none does."""

    def long(array: NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).long()

    pairs = zip_longest(outputs.kept, outputs.into)
    return [Choice(long(kept), None if into is None else long(into)) for kept, into in pairs]


def prove(
    runner: BundleRunner,
    variant: VariantRecord,
    pruned: PrunedModel,
    module: Deployable,
    pixels: NDArray[np.uint8],
    *,
    own: Reference | None = None,
    graph: ParityRecord | None = None,
    with_drift: bool = False,
) -> tuple[ParityRecord, ParityRecord | None]:
    """Run the engine on the pixels as a batch and on the first image alone; then replay its choices in PyTorch.

    Args:
        own: PyTorch's outputs with its own choices, where they are known already.
        graph: see `runtime.parity.compare`.

    Returns:
        The parity; and if requested the drift, which is the same comparison with PyTorch's own choices.

    Raises:
        ParityError: names the pruning layer, or the logits.
    """
    actual = _run_twice(runner, variant, pixels)
    rows = [*range(len(pixels)), 0]
    own = (own or reference_outputs(pruned, module, pixels)).of_images(rows)
    reference = replayed_reference(pruned, module, pixels[rows], actual, own)
    name, precision = f"{variant.name} ({runner.profile})", runner.graph.precision
    blocks = [layer.block for layer in variant.plan.layers]
    parity = compare(name, blocks, actual, reference, precision, graph=graph)
    model = runner.bundle.manifest.model
    drift = measure_drift(name, blocks, actual, own, model.gives, model.activation) if with_drift else None
    return parity, drift

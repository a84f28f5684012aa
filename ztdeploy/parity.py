"""The build's own proof: every engine against PyTorch, each pruning layer on identical input."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray

from ztdeploy.backends.base import Runner
from ztdeploy.errors import ParityError
from ztdeploy.export import Deployable
from ztdeploy.manifest import ParityRecord, VariantRecord
from ztdeploy.pruning.layer import Choice
from ztdeploy.pruning.pruned_model import PrunedModel
from ztdeploy.runtime.parity import Reference, compare, measure_drift
from ztdeploy.runtime.runner import BundleRunner, Outputs


def prove_products(
    runner: BundleRunner, variant: VariantRecord, exact: Runner, pixels: NDArray[np.uint8]
) -> ParityRecord:
    """Hold an int8 engine against its graph with exact products, on the pixels as a batch and the first image alone.

    Everything else is the same on both sides, so that the same tokens are kept, and logits agree as in fp32.

    Args:
        exact: runs that graph; it is closed.

    Raises:
        ParityError: this CPU's integer kernels give other sums.
    """
    runner.switch(variant=variant.name)
    actual = Outputs.joined([runner.infer(pixels), runner.infer(pixels[:1])])
    runner.adopt(variant.name, exact)
    expected = Outputs.joined([runner.infer(pixels), runner.infer(pixels[:1])])
    blocks = [layer.block for layer in variant.plan.layers]
    no_ties = tuple(np.full(len(expected.logits), np.inf) for _ in blocks)
    reference = Reference(expected.logits, expected.kept, no_ties, replayed=False, into=expected.into)
    try:
        parity = compare(f"{variant.name} ({runner.profile})", blocks, actual, reference)
    except ParityError as error:
        raise ParityError(
            f"integer products on this CPU are not exact: {error.given}",
            "what the graph gives with exact ones",
            "set weight_bits = 7 under [int8] in the profile, or build where the CPU has VNNI",
        ) from error
    return parity.model_copy(update={"against": "graph"})


def reference_outputs(
    pruned: PrunedModel, module: Deployable, pixels: NDArray[np.uint8], actual: Outputs | None = None
) -> Reference:
    """What PyTorch makes of the pixels, uint8 `[B, S, S, 3]`.

    Args:
        actual: what an engine made of them; its choices are replayed.
    """
    forced = None if actual is None else _choices(actual)
    replay = pruned.replay(module.normalise(torch.from_numpy(pixels)), forced)
    images = len(pixels)
    return Reference(
        logits=replay.output.numpy(),
        kept=tuple(_int32(choice.kept) for choice in replay.choices),
        into=tuple(_int32(choice.into) for choice in replay.choices if choice.into is not None),
        gaps=tuple(np.asarray(record.smallest_gap(images).numpy()) for record in replay.records),
        replayed=actual is not None,
    )


def _choices(outputs: Outputs) -> list[Choice]:
    """One per pruning layer; those of a bundle's variant all merge, or none does."""
    pairs = zip_longest(outputs.kept, outputs.into)
    return [Choice(_long(kept), None if into is None else _long(into)) for kept, into in pairs]


def _long(array: NDArray[np.int32]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).long()


def _int32(tensor: torch.Tensor) -> NDArray[np.int32]:
    array: NDArray[np.int32] = tensor.to(torch.int32).numpy()
    return array


def prove(
    runner: BundleRunner,
    variant: VariantRecord,
    pruned: PrunedModel,
    module: Deployable,
    pixels: NDArray[np.uint8],
    *,
    with_drift: bool = False,
) -> tuple[ParityRecord, ParityRecord | None]:
    """Run the engine on the pixels as a batch, and on the first image alone; then replay its choices in PyTorch.

    Returns:
        Its parity, and if asked for its drift: the same on PyTorch's own choices, which takes another forward pass.

    Raises:
        ParityError: names the pruning layer, or the logits.
    """
    runner.switch(variant=variant.name)
    actual = Outputs.joined([runner.infer(pixels), runner.infer(pixels[:1])])
    inputs = np.concatenate([pixels, pixels[:1]])
    reference = reference_outputs(pruned, module, inputs, actual)
    name, precision = f"{variant.name} ({runner.profile})", runner.graph.precision
    blocks = [layer.block for layer in variant.plan.layers]
    parity = compare(name, blocks, actual, reference, precision)
    if not with_drift:
        return parity, None
    own = reference_outputs(pruned, module, inputs) if blocks else reference
    return parity, measure_drift(name, blocks, actual, own, runner.bundle.manifest.model.gives)

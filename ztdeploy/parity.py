"""The build's own proof: every engine against PyTorch, each pruning layer on identical input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ztdeploy.export import Deployable
from ztdeploy.manifest import ParityRecord, VariantRecord
from ztdeploy.pruning.pruned_model import PrunedModel
from ztdeploy.runtime.parity import Reference, compare, measure_drift
from ztdeploy.runtime.runner import BundleRunner, Outputs


def reference_outputs(
    pruned: PrunedModel, module: Deployable, pixels: NDArray[np.uint8], kept: Any = None
) -> Reference:
    """What PyTorch makes of the pixels, uint8 `[B, S, S, 3]`.

    Args:
        kept: an engine's choices, `[B, k]` per pruning layer, to be replayed.
    """
    forced = None if kept is None else [torch.from_numpy(np.ascontiguousarray(layer)).long() for layer in kept]
    replay = pruned.replay(module.normalise(torch.from_numpy(pixels)), forced)
    images = len(pixels)
    return Reference(
        logits=replay.output.numpy(),
        kept=tuple(layer.to(torch.int32).numpy() for layer in replay.kept),
        gaps=tuple(np.asarray(record.smallest_gap(images).numpy()) for record in replay.records),
        replayed=kept is not None,
    )


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
    together, alone = runner.infer(pixels), runner.infer(pixels[:1])
    actual = Outputs(
        logits=np.concatenate([together.logits, alone.logits]),
        kept=tuple(np.concatenate(pair) for pair in zip(together.kept, alone.kept, strict=True)),
    )
    inputs = np.concatenate([pixels, pixels[:1]])
    reference = reference_outputs(pruned, module, inputs, actual.kept)
    name, precision = f"{variant.name} ({runner.profile})", runner.graph.precision
    blocks = [layer.block for layer in variant.plan.layers]
    parity = compare(name, blocks, actual, reference, precision)
    if not with_drift:
        return parity, None
    own = reference_outputs(pruned, module, inputs) if blocks else reference
    return parity, measure_drift(name, blocks, actual, own)

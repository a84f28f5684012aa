"""The words on contact sheets and on the page."""

from __future__ import annotations

from collections.abc import Sequence

from ztdeploy.fidelity.patches import LayerPatches
from ztdeploy.manifest import VariantRecord
from ztdeploy.methods import METHODS
from ztdeploy.runtime.postprocess import Label

DROPPING = "As it is: its token stays. Dimmed: its token was dropped."
MERGING = (
    "As it is: its token stays. Tinted: merged into another token, averaged and not lost; of the patches of one "
    "colour, the one without tint is where that token is. Dimmed: dropped."
)
FUSING = "As it is: its token stays. Tinted: averaged into one further token, which has no patch."


def legend(variant: VariantRecord) -> str:
    method = METHODS.get(variant.schedule.method)
    if method is not None and method.fuses:
        return FUSING
    return MERGING if any(layer.merges for layer in variant.plan.layers) else DROPPING


def heading(variant: VariantRecord, dense: VariantRecord) -> str:
    return f"{variant.name}, {variant.schedule.method}, {variant.gmacs:.3g} of {dense.gmacs:.3g} GMACs"


def layer_caption(layer: LayerPatches, depth: int) -> str:
    return f"block {layer.plan.block + 1} of {depth}: {layer.plan.tokens_out} of {layer.plan.tokens_in} tokens"


def answers(labels: Sequence[Label]) -> str:
    return "   ".join(f"{label.name} {100 * label.probability:.1f} %" for label in labels) or "no classifier"

"""The words on contact sheets and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.methods import METHODS
from ztdeploy.report.show.tiles import DRAWN_PAIRS, Grid
from ztdeploy.target.evaluate.patches import LayerPatches
from ztdeploy.target.evaluate.reasons import LayerReasons
from ztdeploy.target.runtime.postprocess import Label, chance

if TYPE_CHECKING:
    from ztdeploy.report.show.show import Seen

DROPPING = "As it is: its token stays. Dimmed: its token was dropped."
MERGING = (
    "As it is: its token stays. Tinted: merged into another token, averaged and not lost; of the patches of one "
    "colour, the one without tint is where that token is. Dimmed: dropped."
)
FUSING = "As it is: its token stays. Tinted: averaged into one further token, which has no patch."

#: Keys beside the maps of importance.
ALIKE, UNIMPORTANT, BEFORE = "like another one", "among the least important", "gone at an earlier layer"
LEAST, MOST = "least important", "most important"

UNEXPLAINED = (
    "Why patches went, and how important they were, is not in this bundle: build it again with this version, and not "
    "in bf16 for GPUs alone."
)


def disagreement(block: int) -> str:
    """What to say where the graph that notes reasons chooses otherwise than the engine, from a block (from 0) on."""
    return (
        f"From block {block + 1} on there are no reasons: there the engine keeps other tokens than the same "
        "graph with reasons as outputs. What stays is what the engine keeps."
    )


def legend(seen: Seen) -> str:
    """The looks of patches, and where reasons are known what they look like."""
    method = METHODS.get(seen.variant.schedule.method)
    merges = any(layer.plan.merges for layer in seen.layers)
    fuses = method is not None and method.fuses
    reasons = [one for one in seen.reasons if one is not None]
    if not reasons:
        return FUSING if fuses else MERGING if merges else DROPPING
    parts = [FUSING if fuses else MERGING] if merges else ["As it is: its token stays. Dark: gone at an earlier layer."]
    mark = " dot: merged" if merges else ": dropped"
    if any(one.by_similarity for one in reasons):
        parts.append(f"Blue{mark} at this layer, because it is like another one.")
    if any(one.by_importance for one in reasons):
        parts.append(f"Orange{mark} at this layer, as one of the least important.")
    if any(one.pairs for one in reasons):
        parts.append(f"Lines lead from the {DRAWN_PAIRS} most similar of them to what they are like.")
    if any(one.has_importance for one in reasons):
        parts.append(
            "Maps: importance by rank, from violet (least) to yellow (most); dark: not ranked; the white line runs "
            "around what stays."
        )
    return " ".join(parts)


def heading(variant: VariantRecord, dense: VariantRecord) -> str:
    return f"{variant.name}, {variant.schedule.method}, {variant.gmacs:.3g} of {dense.gmacs:.3g} GMACs"


def layer_caption(layer: LayerPatches, depth: int) -> str:
    return f"block {layer.plan.block + 1} of {depth}: {layer.plan.tokens_out} of {layer.plan.tokens_in} tokens"


def reason_caption(reasons: LayerReasons | None) -> str | None:
    """How many patches went for which reason; None where that is not known."""
    if reasons is None:
        return None
    counts = (len(reasons.by_similarity), "similarity"), (len(reasons.by_importance), "importance")
    return "gone: " + (", ".join(f"{count} by {reason}" for count, reason in counts if count) or "none")


def position(patch: int | None, grid: Grid) -> str:
    """Where a patch is, counted from 1."""
    if patch is None:
        return "a token without a patch"
    row, column = grid.place(patch)
    return f"row {row + 1}, column {column + 1}"


def nearness(seen: Seen) -> str | None:
    """How near vectors are to dense's; None of a classifier."""
    return None if seen.cosine is None else f"cosine to dense: {seen.cosine:.4f}"


def answers(labels: Sequence[Label]) -> str:
    return "   ".join(f"{label.name} {chance(label.probability, label.value)}" for label in labels) or "no classifier"

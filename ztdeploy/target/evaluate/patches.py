"""From an engine's choices of tokens to patches: which stay behind each pruning layer, and what becomes of the others.

An engine's indices are positions among the tokens that entered that layer. Here they are followed back to the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.methods import METHODS
from ztdeploy.core.plan import LayerPlan
from ztdeploy.target.runtime.interface import Outputs

GONE = -1


@dataclass(frozen=True)
class LayerPatches:
    """Which of one image's patches are left behind one pruning layer."""

    plan: LayerPlan
    holder: NDArray[np.int64]  #: `[patches]`: which token, of those that are left, holds each patch; `GONE`: none does
    own: NDArray[
        np.int64
    ]  #: `[tokens_out]`: the patch in whose place each token is; `GONE`: in none, such as a prefix token

    @property
    def kept(self) -> NDArray[np.int64]:
        """Patches with a token in their own place, ascending."""
        return np.sort(self.own[self.own != GONE])

    @property
    def stays(self) -> NDArray[np.bool_]:
        """`[patches]`: whether each is one of `kept`."""
        return np.isin(np.arange(len(self.holder)), self.own)

    @property
    def groups(self) -> list[NDArray[np.int64]]:
        """Patches that share a token, where at least one of them was merged into it; each ascending."""
        stays, members = self.stays, (np.flatnonzero(self.holder == token) for token in range(len(self.own)))
        return [patches for patches in members if not stays[patches].all()]


def follow(variant: VariantRecord, outputs: Outputs, image: int, patches: int) -> tuple[LayerPatches, ...]:
    """One image's patches behind each pruning layer.

    Args:
        outputs: what the variant's engine gave; `Interface` checked that its choices can be right.
        patches: how many the image has.
    """
    plans, method = variant.plan.layers, METHODS.get(variant.schedule.method)
    prefix = plans[0].prefix_tokens if plans else 0
    holder = np.arange(prefix, prefix + patches)
    own = np.concatenate([np.full(prefix, GONE), np.arange(patches)])
    merged = iter(outputs.into)
    layers = []
    for plan, kept in zip(plans, outputs.kept, strict=True):
        stay = kept[image]
        slots = next(merged)[image] if plan.merges else np.full(plan.tokens_in - plan.tokens_out, GONE)
        slot_of = np.full(len(own), GONE)
        slot_of[stay] = np.arange(len(stay))
        slot_of[np.setdiff1d(np.arange(len(own)), stay)] = slots
        holder = np.where(holder == GONE, GONE, slot_of[holder])
        own = own[stay]
        if method is not None and method.fuses:  # what goes makes a token in a place that then is no patch's any more
            own[slots[slots != GONE]] = GONE
        layers.append(LayerPatches(plan, holder, own))
    return tuple(layers)

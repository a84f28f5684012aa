"""From an engine's choices of tokens to patches: which stay behind each pruning layer, and what becomes of the others.

An engine's indices are positions among the tokens that entered that layer. Here they are followed back to the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.errors import ParityError
from ztdeploy.core.plan import LayerPlan

GONE = -1


@dataclass(frozen=True)
class LayerPatches:
    """What is left of one image's patches behind one pruning layer."""

    plan: LayerPlan
    holder: NDArray[np.int64]  #: `[patches]`: which token, of those that are left, holds each patch; `GONE`: none does
    own: NDArray[np.int64]  #: `[tokens_out]`: whose place each token has; `GONE` for a prefix or fused token

    @property
    def kept(self) -> NDArray[np.int64]:
        """Patches with a token in their own place, ascending."""
        return np.sort(self.own[self.own != GONE])

    @property
    def stays(self) -> NDArray[np.bool_]:
        """`[patches]`: whether each is one of `kept`."""
        stays = np.zeros(len(self.holder), np.bool_)
        stays[self.kept] = True
        return stays

    @property
    def groups(self) -> list[NDArray[np.int64]]:
        """Patches that share a token, where at least one of them was merged into it; each ascending."""
        members = (np.flatnonzero(self.holder == token) for token in range(len(self.own)))
        return [patches for patches in members if (~self.stays[patches]).any()]


def follow(
    plans: Sequence[LayerPlan],
    kept: Sequence[NDArray[Any]],
    into: Sequence[NDArray[Any]],
    patches: int,
    *,
    fuses: bool = False,
) -> tuple[LayerPatches, ...]:
    """One image's patches behind each pruning layer.

    Args:
        kept: per layer `[tokens_out]`: which tokens stay, as positions among those that entered.
        into: per merging layer `[tokens_in - tokens_out]`: into which of those that stay each other one goes, in
            ascending order; -1: into none.
        patches: how many the image has.
        fuses: what goes makes a token of its own, in a place that then is no patch's any more.

    Raises:
        ParityError: the engine's indices cannot be right.
    """
    prefix = plans[0].prefix_tokens if plans else 0
    holder = np.arange(prefix, prefix + patches)
    own = np.concatenate([np.full(prefix, GONE), np.arange(patches)])
    merged = iter(into)
    layers = []
    for plan, stay in zip(plans, kept, strict=True):
        slots = next(merged) if plan.merges else np.full(plan.tokens_in - plan.tokens_out, GONE)
        _check(plan, stay, slots, len(own))
        slot_of = np.full(len(own), GONE)
        slot_of[stay] = np.arange(len(stay))
        slot_of[np.setdiff1d(np.arange(len(own)), stay)] = slots
        holder = np.where(holder == GONE, GONE, slot_of[holder])
        own = own[stay]
        if fuses:
            own[slots[slots != GONE]] = GONE
        layers.append(LayerPatches(plan, holder, own))
    return tuple(layers)


def _check(plan: LayerPlan, stay: NDArray[Any], slots: NDArray[Any], tokens: int) -> None:
    right = len(stay) == plan.tokens_out == len(np.unique(stay)) and len(slots) == tokens - len(stay)
    right = right and bool(((stay >= 0) & (stay < tokens)).all() and ((slots >= GONE) & (slots < len(stay))).all())
    if not right:
        raise ParityError(
            f"the engine's choice of tokens at block {plan.block + 1} cannot be right",
            f"{plan.tokens_out} different ones of {tokens}",
            "run: ztdeploy verify",
        )

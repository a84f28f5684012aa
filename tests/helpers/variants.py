"""Variants without a model, for what only reads their plans."""

from __future__ import annotations

from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.plan import LayerPlan, TokenPlan
from ztdeploy.core.schedule import PruningSchedule


def plan(block: int, tokens_in: int, tokens_out: int, *, prefix: int = 1, merges: bool = False) -> LayerPlan:
    return LayerPlan(
        block=block,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        prefix_tokens=prefix,
        class_token=prefix > 0,
        similarity_drop=0,
        iterations=1,
        merges=merges,
    )


def variant_of(method: str, *layers: LayerPlan) -> VariantRecord:
    return VariantRecord(
        name="test",
        schedule=PruningSchedule(name="test", method=method),
        plan=TokenPlan(layers=layers, tokens_per_block=(17,)),
        gmacs=1,
        pruning_gmacs=0,
        graphs={},
        engines={},
    )

"""The I-stage of Zero-TPrune alone: keep the tokens with the highest weighted page rank."""

from __future__ import annotations

from ztdeploy.pruning.zero_tprune import ZeroTPrune
from ztdeploy.schedule import LayerPlan


class WprOnly(ZeroTPrune):
    """Whatever the schedule's similarity share, everything that goes, goes by importance."""

    def __init__(self, plan: LayerPlan) -> None:
        super().__init__(plan.model_copy(update={"similarity_drop": 0}))

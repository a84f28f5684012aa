"""The I-stage of Zero-TPrune alone: keep the tokens with the highest weighted page rank."""

from __future__ import annotations

from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan
from ztdeploy.host.pruning.zero_tprune import ZeroTPrune


class WprOnly(ZeroTPrune):
    """All tokens go by importance, whatever the schedule's similarity share."""

    def __init__(self, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(plan.model_copy(update={"similarity_drop": 0}), options)

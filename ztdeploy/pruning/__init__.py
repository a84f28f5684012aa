"""Pruning methods. One file per method, one line in this table; contract tests run over the table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ztdeploy.errors import ScheduleError, did_you_mean

if TYPE_CHECKING:
    from ztdeploy.pruning.layer import PruningLayer
    from ztdeploy.schedule import LayerPlan

METHODS: dict[str, str] = {
    "zero-tprune": "ztdeploy.pruning.zero_tprune:ZeroTPrune",
    "wpr": "ztdeploy.pruning.wpr_only:WprOnly",
    "random": "ztdeploy.pruning.random_drop:RandomDrop",
    "slice": "ztdeploy.pruning.slice_first:SliceFirst",
}


def check_method(method: str) -> None:
    """Raises ScheduleError where no such method exists."""
    if method not in METHODS:
        raise ScheduleError(f"pruning method '{method}'", "a known method", did_you_mean(method, METHODS))


def pruning_layer(method: str, plan: LayerPlan) -> PruningLayer:
    """The pruning layer of a method for one place in a model."""
    check_method(method)
    module, _, name = METHODS[method].partition(":")
    layer: PruningLayer = getattr(import_module(module), name)(plan)
    return layer

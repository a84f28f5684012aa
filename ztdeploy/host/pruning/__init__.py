"""Pruning methods. One file per method, one line in `ztdeploy.core.methods`; contract tests run over that table."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ztdeploy.core.methods import METHODS, check_options, method_named
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions

if TYPE_CHECKING:
    from ztdeploy.core.plan import LayerPlan
    from ztdeploy.host.pruning.layer import PruningLayer

__all__ = ["METHODS", "check_method", "pruning_layer"]


def check_method(method: str) -> None:
    """Raises ScheduleError where no such method exists."""
    method_named(method)


def pruning_layer(method: str, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> PruningLayer:
    """The pruning layer of a method for one place in a model.

    Raises:
        ScheduleError: there is no such method, or it does not know an option.
    """
    check_options(method, options)
    module, _, name = method_named(method).layer.partition(":")
    layer: PruningLayer = getattr(import_module(module), name)(plan, options)
    return layer

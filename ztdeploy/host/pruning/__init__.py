"""Pruning methods. One file per method, one line in `ztdeploy.core.methods`; contract tests run over that table."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from ztdeploy.core.methods import check_options, method_named
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions

if TYPE_CHECKING:
    from ztdeploy.core.plan import LayerPlan
    from ztdeploy.host.pruning.layer import PruningLayer


def pruning_layer(method: str, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS) -> PruningLayer:
    """The pruning layer of a method for one place in a model.

    Raises:
        ScheduleError: there is no such method, or it does not know an option.
    """
    check_options(method, options)
    layer: PruningLayer = resolve_name(method_named(method).layer)(plan, options)
    return layer

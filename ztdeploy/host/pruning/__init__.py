"""Pruning methods. One file per method, one line in `ztdeploy.core.methods`; contract tests run over that table."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from ztdeploy.core.methods import check_options, method_named
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions

if TYPE_CHECKING:
    from torch import nn

    from ztdeploy.core.plan import LayerPlan
    from ztdeploy.host.pruning.layer import PruningLayer


def pruning_layer(
    method: str, plan: LayerPlan, options: MethodOptions = DEFAULT_OPTIONS, trained: nn.Module | None = None
) -> PruningLayer:
    """The pruning layer of a method for one place in a model.

    Args:
        trained: its trained part, see `trained.trained_parts`; None: it has none.

    Raises:
        ScheduleError: there is no such method, or it does not know an option.
    """
    check_options(method, options)
    parts = () if trained is None else (trained,)
    layer: PruningLayer = layer_class(method)(plan, options, *parts)
    return layer


def layer_class(method: str) -> Any:
    """The class of a method's pruning layers.

    Raises:
        ScheduleError: there is no such method.
    """
    return resolve_name(method_named(method).layer)

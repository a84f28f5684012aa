"""Model families, and the adapter that suits a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ztdeploy.core.errors import ModelError
from ztdeploy.host.models.refusals import refusal

if TYPE_CHECKING:
    from torch import nn

    from ztdeploy.host.models.adapter import ModelAdapter

#: Model families: one file and one line each; the first that accepts a model adapts it.
FAMILIES: dict[str, str] = {
    "vit": "ztdeploy.host.models.vit:VitAdapter",
    "eva": "ztdeploy.host.models.eva:EvaAdapter",
    "beit": "ztdeploy.host.models.beit:BeitAdapter",
    "lvvit": "ztdeploy.host.models.lvvit:LvVitAdapter",
}


def adapt(model: nn.Module, image_size: int | tuple[int, int]) -> ModelAdapter:
    """The adapter of a model's family.

    Raises:
        ModelError: no family accepts it, with the reason.
    """
    for target in FAMILIES.values():
        module, _, attribute = target.partition(":")
        family = getattr(import_module(module), attribute)
        if family.accepts(model):
            adapter: ModelAdapter = family(model, image_size)
            return adapter
    raise refused(f"a model of class {type(model).__name__}", type(model).__module__)


def refused(what: str, module: str) -> ModelError:
    """That a model of one of timm's modules is of no family, and why."""
    return ModelError(
        f"{what} cannot be pruned: {refusal(module)}",
        f"one of the families {', '.join(FAMILIES)}",
        "run 'ztdeploy models'",
    )

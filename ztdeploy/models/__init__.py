"""Model families, and the adapter that suits a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ztdeploy.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from ztdeploy.models.adapter import ModelAdapter

#: Model families: one file and one line each; the first that accepts a model adapts it.
FAMILIES: dict[str, str] = {
    "vit": "ztdeploy.models.vit:VitAdapter",
}


def adapt(model: nn.Module, image_size: int) -> ModelAdapter:
    """The adapter of a model's family.

    Raises:
        ModelError: no family accepts it.
    """
    for target in FAMILIES.values():
        module, _, attribute = target.partition(":")
        family = getattr(import_module(module), attribute)
        if family.accepts(model):
            adapter: ModelAdapter = family(model, image_size)
            return adapter
    raise ModelError(
        f"a model of class {type(model).__name__}",
        f"one of the families {', '.join(FAMILIES)}",
        "run 'ztdeploy models'",
    )

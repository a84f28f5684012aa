"""What ztdeploy can do with a model, found out without its weights."""

from __future__ import annotations

from dataclasses import dataclass

from ztdeploy.core.cost import plan_gmacs
from ztdeploy.core.errors import ModelError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.methods import METHODS
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.plan import plan
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.schedule import Architecture
from ztdeploy.host.models import adapt
from ztdeploy.host.models.adapter import ModelAdapter
from ztdeploy.host.models.sources import source_of

KEEP_RATIO = 0.7


@dataclass(frozen=True)
class ModelCheck:
    """A model that can be pruned."""

    name: str
    timm_name: str
    family: str
    image_size: ImageSize
    architecture: Architecture
    layers: tuple[int, ...]  #: the blocks, from 1, behind which the default schedule prunes
    gmacs: float  #: dense
    pruned_gmacs: float  #: at keep ratio 0.7
    methods: tuple[str, ...]  #: that can be used with it


def check_model(name: str, image_size: ImageSize | None = None) -> ModelCheck:
    """
    Raises:
        ModelError: unknown, or why it cannot be pruned.
    """
    from ztdeploy.host.models.loading import sketch, sketched_size

    source = source_of(ModelSource(name=name, weights="random"))
    if image_size is None and source.description is not None:
        image_size = source.description.image_size
    model = sketch(source.name, image_size, source.arguments)
    size = image_size or sketched_size(model)
    adapter = adapt(model, size)
    architecture = adapter.architecture
    pruned = plan(default_schedule(KEEP_RATIO, architecture), architecture)
    dense = plan(default_schedule(1.0, architecture), architecture)
    return ModelCheck(
        name=name,
        timm_name=source.timm_name,
        family=adapter.family,
        image_size=size,
        architecture=architecture,
        layers=tuple(layer.block + 1 for layer in pruned.layers),
        gmacs=plan_gmacs(architecture, dense),
        pruned_gmacs=plan_gmacs(architecture, pruned),
        methods=tuple(method for method in METHODS if _can(method, adapter)),
    )


def _can(method: str, adapter: ModelAdapter) -> bool:
    """Whether a method's layers can be attached to every block."""
    facts = METHODS[method]
    if facts.needs_class_token and not adapter.architecture.class_token:
        return False
    try:
        for index in range(len(adapter.blocks)):
            undo = adapter.between(index, lambda x: x) if facts.inside else []
            undo += adapter.bias(index, lambda: None) if facts.merges else []
            for one in reversed(undo):
                one()
    except ModelError:
        return False
    return True

"""A pruned model as an ordinary module that can be trained further."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztdeploy.core.errors import MissingExtraError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.methods import DEFAULT_METHOD
from ztdeploy.core.schedule import PruningSchedule

if TYPE_CHECKING:
    from torch import nn

    from ztdeploy.host.models.adapter import ModelAdapter
    from ztdeploy.host.pruning.pruned_model import PrunedClassifier


def prune(
    model: nn.Module | ModelAdapter, schedule: PruningSchedule | float, *, method: str = DEFAULT_METHOD
) -> PrunedClassifier:
    """Prune a model in place for training: it keeps its parameters, and `detach()` removes the pruning.

    Tokens are chosen as in a built bundle, by the present weights. The choice itself has no gradient; everything
    computed from kept or merged tokens has.

        with ztdeploy.prune(model, 0.5) as pruned:
            loss = cross_entropy(pruned(images), labels)
        save_file(model.state_dict(), "model.safetensors")  # ztdeploy build --checkpoint model.safetensors

    Args:
        model: a timm model of a known family, or its adapter, on any device.
        schedule: a schedule; or a keep ratio in (0, 1], as for `--keep-ratio`.
        method: the pruning method, where `schedule` is a keep ratio.

    Raises:
        MissingExtraError: PyTorch or timm is not installed.
        ModelError: no family takes the model, or it is pruned already.
        ScheduleError: a schedule that does not fit the model.
    """
    try:
        from ztdeploy.host.models import adapt
        from ztdeploy.host.models.adapter import ModelAdapter
        from ztdeploy.host.pruning.pruned_model import PrunedClassifier

        adapter = model if isinstance(model, ModelAdapter) else adapt(model, _image_size(model))
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "build", "pruning a model") from error
    if not isinstance(schedule, PruningSchedule):
        schedule = default_schedule(schedule, adapter.architecture, method=method)
    return PrunedClassifier(adapter, schedule)


def _image_size(model: nn.Module) -> tuple[int, int]:
    """Size of a timm model's input; any size, where the model is not one of timm's and no adapter takes it."""
    height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or (1, 1)
    return height, width

"""A pruned model as an ordinary module, for who wants to train it further."""

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
    """Prune a model in place, for training: its parameters stay its own, and `detach()` leaves it as it was.

    Tokens are chosen as in a built bundle, from whatever the weights are at that moment. The choice itself has no
    gradient; everything computed from tokens that stay, or that were merged, has.

        with ztdeploy.prune(model, 0.5) as pruned:
            loss = cross_entropy(pruned(images), labels)
        save_file(model.state_dict(), "model.safetensors")  # ztdeploy build --checkpoint model.safetensors

    Args:
        model: a timm model of a known family, or its adapter, on any device.
        schedule: where pruning layers stand; or a keep ratio in (0, 1], which means what `--keep-ratio` does.
        method: whose schedule a keep ratio means.

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
    """Of a timm model's input; any, where the model is none of timm's and no adapter takes it."""
    height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or (1, 1)
    return height, width

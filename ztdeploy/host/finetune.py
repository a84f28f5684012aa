"""A pruned model as an ordinary module that can be trained further."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ztdeploy.core.errors import InputError, MissingExtraError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.methods import DEFAULT_METHOD
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.profile import schedule_path
from ztdeploy.core.schedule import PruningSchedule, read_schedule

if TYPE_CHECKING:
    from torch import nn

    from ztdeploy.host.models.adapter import ModelAdapter
    from ztdeploy.host.pruning.pruned_model import PrunedClassifier


def prune(
    model: nn.Module | ModelAdapter,
    keep_ratio: float | None = None,
    *,
    schedule: PruningSchedule | str | PathLike[str] | None = None,
    method: str = DEFAULT_METHOD,
    preset: Literal["default", "paper"] = "default",
    backbone: str | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> PrunedClassifier:
    """Prune a model in place for training: it keeps its parameters, and `detach()` removes the pruning.

    Tokens are chosen as in a built bundle, by the present weights. The choice itself has no gradient; everything
    computed from kept or merged tokens has.

        model = timm.create_model("vit_tiny_patch16_224", num_classes=5)
        with ztdeploy.prune(model, keep_ratio=0.5) as pruned:
            loss = pruned(torch.randn(2, 3, 224, 224)).square().mean()
            loss.backward()
        bundle = ztdeploy.build(model, keep_ratio=0.5)

    Args:
        model: a timm model of a known family, or a module of your own with one or a tower of transformers in it, on any
            device. Where the module gives maps, or `backbone` is given, whatever reads tokens of the blocks finds one
            for every place of the image.
        keep_ratio: the share of patch tokens that each layer keeps, in (0, 1]; it means what it does for `build`.
        schedule: where layers stand, instead of a keep ratio: a schedule, its file, or the name of a shipped one.
        method: whose schedule a keep ratio means.
        preset: where the layers of a keep ratio stand.
        backbone: the path of the vision transformer in a module of your own; see `build`.
        image_size: of the images of a tower of transformers. By default that of its configuration.

    Returns:
        A module that takes and gives what the model does, images `[B, C, H, W]`, mostly to logits `[B, classes]`.

    Raises:
        InputError: neither a keep ratio nor a schedule is given, or both.
        MissingExtraError: PyTorch or timm is not installed.
        ModelError: no family takes the model, or it is pruned already.
        ScheduleError: a schedule that does not fit the model.
    """
    if (keep_ratio is None) == (schedule is None):
        given = "neither a keep ratio nor a schedule" if schedule is None else "a keep ratio and a schedule"
        raise InputError(given, "one of them", "give for instance keep_ratio=0.7")
    try:
        from ztdeploy.host.models import adapt
        from ztdeploy.host.models.adapter import ModelAdapter
        from ztdeploy.host.models.own_module import backbone_within, is_dense, surround, within
        from ztdeploy.host.models.shapes import made_for
        from ztdeploy.host.pruning.pruned_model import PrunedClassifier
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "build", "pruning a model") from error
    if isinstance(model, ModelAdapter):
        adapter, whole = model, model.model
    else:
        whole, (path, inner) = model, backbone_within(model, backbone)
        surrounded = None
        if backbone is not None or is_dense(model, path, inner):
            inner, surrounded = within(model, path, inner, None if image_size is None else ImageSize.of(image_size))
        adapter = adapt(inner, made_for(inner))
        if surrounded is not None:
            surround(adapter, surrounded)
    if isinstance(schedule, str | PathLike):
        schedule = read_schedule(schedule_path(Path(schedule)))
    if keep_ratio is not None:
        schedule = default_schedule(keep_ratio, adapter.architecture, method=method, preset=preset)
    assert schedule is not None
    return PrunedClassifier(adapter, schedule, whole)

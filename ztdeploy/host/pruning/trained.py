"""The trained part of pruning layers: weights from a checkpoint by their names, or random ones beside random ones."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor, nn

from ztdeploy.core.errors import CheckpointError, ScheduleError
from ztdeploy.core.methods import DEFAULT_METHOD, METHODS, Trained
from ztdeploy.core.schedule import Architecture, PruningSchedule

_SEED = 2106_02034
State = Mapping[str, Tensor]


class TrainedLayer(Protocol):
    """What the class of a pruning layer with weights of its own has besides; it is made with them, frozen."""

    @staticmethod
    def untrained(width: int, heads: int) -> nn.Module:
        """A module whose parameters have the names and shapes of a layer's weights in a checkpoint."""


def trained_parts(
    kind: type[TrainedLayer], schedule: PruningSchedule, architecture: Architecture, weights: State | None
) -> dict[int, nn.Module]:
    """The trained part of each layer of a schedule, by block from 0.

    Args:
        kind: the class of its layers.
        weights: what a checkpoint holds beside the network, see `pruning_weights`; None: random weights.

    Raises:
        CheckpointError: weights are missing, of another shape, or of another number of layers.
    """
    trained = METHODS[schedule.method].trained
    assert trained is not None
    blocks = [layer.block - 1 for layer in schedule.layers]
    if weights is not None:
        _check_stages(trained, schedule, weights)
    parts = {}
    for stage, block in enumerate(blocks):
        part = random_part(kind, architecture.embed_dim, architecture.num_heads, stage)
        if weights is not None:
            part.load_state_dict(_weights_of(part, trained.names.format(stage=stage), schedule.method, weights))
        parts[block] = frozen(part)
    return parts


def random_part(kind: type[TrainedLayer], width: int, heads: int, stage: int = 0) -> nn.Module:
    """The trained part of a layer with random weights, always the same; the global random state is not used."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED + stage)
        return kind.untrained(width, heads)


def frozen(module: nn.Module) -> nn.Module:
    """Make parameters constants that belong to no checkpoint of the model: a model's file stays its own."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach(), persistent=False)
    return module.eval()


def pruning_weights(beside: State) -> dict[str, Tensor]:
    """Those of a checkpoint's tensors beside the network that pruning layers of some method are trained with."""
    return {name: tensor for name, tensor in beside.items() if readers_of(name)}


def readers_of(name: str) -> list[str]:
    """The methods whose pruning layers are trained with a tensor of this name."""
    found = []
    for method in METHODS:
        with suppress(ScheduleError):  # of an installed package that is broken, which harms no other
            trained = METHODS[method].trained
            if trained is not None and trained.stage_of(name) is not None:
                found.append(method)
    return found


def _check_stages(trained: Trained, schedule: PruningSchedule, weights: State) -> None:
    stages = {stage for name in weights if (stage := trained.stage_of(name)) is not None}
    if not stages:
        raise CheckpointError(
            f"method '{schedule.method}' for weights without any named '{trained.names.format(stage=0)}...'",
            "a checkpoint that was trained with this method",
            f"give its file with --checkpoint, or a method without training, such as --method {DEFAULT_METHOD}",
        )
    if stages != set(range(len(schedule.layers))):
        blocks = ", ".join(str(layer.block) for layer in schedule.layers)
        raise CheckpointError(
            f"schedule '{schedule.name}' with layers behind blocks {blocks}, and a checkpoint with weights of"
            f" {len(stages)} layers of method '{schedule.method}'",
            "a schedule with the layers that were trained",
            "leave --schedule and --preset out, or give a schedule of those layers",
        )


def _weights_of(part: nn.Module, prefix: str, method: str, weights: State) -> dict[str, Tensor]:
    own, found = part.state_dict(), {name: weights.get(prefix + name) for name in part.state_dict()}
    for name, tensor in found.items():
        if tensor is None or tensor.shape != own[name].shape:
            given = "no such tensor" if tensor is None else f"{list(tensor.shape)}"
            raise CheckpointError(
                f"checkpoint with {given} as '{prefix}{name}' for method '{method}'",
                f"{list(own[name].shape)}",
                "give the --method and --model that it was trained with",
            )
    return {name: tensor for name, tensor in found.items() if tensor is not None}

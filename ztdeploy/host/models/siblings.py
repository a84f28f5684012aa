"""Whose checkpoint is it, where it is not the model's."""

from __future__ import annotations

import difflib
import warnings

import torch
from torch import Tensor

from ztdeploy.host.models.catalogue import CATALOGUE

#: What timm's names call a width.
_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1152: "so400m", 1280: "huge", 1408: "giant"}
_TRIED = 30


def sibling_of(state: dict[str, Tensor], name: str) -> str | None:
    """The model, by its nearest name, that has exactly the names and shapes of a checkpoint, its heads aside."""
    shapes = _of_trunk(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return next((one for one in _candidates(state, name) if _shapes_of(one) == shapes), None)


def _candidates(state: dict[str, Tensor], name: str) -> list[str]:
    import timm

    weight = state.get("patch_embed.proj.weight")
    if weight is None or weight.dim() != 4:
        return []
    size, patch = _SIZES.get(weight.shape[0]), f"patch{weight.shape[-1]}"
    alike = [one for one in timm.list_models(f"*{size}*{patch}*") if size is not None]
    nearest = sorted(alike, key=lambda one: -difflib.SequenceMatcher(None, one, name).ratio())
    return [one for one in CATALOGUE if one != name] + nearest[:_TRIED]


def _shapes_of(name: str) -> dict[str, torch.Size]:
    from ztdeploy.host.models.loading import sketch

    return _of_trunk(sketch(name).state_dict())


def _of_trunk(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in state.items() if not key.startswith("head")}

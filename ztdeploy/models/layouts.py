"""Checkpoints as people have them, brought to the names and shapes of timm's models.

Wrappers' prefixes go; what the `transformers` library calls things is renamed; all else that timm's own filters know
(OpenAI's and OpenCLIP's towers, Meta's DINOv2 and DINOv3, other image sizes) is left to them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ztdeploy.models.transformers_names import renamed

#: What training wrappers put in front of every name.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")
_HEADS = ("head.weight", "classifier.weight")


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same without prefixes that all names share, in timm's names where `transformers` wrote it."""
    found = True
    while found:
        prefix = next((one for one in _WRAPPERS if state and all(name.startswith(one) for name in state)), None)
        found = prefix is not None
        if prefix is not None:
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return renamed(state)


def classes_of(state: dict[str, Tensor]) -> int | None:
    """How many classes the head in a checkpoint has; None where it has none."""
    heads = [state[name] for name in _HEADS if name in state and state[name].dim() == 2]
    return heads[0].shape[0] if heads else None


def fitted(state: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], str]:
    """What the model can load, and what was changed about positions, in words; as it was where timm knows no better."""
    own = model.state_dict()
    if state.keys() == own.keys() and all(state[name].shape == own[name].shape for name in own):
        return state, ""
    places, wanted = state.get("pos_embed"), own.get("pos_embed")
    remark = "" if places is None or wanted is None or places.shape == wanted.shape else "positions resampled"
    if _other_patches(state, own):
        return state, ""
    try:
        return _filter_of(model)(dict(state), model), remark
    except (KeyError, ValueError, RuntimeError, AttributeError, AssertionError, IndexError, TypeError):
        return state, ""  # not what the filter takes it for; what does not fit is then told by name


def _other_patches(state: dict[str, Tensor], own: dict[str, Tensor]) -> bool:
    """Whether patches have another size: resampling these makes another model."""
    theirs, ours = (one.get("patch_embed.proj.weight") for one in (state, own))
    return theirs is not None and ours is not None and theirs.dim() == 4 and theirs.shape[2:] != ours.shape[2:]


def _filter_of(model: nn.Module) -> Callable[..., dict[str, Tensor]]:
    """The filter for published checkpoints of the module that defines the model's class."""
    module: Any = sys.modules[type(model).__module__]
    known = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "filter_checkpoint", None)
    if known is None:
        return lambda state, _model: state
    # DeiT-III published its layer scales under older names; the filter for all others leaves them alone.
    takes_scales = "adapt_layer_scale" in known.__code__.co_varnames
    return (lambda state, one: known(state, one, adapt_layer_scale=True)) if takes_scales else known

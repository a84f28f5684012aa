"""Weights that fit a model by names and shapes, while the model computes something else with them."""

from __future__ import annotations

from typing import Any

from torch import nn

from ztdeploy.core.errors import ModelError

_QUICK = "QuickGELU"


def check_activation(model: nn.Module, timm_name: str, classes: int | None, *, published: bool) -> str | None:
    """Whether the weights want the activation that a model has, as far as anybody can tell.

    OpenAI's, DFN's and MetaCLIP's towers were trained with QuickGELU, LAION's with GELU; all have the same names and
    shapes. timm keeps models of both kinds, and notes which weights were trained with QuickGELU.

    Args:
        classes: of the head in the weights; None without one.
        published: whether the weights are those that timm's name stands for; otherwise they are somebody's file.

    Returns:
        A doubt, in words, or None.

    Raises:
        ModelError: timm notes that these weights want another activation.
    """
    import timm

    known: Any = model
    architecture, _, tag = timm_name.partition(".")
    twin = architecture.replace("_clip_", "_clip_quickgelu_")
    if twin == architecture or not timm.is_model(twin) or type(known.blocks[0].mlp.act).__name__.startswith(_QUICK):
        return None
    facts = timm.get_pretrained_cfg(timm_name) if timm.is_model_pretrained(timm_name) else None
    noted = any("quickgelu" in note.lower() for note in (facts.notes if facts else None) or ())
    as_published = published or classes in (None, timm.get_pretrained_cfg(twin).num_classes)
    if not as_published:  # a classifier that somebody trained on top, with timm's own model as likely as not
        return f"its activation is GELU; '{twin}' has {_QUICK}, which timm notes of the tower" if noted else None
    if noted:
        raise ModelError(
            f"model '{timm_name}', whose activation is GELU",
            f"{_QUICK}, which its weights were trained with by timm's own notes",
            f"give --model {twin}.{tag}" + ("" if published else f" (or {architecture}, if it was tuned with GELU)"),
        )
    if published:
        return None
    return f"its activation is GELU; weights of OpenAI, DFN and MetaCLIP want {_QUICK}: --model {twin}"


def set_epsilon(model: nn.Module, epsilon: float) -> None:
    """Give all LayerNorms the epsilon that the weights were trained with."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = epsilon

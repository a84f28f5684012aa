"""What `transformers` calls the parts of timm's models of three blocks: the inverse of `models.dialects`."""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]


def split(state: State, block: str, names: tuple[str, str, str]) -> State:
    """A joint projection as three."""
    return {
        f"{name}.{kind}": part
        for kind in ("weight", "bias")
        for name, part in zip(names, state[f"{block}.attn.qkv.{kind}"].chunk(3), strict=True)
    }


def both(state: State, old: str, new: str) -> State:
    return {f"{new}.{kind}": state[f"{old}.{kind}"] for kind in ("weight", "bias") if f"{old}.{kind}" in state}


def vit_names(state: State, tower: str) -> State:
    """As its ViTForImageClassification and DeiTForImageClassificationWithTeacher name them."""
    result = {
        f"{tower}.embeddings.cls_token": state["cls_token"],
        f"{tower}.embeddings.position_embeddings": state["pos_embed"],
        **both(state, "patch_embed.proj", f"{tower}.embeddings.patch_embeddings.projection"),
        **both(state, "norm", f"{tower}.layernorm"),
    }
    if "dist_token" in state:
        result[f"{tower}.embeddings.distillation_token"] = state["dist_token"]
        result |= both(state, "head", "cls_classifier") | both(state, "head_dist", "distillation_classifier")
    else:
        result |= both(state, "head", "classifier")
    for index in range(3):
        old, new = f"blocks.{index}", f"{tower}.encoder.layer.{index}"
        parts = ("query", "key", "value")
        result |= split(state, old, tuple(f"{new}.attention.attention.{part}" for part in parts))  # type: ignore[arg-type]
        result |= both(state, f"{old}.attn.proj", f"{new}.attention.output.dense")
        result |= both(state, f"{old}.mlp.fc1", f"{new}.intermediate.dense")
        result |= both(state, f"{old}.mlp.fc2", f"{new}.output.dense")
        result |= both(state, f"{old}.norm1", f"{new}.layernorm_before")
        result |= both(state, f"{old}.norm2", f"{new}.layernorm_after")
    return result


def dinov2_names(state: State, registers: bool) -> State:
    """As its Dinov2Model and Dinov2WithRegistersModel do, where each token has a position."""
    position = torch.zeros_like(state["cls_token"]) if registers else None
    places = state["pos_embed"] if position is None else torch.cat([position + 0.25, state["pos_embed"]], 1)
    token = state["cls_token"] if position is None else state["cls_token"] - 0.25
    result = {
        "embeddings.cls_token": token,
        "embeddings.mask_token": torch.zeros(1, token.shape[-1]),
        "embeddings.position_embeddings": places,
        **both(state, "patch_embed.proj", "embeddings.patch_embeddings.projection"),
        **both(state, "norm", "layernorm"),
        **both(state, "head", "classifier"),
    }
    if registers:
        result["embeddings.register_tokens"] = state["reg_token"]
    for index in range(3):
        old, new = f"blocks.{index}", f"encoder.layer.{index}"
        parts = ("query", "key", "value")
        result |= split(state, old, tuple(f"{new}.attention.attention.{part}" for part in parts))  # type: ignore[arg-type]
        result |= both(state, f"{old}.attn.proj", f"{new}.attention.output.dense")
        for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            result |= both(state, f"{old}.{part}", f"{new}.{part}")
        result |= {f"{new}.layer_scale{one}.lambda1": state[f"{old}.ls{one}.gamma"] for one in (1, 2)}
    return result


def tower_names(state: State) -> State:
    """As its CLIPModel and SiglipModel do, text towers and all."""
    result = {
        "logit_scale": torch.ones(()),
        "text_model.embeddings.token_embedding.weight": torch.ones(4, 4),
        "text_projection.weight": torch.ones(4, 4),
        "vision_model.embeddings.position_ids": torch.arange(26)[None],
        "vision_model.embeddings.position_embedding.weight": state["pos_embed"][0],
        **both(state, "patch_embed.proj", "vision_model.embeddings.patch_embedding"),
        **both(state, "norm", "vision_model.post_layernorm"),
    }
    if "cls_token" in state:
        result["vision_model.embeddings.class_embedding"] = state["cls_token"][0, 0]
        result["visual_projection.weight"] = state["head.weight"]
        result |= both(state, "norm_pre", "vision_model.pre_layrnorm")
    else:
        result["vision_model.head.probe"] = state["attn_pool.latent"]
        for kind in ("weight", "bias"):
            parts = [state[f"attn_pool.{part}.{kind}"] for part in ("q", "kv")]
            result[f"vision_model.head.attention.in_proj_{kind}"] = torch.cat(parts)
        result |= both(state, "attn_pool.proj", "vision_model.head.attention.out_proj")
        result |= both(state, "attn_pool.norm", "vision_model.head.layernorm")
        for layer in ("fc1", "fc2"):
            result |= both(state, f"attn_pool.mlp.{layer}", f"vision_model.head.mlp.{layer}")
    for index in range(3):
        old, new = f"blocks.{index}", f"vision_model.encoder.layers.{index}"
        result |= split(state, old, (f"{new}.self_attn.q_proj", f"{new}.self_attn.k_proj", f"{new}.self_attn.v_proj"))
        result |= both(state, f"{old}.attn.proj", f"{new}.self_attn.out_proj")
        result |= both(state, f"{old}.norm1", f"{new}.layer_norm1") | both(state, f"{old}.norm2", f"{new}.layer_norm2")
        for layer in ("fc1", "fc2"):
            result |= both(state, f"{old}.mlp.{layer}", f"{new}.mlp.{layer}")
    return result

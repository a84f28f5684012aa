"""What the `transformers` library calls the parts of ViT, DeiT, DINOv2, CLIP and SigLIP, in timm's names."""

from __future__ import annotations

import re

import torch
from torch import Tensor

#: Prefixes of the vision tower, the first that some name has.
_TOWERS = ("vision_model.", "vit.", "deit.", "dinov2.", "dinov2_with_registers.")
#: What is no part of the image encoder, and training's leftovers.
_ELSEWHERE = re.compile(r"text_model\.|text_projection\.|logit_|pooler\.|.*position_ids$|.*mask_token$")

_RENAMES: tuple[tuple[str, str], ...] = (
    (r"embeddings\.(cls_token|class_embedding)", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.(position_embeddings|position_embedding\.weight)", "pos_embed"),
    (r"embeddings\.(patch_embeddings\.projection|patch_embedding)\.", "patch_embed.proj."),
    (r"pre_layrnorm\.", "norm_pre."),
    (r"encoder\.layers?\.(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+)\.(attention\.attention|self_attn)\.(query|key|value|q_proj|k_proj|v_proj)\.", r"\1.attn.\3."),
    (r"(blocks\.\d+)\.(attention\.output\.dense|self_attn\.out_proj)\.", r"\1.attn.proj."),
    (r"(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"(blocks\.\d+)\.(layernorm_before|layer_norm1)\.", r"\1.norm1."),
    (r"(blocks\.\d+)\.(layernorm_after|layer_norm2)\.", r"\1.norm2."),
    (r"(blocks\.\d+)\.layer_scale(\d)\.lambda1", r"\1.ls\2.gamma"),
    (r"(post_layernorm|layernorm)\.", "norm."),
    (r"(classifier|cls_classifier|visual_projection)\.", "head."),
    (r"distillation_classifier\.", "head_dist."),
    (r"head\.probe", "attn_pool.latent"),
    (r"head\.attention\.in_proj_", "attn_pool.in_proj_"),
    (r"head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"head\.layernorm\.", "attn_pool.norm."),
    (r"head\.mlp\.", "attn_pool.mlp."),
)
_PARTS = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in timm's names; as it was where `transformers` did not write it."""
    if not any("embeddings." in name and "patch_embedding" in name for name in state):
        return state
    tower = next((one for one in _TOWERS if any(name.startswith(one) for name in state)), "")
    rules = [(re.compile(pattern), name) for pattern, name in _RENAMES]
    result = {}
    for name, tensor in state.items():
        if _ELSEWHERE.match(name.removeprefix(tower)) or _ELSEWHERE.match(name):
            continue
        new = name.removeprefix(tower)
        for pattern, replacement in rules:
            new = pattern.sub(replacement, new, count=1) if pattern.match(new) else new
        result[new] = tensor
    if "visual_projection.weight" in state:  # which has no bias, where timm's head has one
        result["head.bias"] = torch.zeros(result["head.weight"].shape[0])
    return _as_tokens(_pooling(_joined(result)))


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values in one projection."""
    result = dict(state)
    for name in state:
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)(query|q_proj)\.(weight|bias)", name)
        if match:
            block, _, kind = match.groups()
            parts = [_either(state, *(f"{block}{part}.{kind}" for part in names)) for names in _PARTS]
            for names in _PARTS:
                for part in names:
                    result.pop(f"{block}{part}.{kind}", None)
            result[f"{block}qkv.{kind}"] = torch.cat(parts)
    return result


def _either(state: dict[str, Tensor], *names: str) -> Tensor:
    return next((state[name] for name in names if name in state), torch.empty(0))


def _pooling(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """SigLIP's attention pooling: queries apart from keys and values."""
    result = dict(state)
    for kind in ("weight", "bias"):
        joined = result.pop(f"attn_pool.in_proj_{kind}", None)
        if joined is not None:
            third = joined.shape[0] // 3
            result[f"attn_pool.q.{kind}"], result[f"attn_pool.kv.{kind}"] = joined[:third], joined[third:]
    return result


def _as_tokens(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tokens and positions with timm's three axes; with registers, the class token's position inside the token."""
    flat = ("cls_token", "dist_token", "pos_embed")
    result = {key: tensor.reshape(1, -1, tensor.shape[-1]) if key in flat else tensor for key, tensor in state.items()}
    if "reg_token" in result and "pos_embed" in result and "cls_token" in result:
        result["cls_token"] = result["cls_token"] + result["pos_embed"][:, :1]
        result["pos_embed"] = result["pos_embed"][:, 1:]
    return result

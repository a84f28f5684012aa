"""Translate other libraries' names of tensors into timm's names.

A dialect renames the parts that it knows anywhere in a name, so prefixes stay; it returns None for names of another
kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]
_Rules = tuple[tuple[str, str], ...]

#: The `transformers` library: ViT, DeiT, DINOv2 (with and without registers), CLIP and SigLIP.
_TRANSFORMERS: _Rules = (
    (r"embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"embeddings\.mask_token$", "mask_token"),
    (r"embeddings\.distillation_token$", "dist_token"),
    (r"embeddings\.register_tokens$", "reg_token"),
    (r"embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
    (r"embeddings\.(patch_embeddings\.projection|patch_embedding)\.", "patch_embed.proj."),
    (r"pre_layrnorm\.", "norm_pre."),
    (r"encoder\.layers?\.(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+)\.(attention\.attention|self_attn)\.(query|key|value|q_proj|k_proj|v_proj)\.", r"\1.attn.\3."),
    (r"(blocks\.\d+)\.(attention\.output\.dense|self_attn\.out_proj)\.", r"\1.attn.proj."),
    (r"(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"(blocks\.\d+)\.mlp\.weights_in\.", r"\1.mlp.fc1."),
    (r"(blocks\.\d+)\.mlp\.weights_out\.", r"\1.mlp.fc2."),
    (r"(blocks\.\d+)\.(layernorm_before|layer_norm1)\.", r"\1.norm1."),
    (r"(blocks\.\d+)\.(layernorm_after|layer_norm2)\.", r"\1.norm2."),
    (r"(blocks\.\d+)\.layer_scale(\d)\.lambda1$", r"\1.ls\2.gamma"),
    (r"head\.probe$", "attn_pool.latent"),
    (r"head\.attention\.in_proj_", "attn_pool.in_proj_"),
    (r"head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"head\.layernorm\.", "attn_pool.norm."),
    (r"head\.mlp\.", "attn_pool.mlp."),
    (r"(post_layernorm|layernorm)\.", "norm."),
    (r"(classifier|cls_classifier|visual_projection)\.", "head."),
    (r"distillation_classifier\.", "head_dist."),
)
_MMPRETRAIN: _Rules = (
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"pre_norm\.", "norm_pre."),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"layers\.(\d+)\.(attn\.gamma|ffn\.gamma)(\d)\.weight$", r"blocks.\1.ls\3.gamma"),
    (r"layers\.(\d+)\.ln(\d)\.", r"blocks.\1.norm\2."),
    (r"layers\.(\d+)\.attn\.", r"blocks.\1.attn."),
    (r"ln1\.", "norm."),
    (r"ln2\.", "fc_norm."),
    (r"head\.layers\.(head|head_dist)\.", r"\1."),
)
_TORCHVISION: _Rules = (
    (r"class_token$", "cls_token"),
    (r"conv_proj\.", "patch_embed.proj."),
    (r"encoder\.pos_embedding$", "pos_embed"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+)\.ln_(\d)\.", r"\1.norm\2."),
    (r"(blocks\.\d+)\.self_attention\.in_proj_", r"\1.attn.qkv."),
    (r"(blocks\.\d+)\.self_attention\.out_proj\.", r"\1.attn.proj."),
    (r"(blocks\.\d+)\.mlp\.(linear_1|0)\.", r"\1.mlp.fc1."),
    (r"(blocks\.\d+)\.mlp\.(linear_2|3)\.", r"\1.mlp.fc2."),
    (r"encoder\.ln\.", "norm."),
    (r"heads\.(head|\d+)\.", "head."),
)
#: Meta's own training code of DINOv2, which puts blocks into chunks.
_CHUNKS: _Rules = ((r"blocks\.\d+\.(\d+)\.", r"blocks.\1."),)
_PARTS = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))


def without_wrappers(state: State) -> State:
    """Remove the parts of names that wrappers add: `module.`, `_orig_mod.`, `_checkpoint_wrapped_module.` and such.

    Wrappers keep the wrapped module in a private attribute or in `module`; timm's models have neither.
    """
    clean = {}
    for name, tensor in state.items():
        *words, last = name.split(".")
        clean[".".join([*(word for word in words if word != "module" and not word.startswith("_")), last])] = tensor
    return clean if len(clean) == len(state) else state


def _of_transformers(state: State) -> State | None:
    if not _any(r"embeddings\.patch_embedding", state):
        return None
    known = {name: tensor for name, tensor in state.items() if not re.search(r"(^|\.)pooler\.", name)}
    return _as_tokens(_pooling(_joined(_renamed(known, _TRANSFORMERS))))


def _told_by(sign: str, rules: _Rules) -> Callable[[State], State | None]:
    """A dialect that is recognised by certain names and translated by rules."""
    return lambda state: _renamed(state, rules) if _any(sign, state) else None


def _of_unused_distillation(state: State) -> State | None:
    """A distilled model of which only the class token's head is used, as DeiTForImageClassification of `transformers`
    does: its second token is a register."""
    known = _of_transformers(state) or state
    if not any(name.rpartition(".")[2] == "dist_token" for name in known):
        return None
    return {re.sub(r"(^|\.)dist_token$", r"\1reg_token", name): tensor for name, tensor in known.items()}


DIALECTS: tuple[Callable[[State], State | None], ...] = (
    lambda state: state,
    _of_transformers,
    _told_by(r"layers\.\d+\.ffn\.layers\.", _MMPRETRAIN),
    _told_by(r"encoder_layer_\d+\.", _TORCHVISION),
    _told_by(r"blocks\.\d+\.\d+\.", _CHUNKS),
    _of_unused_distillation,
)


def _any(pattern: str, state: State) -> bool:
    compiled = re.compile(rf"(?:^|\.){pattern}")
    return any(compiled.search(name) for name in state)


def _renamed(state: State, rules: _Rules) -> State:
    """Apply each rule once to each name, at the beginning of a word."""
    compiled = [(re.compile(rf"(?:^|(?<=\.)){pattern}"), replacement) for pattern, replacement in rules]
    result = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in compiled:
            new = pattern.sub(replacement, new, count=1)
        result[new] = tensor
    return result


def _joined(state: State) -> State:
    """Join queries, keys and values into one projection."""
    result = dict(state)
    for name in state:
        if match := re.fullmatch(r"(.*\.attn\.)(query|q_proj)\.(weight|bias)", name):
            block, _, kind = match.groups()
            named = [[f"{block}{one}.{kind}" for one in part if f"{block}{one}.{kind}" in state] for part in _PARTS]
            if all(named):
                result[f"{block}qkv.{kind}"] = torch.cat([result.pop(found[0]) for found in named])
    return result


def _pooling(state: State) -> State:
    """SigLIP's attention pooling, whose queries are separate from keys and values."""
    result = dict(state)
    for name in state:
        if match := re.fullmatch(r"(.*attn_pool\.)in_proj_(weight|bias)", name):
            pool, kind = match.groups()
            joined = result.pop(name)
            third = joined.shape[0] // 3
            result[f"{pool}q.{kind}"], result[f"{pool}kv.{kind}"] = joined[:third], joined[third:]
    return result


def _as_tokens(state: State) -> State:
    """Tokens and positions with timm's three axes; with registers, the class token's position inside the token."""
    flat = ("cls_token", "dist_token", "pos_embed")
    result = {
        name: tensor.reshape(1, -1, tensor.shape[-1]) if name.rpartition(".")[2] in flat else tensor
        for name, tensor in state.items()
    }
    for place in [name.removesuffix("reg_token") for name in state if name.rpartition(".")[2] == "reg_token"]:
        token, places = f"{place}cls_token", f"{place}pos_embed"
        if token in result and places in result:
            result[token] = result[token] + result[places][:, :1]
            result[places] = result[places][:, 1:]
    return result

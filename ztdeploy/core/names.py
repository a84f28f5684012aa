"""Names of tensors and nodes: the only place that makes them and takes them apart.

A node is named after the module that it comes from: `blocks.2/attn/qkv/MatMul_0`, `blocks.2/prune/wpr/Mul_3`.
"""

from __future__ import annotations

import re

#: Input and output of a whole model's graph.
IMAGE, LOGITS = "image", "logits"
#: Input of a graph for a service, as in the library transformers, and its output by what a model gives.
PIXEL_VALUES, IMAGE_EMBEDS = "pixel_values", "image_embeds"
SERVED = {"logits": LOGITS, "embedding": "pooler_output", "features": "last_hidden_state"}
#: Input and output of a graph of a few blocks alone, fp32 `[batch, tokens, D]`. Graphs that are cut hand over `TOKENS`.
TOKENS, TOKENS_OUT = "tokens", "tokens_out"
#: Output of a cascade's stage, fp32 `[batch]`: how sure it is of its output.
CONFIDENCE = "confidence"
#: The scope of a pruning layer within its block's; its module is a child of the block under this name.
PRUNE = "prune"
#: Outputs of a pruning layer: which tokens stay; of a merging layer, the slots of the tokens that do not, ascending.
KEPT, INTO = "kept", "into"
#: Note of a pruning layer of a model of vectors, fp32 `[batch]`: how far tokens that go are from those that stay.
DISTANCE = "distance"
#: Golden data of a pruning layer: the smallest gap between the scores at its cuts.
GAP = "gap"
#: The scope of blocks, and the scopes of attention within a block's: timm's, and those of transformers.
BLOCKS, ATTENTIONS = "blocks", ("attn", "attention", "self_attn")
_BLOCK = re.compile(rf"{BLOCKS}\.(0|[1-9][0-9]{{0,5}})(?:/|$)")


def block_name(block: int) -> str:
    """The scope of a block, counted from 0."""
    return f"{BLOCKS}.{block}"


def block_of(name: str | None) -> int | None:
    """The block, from 0, that a node or an output belongs to: 2 for `blocks.2/attn/MatMul_0`; None: to no block."""
    found = _BLOCK.match(name or "")
    return int(found[1]) if found else None


def pruning_output(block: int, what: str) -> str:
    """An output of the pruning layer at a block: `KEPT`, `INTO`, or what a graph with notes tells of the layer."""
    return f"{pruning_scope(block)}/{what}"


def pruning_scope(block: int) -> str:
    """The scope of the pruning layer at a block."""
    return f"{block_name(block)}/{PRUNE}"


def in_pruning_layer(name: str | None) -> bool:
    """Whether a node or an output belongs to a pruning layer or to one of its parts."""
    return PRUNE in (name or "").split("/")[1:-1]


def of_pruning_layer_itself(name: str | None) -> bool:
    """Whether a node or an output belongs to a pruning layer, and to none of its parts."""
    return (name or "").split("/")[1:-1] == [PRUNE]


def is_pruning_module(scope: str, *modules: str) -> bool:
    """Whether a scope is that of one of these modules in a pruning layer."""
    return scope.endswith(tuple(f"/{PRUNE}/{module}" for module in modules))


def golden_array(what: str, block: int) -> str:
    """The name of a pruning layer's golden data (`KEPT`, `INTO` or `GAP`) in a bundle's `.npz` file."""
    return f"{what}.{block}"

"""Names of a bundle's graphs: of inputs and outputs, and of the nodes of blocks and pruning layers."""

from __future__ import annotations

#: What a whole model takes and gives.
IMAGE, LOGITS = "image", "logits"
#: What a few blocks alone take and give, fp32 `[batch, tokens, D]`.
TOKENS, TOKENS_OUT = "tokens", "tokens_out"
#: The scope of a pruning layer within its block's; its module is a child of the block under this name.
PRUNE = "prune"


def pruning_output(block: int, what: str) -> str:
    """An output of the pruning layer behind a block.

    Args:
        block: counted from 0.
        what: "kept", which tokens stay; "into", of a merging layer, the slots of the tokens that do not, ascending; or
            what a graph with notes tells of the layer.
    """
    return f"blocks.{block}/{PRUNE}/{what}"


def block_of(name: str | None) -> int | None:
    """The block, from 0, that a node or an output belongs to: 2 for `blocks.2/attn/MatMul_0`; None: to no block."""
    number = (name or "").partition("/")[0].removeprefix("blocks.")
    return int(number) if (name or "").startswith("blocks.") and number.isdigit() else None


def in_pruning_layer(name: str | None) -> bool:
    """Whether a node or an output belongs to a pruning layer or to one of its parts."""
    return PRUNE in (name or "").split("/")[1:-1]

"""Names of the inputs and outputs of a bundle's graphs."""

from __future__ import annotations

#: What a whole model takes and gives.
IMAGE, LOGITS = "image", "logits"
#: What a few blocks alone take and give, fp32 `[batch, tokens, D]`.
TOKENS, TOKENS_OUT = "tokens", "tokens_out"


def pruning_output(block: int, what: str) -> str:
    """An output of the pruning layer behind a block.

    Args:
        block: counted from 0.
        what: "kept", which tokens stay; "into", of a merging layer, the slots of the tokens that do not, ascending; or
            what a graph with notes tells of the layer.
    """
    return f"blocks.{block}/prune/{what}"

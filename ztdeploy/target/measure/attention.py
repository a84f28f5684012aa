"""How the runtime computes each block's attention, from the nodes that really ran. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ztdeploy.target.measure.operators import FUSED_ATTENTION, PlacedNode
from ztdeploy.target.measure.sweep_report import BlockAttention

EXPOSED = "a pruning layer reads its attention matrix"
PLAIN = "its graph has plain operators, and the runtime fused none of them"
UNLIKE = "it has plain operators, though the same engine computes attention in one operator elsewhere"
NONE = "no operator in it was recognised as attention"


def attention_of(nodes: Sequence[PlacedNode]) -> tuple[BlockAttention, ...]:
    """One record per block that ran."""
    blocks = sorted({node.block for node in nodes if node.block is not None})
    own = {block: [node for node in nodes if node.block == block] for block in blocks}
    operators = {block: tuple(one.run.operator for one in own[block] if one.kind == "attention") for block in blocks}
    fused = {block: not FUSED_ATTENTION.isdisjoint(names) for block, names in operators.items()}
    return tuple(
        BlockAttention(
            block=block,
            fused=fused[block],
            operators=operators[block],
            reason="" if fused[block] else _reason(own[block], anywhere=any(fused.values())),
        )
        for block in blocks
    )


def _reason(nodes: Sequence[PlacedNode], *, anywhere: bool) -> str:
    """Why a block's attention is not one operator; `anywhere`: another block's is."""
    matrices = {
        shape
        for node in nodes
        if node.kind == "attention" and "Softmax" in node.run.operator
        for shape in node.run.outputs
    }
    if any(node.pruning and not matrices.isdisjoint(node.run.inputs) for node in nodes):
        return EXPOSED
    if not any(node.kind == "attention" for node in nodes):
        return NONE
    return UNLIKE if anywhere else PLAIN

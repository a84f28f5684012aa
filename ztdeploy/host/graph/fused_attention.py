"""Attention in one operator of ONNX Runtime's own, `com.microsoft.Attention`, where nobody reads the attention matrix.

Whether that is faster depends on the machine and the number of tokens (docs/measuring.md), so a profile says from how
many on. The operator takes the projection of queries, keys and values along with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

DOMAIN, OPERATOR = "com.microsoft", "Attention"


@dataclass(frozen=True)
class _PlainAttention:
    """The nodes of one block's attention, from its linear projection to the joined heads."""

    tokens: ir.Value  #: what is projected, `[B, N, D]`
    weight: ir.Value  #: `[D, 3 D]`
    bias: ir.Value  #: `[3 D]`
    heads: int
    scale: float
    last: ir.Node  #: its output is `[B, N, D]` again


def fuse_attention(model: ir.Model, from_tokens: int) -> int:
    """Replace the attention of every block of at least `from_tokens` tokens whose inner values nobody else reads.

    Returns:
        How many blocks that was.
    """
    graph, fused = model.graph, 0
    for node in list(graph):
        if node.op_type == "Softmax" and (found := _plain_attention(node, from_tokens)) is not None:
            _replace(graph, found, node)
            fused += 1
    if fused:
        RemoveUnusedNodesPass()(model)
        graph.opset_imports[DOMAIN] = 1
    return fused


def _plain_attention(softmax: ir.Node, from_tokens: int) -> _PlainAttention | None:
    """The attention around a softmax, in the form that `export` writes; None for any other, or one that is tapped.

    softmax(scale q k^T) v with q, k, v = parts of transpose(reshape(x W + b)).
    """
    scores, shape = _maker(softmax.inputs[0], "MatMul"), softmax.outputs[0].shape
    if scores is None or shape is None or not isinstance(shape[-1], int) or shape[-1] < from_tokens:
        return None
    scaled, swapped = _maker(scores.inputs[0], "Mul"), _maker(scores.inputs[1], "Transpose")
    product = _only_user(softmax, "MatMul")
    if scaled is None or swapped is None or product is None or _perm(swapped) != [0, 1, 3, 2]:
        return None
    parts = [_maker(value, "Gather") for value in (scaled.inputs[0], swapped.inputs[0], product.inputs[1])]
    stacked = {part.inputs[0] for part in parts if part is not None}
    if None in parts or len(stacked) != 1 or [_number(part, 1) for part in parts] != [0, 1, 2]:
        return None
    (qkv,) = stacked
    transposed = _maker(qkv, "Transpose")
    reshaped = _maker(transposed.inputs[0], "Reshape") if transposed is not None else None
    biased = _maker(reshaped.inputs[0], "Add") if reshaped is not None else None
    linear = _maker(biased.inputs[0], "MatMul") if biased is not None else None
    joined = _only_user(product, "Transpose")
    last = _only_user(joined, "Reshape") if joined is not None else None
    factor = _number(scaled, 1)
    if transposed is None or biased is None or linear is None or joined is None or last is None or factor is None:
        return None
    if _perm(transposed) != [2, 0, 3, 1, 4] or _perm(joined) != [0, 2, 1, 3]:
        return None
    inner = (linear, biased, reshaped, transposed, *parts, scaled, swapped, scores, softmax, product, joined)
    tokens, weight, bias, result = linear.inputs[0], linear.inputs[1], biased.inputs[1], last.outputs[0].shape
    if any(_read_elsewhere(node, (*inner, last)) for node in inner if node is not None):
        return None
    if tokens is None or weight is None or bias is None or tokens.shape != result or weight.shape is None:
        return None
    if not (weight.is_initializer() and bias.is_initializer()) or result is None or weight.shape[1] != 3 * result[2]:
        return None
    heads = shape[1]
    return _PlainAttention(tokens, weight, bias, heads, factor, last) if isinstance(heads, int) else None


def _replace(graph: ir.Graph, found: _PlainAttention, softmax: ir.Node) -> None:
    scope = (softmax.name or "").rpartition("/")[0]
    attributes = [ir.AttrInt64("num_heads", found.heads), ir.AttrFloat32("scale", found.scale)]
    node = ir.Node(DOMAIN, OPERATOR, [found.tokens, found.weight, found.bias], attributes, num_outputs=1)
    node.name = f"{scope}/{OPERATOR}_0"
    before, after = found.last.outputs[0], node.outputs[0]
    after.name, after.shape, after.type = before.name, before.shape, before.type
    graph.insert_before(found.last, node)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(found.last, safe=True)


def _maker(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None


def _only_user(node: ir.Node, operator: str) -> ir.Node | None:
    users = [user for user, _ in node.outputs[0].uses()]
    return users[0] if len(users) == 1 and users[0].op_type == operator else None


def _read_elsewhere(node: ir.Node, inside: tuple[ir.Node | None, ...]) -> bool:
    """Whether somebody else, or the graph's caller, reads what a node gives."""
    return any(value.is_graph_output() or any(user not in inside for user, _ in value.uses()) for value in node.outputs)


def _perm(node: ir.Node) -> list[int]:
    attribute = node.attributes.get("perm")
    return list(attribute.as_ints()) if attribute is not None else []


def _number(node: ir.Node | None, position: int) -> float | None:
    """The single number that a constant input holds."""
    value = node.inputs[position] if node is not None else None
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return float(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None

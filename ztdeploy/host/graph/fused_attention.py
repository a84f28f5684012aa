"""Replace attention by ONNX Runtime's operator `com.microsoft.Attention`, where nobody reads the attention matrix.

Whether that is faster depends on the machine and the number of tokens (docs/explanation/measuring.md), so the
profile sets the smallest number of tokens. The operator includes the projection to queries, keys and values. It attends
from all tokens, so a last block of which few are read (`live_rows`) stays as it is.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter.pattern import Pattern

from ztdeploy.host.graph import GraphSpec
from ztdeploy.host.graph.rewriting import numbers, shape_of

DOMAIN, OPERATOR = "com.microsoft", "Attention"


def _attention(op: Any, tokens: Any, weight: Any, bias: Any, split: Any, scale: Any, join: Any) -> Any:
    """softmax(scale q k^T) v, where q, k, v are parts of transpose(reshape(x W + b)): the form that `export` writes."""
    stacked = op.Transpose(op.Reshape(op.Add(op.MatMul(tokens, weight), bias), split), perm=[2, 0, 3, 1, 4])
    query, key, value = (op.Gather(stacked, part, axis=0) for part in range(3))
    scores = op.MatMul(op.Mul(query, scale), op.Transpose(key, perm=[0, 1, 3, 2]))
    matrix = op.Softmax(scores, _outputs=["matrix"])
    return op.Reshape(op.Transpose(op.MatMul(matrix, value), perm=[0, 2, 1, 3]), join)


_PATTERN = Pattern(_attention)  # it matches only where nobody else reads what is inside


def fuse_attention(model: ir.Model, spec: GraphSpec) -> None:
    """Replace the attention of every block of at least `spec.fused_attention_from` tokens by one operator.

    Requires static shapes. Attention stays as it is where another node, or the graph's caller, reads a value inside.
    """
    graph = model.graph
    for last in [node for node in graph if node.op_type == "Reshape"]:
        match = _PATTERN.match(model, graph, last)
        if match and _fits(match.bindings, last.outputs[0], spec.fused_attention_from or 0):
            _replace(graph, last, match.bindings)
            graph.opset_imports[DOMAIN] = 1
    RemoveUnusedNodesPass()(model)


def _fits(found: Any, result: ir.Value, from_tokens: int) -> bool:
    """Whether there are enough tokens, and the projection is one matrix `[D, 3 D]` of tokens `[B, N, D]`."""
    _, heads, _, tokens = shape_of(found["matrix"])
    width = shape_of(result)[-1]
    if not all(found[name].is_initializer() for name in ("weight", "bias", "scale")):
        return False
    if not (isinstance(heads, int) and isinstance(tokens, int) and isinstance(width, int)) or tokens < from_tokens:
        return False
    projects = found["tokens"].shape == result.shape and shape_of(found["weight"])[1] == 3 * width
    return projects and numbers(found["scale"]).size == 1


def _replace(graph: ir.Graph, last: ir.Node, found: Any) -> None:
    softmax = found["matrix"].producer()
    heads: Any = shape_of(found["matrix"])[1]
    scale = float(numbers(found["scale"]).item())
    node = ir.Node(
        DOMAIN,
        OPERATOR,
        [found["tokens"], found["weight"], found["bias"]],
        [ir.AttrInt64("num_heads", heads), ir.AttrFloat32("scale", scale)],
        num_outputs=1,
        name=f"{(softmax.name or '').rpartition('/')[0]}/{OPERATOR}_0",
    )
    before, after = last.outputs[0], node.outputs[0]
    after.name, after.shape, after.type = before.name, before.shape, before.type
    graph.insert_before(last, node)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(last, safe=True)

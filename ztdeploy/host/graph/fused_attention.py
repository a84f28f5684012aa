"""Replace attention by ONNX Runtime's operator `com.microsoft.MultiHeadAttention`, where nobody reads its matrix.

Whether that is faster depends on the machine and the number of tokens (docs/explanation/measuring.md), so the
profile sets the smallest number of tokens. The operator takes queries, keys and values as three projections give them.
One projection for all three would have to be cut apart behind its product, which takes longer than its product saves:
its weights are cut instead, so that models of timm and of transformers become the same graph.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter.pattern import Pattern

from ztdeploy.host.graph import GraphSpec
from ztdeploy.host.graph.rewriting import Replacement, constant, numbers, shape_of, sole_maker

DOMAIN, OPERATOR = "com.microsoft", "MultiHeadAttention"
_HEADS, _HEADS_TURNED, _STACKED = [0, 2, 1, 3], [0, 2, 3, 1], [2, 0, 3, 1, 4]


def separate_projections(model: ir.Model, _spec: GraphSpec) -> None:
    """Give queries, keys and values a product each, where one product with `[D, 3 D]` makes all three.

    Requires static shapes, and comes ahead of rounding. Ensures that values stay what they are, bit for bit. The new
    weights are parts of the old one's memory.
    """
    for stacked in [node for node in model.graph if node.op_type == "Transpose"]:
        projection = _joined_projection(stacked)
        if projection is not None:
            for part in [node for node, _ in stacked.outputs[0].uses()]:
                _separate(part, *projection)
    RemoveUnusedNodesPass()(model)


def _joined_projection(stacked: ir.Node) -> tuple[ir.Node, ir.Value | None] | None:
    """The product and the bias, where a node gives `transpose(reshape(x W + b))`, read only in its three parts."""
    readers = [node for node, _ in stacked.outputs[0].uses()]
    if list(stacked.attributes["perm"].as_ints()) != _STACKED or not all(map(_picks_a_part, readers)):
        return None
    split, bias = sole_maker(stacked, "Reshape"), None
    node = split and (sole_maker(split, "Add") or sole_maker(split, "MatMul"))
    if node is not None and node.op_type == "Add":
        bias, node = node.inputs[1], sole_maker(node, "MatMul")
    if split is None or node is None or shape_of(split.outputs[0])[2] != 3:
        return None
    constants = [node.inputs[1], *([] if bias is None else [bias])]
    return (node, bias) if all(value is not None and value.is_initializer() for value in constants) else None


def _picks_a_part(node: ir.Node) -> bool:
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return False
    index = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    return index is not None and tuple(index.shape) == () and int(index.numpy()) in range(3)


def _separate(part: ir.Node, product: ir.Node, bias: ir.Value | None) -> None:
    """Replace the node that picks one of the three, `[B, H, N, d]`."""
    result, index = part.outputs[0], int(numbers(part.inputs[1]))
    sizes: Any = shape_of(result)
    batch, heads, tokens, size = sizes
    new = Replacement(part, f"{product.name}/{('query', 'key', 'value')[index]}")
    shape, rows = (batch, tokens, heads * size), slice(index * heads * size, (index + 1) * heads * size)

    def cut(whole: ir.Value | None) -> ir.Value:
        assert whole is not None
        assert whole.dtype is not None
        return constant(new.graph, f"{whole.name}.{index}", numbers(whole)[..., rows], whole.dtype)

    value = new.add("MatMul", "product", product.inputs[0], cut(product.inputs[1]), like=result, shape=shape)
    if bias is not None:
        value = new.add("Add", "sum", value, cut(bias), like=result, shape=shape)
    target = new.constant("shape", [0, 0, heads, size], ir.DataType.INT64)
    split = new.add("Reshape", "split", value, target, like=result, shape=(batch, tokens, heads, size))
    new.add("Transpose", "heads", split, like=result, perm=_HEADS)
    for reader, _ in list(result.uses()):
        if reader.op_type == "Transpose" and list(reader.attributes["perm"].as_ints()) == [0, 1, 3, 2]:
            reader.replace_input_with(0, split)  # once instead of twice
            reader.attributes["perm"] = ir.AttrInt64s("perm", _HEADS_TURNED)
    new.replace()


def _attention(
    op: Any, query: Any, key: Any, value: Any, query_split: Any, key_split: Any, value_split: Any, scale: Any, join: Any
) -> Any:
    """softmax(scale q k^T) v of `[B, N, D]`: the form that `export` writes."""
    scores = _scores(op, query, key, query_split, key_split, scale)
    return _weighted(op, scores, value, value_split, join)


def _biased(
    op: Any,
    query: Any,
    key: Any,
    value: Any,
    query_split: Any,
    key_split: Any,
    value_split: Any,
    scale: Any,
    join: Any,
    bias: Any,
) -> Any:
    """softmax(scale q k^T + bias) v: the same behind a merge."""
    scores = op.Add(_scores(op, query, key, query_split, key_split, scale), bias, _outputs=["biased"])
    return _weighted(op, scores, value, value_split, join)


def _scores(op: Any, query: Any, key: Any, query_split: Any, key_split: Any, scale: Any) -> Any:
    queries = op.Mul(op.Transpose(op.Reshape(query, query_split), perm=_HEADS), scale)
    keys = op.Transpose(op.Reshape(key, key_split), perm=_HEADS_TURNED)
    return op.MatMul(queries, keys, _outputs=["scores"])


def _weighted(op: Any, scores: Any, value: Any, value_split: Any, join: Any) -> Any:
    values = op.Transpose(op.Reshape(value, value_split), perm=_HEADS)
    matrix = op.Softmax(scores, _outputs=["matrix"])
    return op.Reshape(op.Transpose(op.MatMul(matrix, values), perm=_HEADS), join)


_PATTERNS = (Pattern(_attention), Pattern(_biased))


def fuse_attention(model: ir.Model, spec: GraphSpec) -> None:
    """Replace the attention of every block of at least `spec.fused_attention_from` tokens by one operator.

    Requires static shapes. Attention stays as it is where another node, or the graph's caller, reads its matrix;
    queries, keys and values may be read by others.

    Behind a merge, a bias weighs keys by their size. Given as a bias, it would cost the operator its fast form: so it
    is the last entry of each key, and the last entry of each query makes it count once.
    """
    graph = model.graph
    for last in [node for node in graph if node.op_type == "Reshape"]:
        for pattern in _PATTERNS:
            match = pattern.match(model, graph, last, check_nodes_are_removable=False)
            if match and _fits(match.bindings, last.outputs[0], spec.fused_attention_from or 0):
                _replace(last, match.bindings)
                graph.opset_imports[DOMAIN] = 1
                break
    RemoveUnusedNodesPass()(model)


def _fits(found: Any, result: ir.Value, from_tokens: int) -> bool:
    """Whether there are enough tokens, queries, keys and values are `[B, N, D]`, and a bias is `[B, 1, 1, N]`."""
    inside = [found[name] for name in ("scores", "biased", "matrix") if name in found]
    if any(len(value.uses()) != 1 or value.is_graph_output() for value in inside):
        return False
    batch, heads, rows, tokens = shape_of(found["matrix"])
    if not isinstance(heads, int) or not isinstance(tokens, int) or tokens < from_tokens:
        return False
    if "bias" in found and shape_of(found["bias"]) != (batch, 1, 1, tokens):
        return False
    expected = {"query": rows, "key": tokens, "value": tokens}
    whole = all(shape_of(found[name])[1:] == (count, shape_of(result)[-1]) for name, count in expected.items())
    return whole and found["scale"].is_initializer() and numbers(found["scale"]).size == 1


def _replace(last: ir.Node, found: Any) -> None:
    softmax, scale = found["matrix"].producer(), float(numbers(found["scale"]).item())
    new = Replacement(last, (softmax.name or "").rpartition("/")[0])
    heads: Any = shape_of(found["matrix"])[1]
    query, key = found["query"], found["key"]
    if "bias" in found:
        query, key = _with_bias(new, found, heads, scale)
    inputs, attributes = (query, key, found["value"]), {"num_heads": heads, "scale": scale}
    new.add(OPERATOR, f"{OPERATOR}_0", *inputs, domain=DOMAIN, **attributes)
    new.replace()


def _with_bias(new: Replacement, found: Any, heads: int, scale: float) -> tuple[ir.Value, ir.Value]:
    """Queries and keys of one entry more for each head, `[B, N, D + heads]`, whose products hold the bias too."""
    bias, integers = found["bias"], ir.DataType.INT64
    apart, joined = new.constant("apart", [0, 0, heads, -1], integers), new.constant("joined", [0, 0, -1], integers)

    def longer(name: str, operator: str, *added: ir.Value, **attributes: Any) -> ir.Value:
        batch, tokens, width = shape_of(found[name])
        size = width // heads
        split = new.add("Reshape", f"{name}_heads", found[name], apart, like=bias, shape=(batch, tokens, heads, size))
        shape = (batch, tokens, heads, size + 1)
        split = new.add(operator, f"{name}_longer", split, *added, like=bias, shape=shape, **attributes)
        return new.add("Reshape", f"{name}_joined", split, joined, like=bias, shape=(batch, tokens, width + heads))

    at_end, one = new.constant("at_end", [0] * 7 + [1], integers), new.constant("one", 1 / scale, bias.dtype)
    query = longer("query", "Pad", at_end, one)
    batch, tokens, _ = shape_of(found["key"])
    sizes = new.add("Transpose", "sizes", bias, like=bias, shape=(batch, tokens, 1, 1), perm=[0, 3, 1, 2])
    every = new.constant("every", [1, 1, heads, 1], integers)
    sizes = new.add("Expand", "sizes_heads", sizes, every, like=bias, shape=(batch, tokens, heads, 1))
    return query, longer("key", "Concat", sizes, axis=-1)

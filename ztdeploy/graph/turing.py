"""fp32 products of pruning layers -> what Turing (SM 7.5) can compile, for which TensorRT-RTX has no fp32 GEMM.

A row vector times a matrix becomes a weighted sum over rows, still in fp32. The one real matrix product, that of
unit-length features, is done in fp16.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def without_fp32_products(model: ir.Model) -> None:
    """Ensures that no MatMul of a pruning layer works on fp32. The model has been through `to_precision`."""
    for node in list(model.graph):
        if node.op_type == "MatMul" and node.outputs[0].dtype == ir.DataType.FLOAT and "/prune/" in (node.name or ""):
            shape = node.inputs[0].shape if node.inputs[0] is not None else None
            assert shape is not None, "static shapes come first"
            (_as_weighted_sum if shape[-2] == 1 else _in_half_precision)(model.graph, node)


def _as_weighted_sum(graph: ir.Graph, node: ir.Node) -> None:
    """`s @ A` with `s [..., 1, N]` and `A [..., N, M]`: `sum over rows of (s^T * A)`."""
    vector, matrix = node.inputs
    assert vector is not None
    assert vector.shape is not None
    rank = vector.shape.rank()
    column = _node(
        "Transpose", [vector], node, "column", [ir.AttrInt64s("perm", [*range(rank - 2), rank - 1, rank - 2])]
    )
    weighted = _node("Mul", [column.outputs[0], matrix], node, "weighted")
    axes = _constant(graph, f"{node.name}/axes", [-2])
    total = _node("ReduceSum", [weighted.outputs[0], axes], node, "sum", [ir.AttrInt64("keepdims", 1)])
    _swap(graph, node, [column, weighted, total])


def _in_half_precision(graph: ir.Graph, node: ir.Node) -> None:
    half, single = int(ir.DataType.FLOAT16), int(ir.DataType.FLOAT)
    lows = [
        _node("Cast", [value], node, f"input{position}/fp16", [ir.AttrInt64("to", half)])
        for position, value in enumerate(node.inputs)
    ]
    product = _node("MatMul", [low.outputs[0] for low in lows], node, "fp16")
    result = _node("Cast", [product.outputs[0]], node, "fp32", [ir.AttrInt64("to", single)])
    _swap(graph, node, [*lows, product, result])


def _node(
    operator: str, inputs: Sequence[ir.Value | None], old: ir.Node, part: str, attributes: Sequence[ir.Attr] = ()
) -> ir.Node:
    node = ir.Node("", operator, inputs, attributes, num_outputs=1, name=f"{old.name}/{part}")
    node.outputs[0].name = node.name
    return node


def _constant(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    tensor = ir.tensor(values, dtype=ir.DataType.INT64, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape([len(values)]), type=ir.TensorType(ir.DataType.INT64), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _swap(graph: ir.Graph, old: ir.Node, new: list[ir.Node]) -> None:
    """Put the new nodes in the old one's place; the last gives the result."""
    before, after = old.outputs[0], new[-1].outputs[0]
    after.name, after.shape, after.type = before.name, before.shape, before.type
    graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(old, safe=True)

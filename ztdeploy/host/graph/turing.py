"""fp32 products of pruning layers and text heads -> what Turing (SM 7.5) can compile, which has no fp32 GEMM there.

A row vector times a matrix becomes a weighted sum over rows, still in fp32. The one real matrix product, that of
unit-length features, is done in fp16.
"""

from __future__ import annotations

import onnx_ir as ir

from ztdeploy.host.graph.precision import keeps_fp32
from ztdeploy.host.graph.rewriting import cast_to, constant, new_node, replace_node


def without_fp32_products(model: ir.Model) -> None:
    """Ensures that no MatMul of a pruning layer or a text head works on fp32. The model has been through
    `to_precision`.
    """
    for node in list(model.graph):
        if node.op_type == "MatMul" and node.outputs[0].dtype == ir.DataType.FLOAT and keeps_fp32(node):
            shape = node.inputs[0].shape if node.inputs[0] is not None else None
            assert shape is not None, "static shapes come first"
            (_as_weighted_sum if shape[-2] == 1 else _in_half_precision)(model.graph, node)


def _as_weighted_sum(graph: ir.Graph, node: ir.Node) -> None:
    """`s @ A` with `s [..., 1, N]` and `A [..., N, M]`: `sum over rows of (s^T * A)`."""
    vector, matrix = node.inputs
    assert vector is not None
    assert vector.shape is not None
    rank = vector.shape.rank()
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    column = new_node("Transpose", [vector], node, "column", [ir.AttrInt64s("perm", swapped)])
    weighted = new_node("Mul", [column.outputs[0], matrix], node, "weighted")
    axes = constant(graph, f"{node.name}/axes", [-2], ir.DataType.INT64)
    total = new_node("ReduceSum", [weighted.outputs[0], axes], node, "sum", [ir.AttrInt64("keepdims", 1)])
    replace_node(graph, node, [column, weighted, total])


def _in_half_precision(graph: ir.Graph, node: ir.Node) -> None:
    to_half = cast_to(ir.DataType.FLOAT16)
    lows = [
        new_node("Cast", [value], node, f"input{position}/fp16", to_half) for position, value in enumerate(node.inputs)
    ]
    product = new_node("MatMul", [low.outputs[0] for low in lows], node, "fp16")
    result = new_node("Cast", [product.outputs[0]], node, "fp32", cast_to(ir.DataType.FLOAT))
    replace_node(graph, node, [*lows, product, result])

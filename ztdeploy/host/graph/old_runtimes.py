"""Replace operators that old GPUs and old parsers lack."""

from __future__ import annotations

import onnx_ir as ir

from ztdeploy.core.errors import ModelError
from ztdeploy.host.graph import GraphSpec
from ztdeploy.host.graph.precision import keeps_fp32
from ztdeploy.host.graph.rewriting import Replacement, constant, shape_of

_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64


def without_fp32_products(model: ir.Model, _spec: GraphSpec) -> None:
    """Rewrite fp32 matrix products for Turing (SM 7.5), where TensorRT for RTX has no fp32 GEMM.

    Requires types as `to_precision` leaves them. A row vector times a matrix becomes a weighted sum over rows, still in
    fp32; the only real matrix product, that of unit-length features, is computed in fp16. Ensures that no MatMul of a
    pruning layer or a text head works on fp32.
    """
    for node in list(model.graph):
        if node.op_type == "MatMul" and node.outputs[0].dtype == ir.DataType.FLOAT and keeps_fp32(node):
            (_as_weighted_sum if shape_of(node.inputs[0])[-2] == 1 else _in_half_precision)(Replacement(node))


def _as_weighted_sum(new: Replacement) -> None:
    """`s @ A` with `s [..., 1, N]` and `A [..., N, M]`: the sum over rows of `s^T * A`."""
    vector, matrix = new.old.inputs
    rank = shape_of(vector).rank()
    column = new.add("Transpose", "column", vector, perm=[*range(rank - 2), rank - 1, rank - 2])
    weighted = new.add("Mul", "weighted", column, matrix)
    new.add("ReduceSum", "sum", weighted, new.constant("axes", [-2], _INT64), keepdims=1)
    new.replace()


def _in_half_precision(new: Replacement) -> None:
    half = ir.DataType.FLOAT16
    lows = [new.cast(f"input{position}/fp16", value, half) for position, value in enumerate(new.old.inputs)]
    new.cast("fp32", new.add("MatMul", "fp16", *lows), ir.DataType.FLOAT)
    new.replace()


def for_old_parsers(model: ir.Model, _spec: GraphSpec) -> None:
    """Replace operators that the parser of TensorRT 10.3, the newest on JetPack 6, may not know.

    Requires types as `to_precision` leaves them. Ensures that no Gelu is left (it is new in opset 20; TensorRT fuses
    the pattern with Erf again), and that no TopK sorts int64.

    Raises:
        ModelError: a Gelu is approximated by tanh.
    """
    for node in list(model.graph):
        if node.op_type == "Gelu":
            _with_erf(Replacement(node))
        elif node.op_type == "TopK" and node.outputs[0].dtype == _INT64:
            _sort_int32(model.graph, node)


def _with_erf(new: Replacement) -> None:
    """`x * (erf(x / sqrt 2) + 1) * 0.5`, the form that PyTorch exports below opset 20."""
    approximate = new.old.attributes.get("approximate")
    if approximate is not None and approximate.as_string() != "none":
        raise ModelError(
            f"node '{new.old.name}' is a Gelu approximated by {approximate.as_string()}",
            "the exact one",
            "build without a profile of standard TensorRT",
        )
    x = new.old.inputs[0]
    assert x is not None
    dtype = x.dtype
    assert dtype is not None
    root, one, half = (
        constant(new.graph, f"gelu/{name}/{dtype.name.lower()}", value, dtype)
        for name, value in (("sqrt_2", 2**0.5), ("one", 1.0), ("half", 0.5))
    )
    shifted = new.add("Add", "shifted", new.add("Erf", "erf", new.add("Div", "scaled", x, root)), one)
    new.add("Mul", "halved", new.add("Mul", "product", x, shifted), half)
    new.replace()


def _sort_int32(graph: ir.Graph, node: ir.Node) -> None:
    """Sort in int32, with a cast before and after."""
    ahead, behind = Replacement(node), Replacement(node)
    node.replace_input_with(0, ahead.cast("int32", node.inputs[0], _INT32))
    ahead.insert_before()
    values, name = node.outputs[0], node.outputs[0].name
    wide = behind.cast("int64", None, _INT64)
    wide.shape, wide.type = values.shape, values.type
    ir.convenience.replace_all_uses_with(values, wide, replace_graph_outputs=True)
    behind.nodes[0].replace_input_with(0, values)
    values.type = ir.TensorType(_INT32)
    values.name, wide.name = f"{node.name}/sorted", name  # it may be an output of the graph
    graph.insert_after(node, behind.nodes)

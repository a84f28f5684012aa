"""Operators that TensorRT 10.3's parser may not know, in the form that every later one knows as well.

JetPack 6 has no newer one. Gelu (new in opset 20) is written with Erf, a pattern that TensorRT fuses again; TopK sorts
int32 instead of int64.
"""

from __future__ import annotations

import onnx_ir as ir

from ztdeploy.core.errors import ModelError
from ztdeploy.host.graph.rewriting import cast_to, constant, new_node, replace_node


def for_old_parsers(model: ir.Model) -> None:
    """Ensures that no Gelu is left, and that no TopK works on int64. Types are as `to_precision` left them."""
    for node in list(model.graph):
        if node.op_type == "Gelu":
            _with_erf(model.graph, node)
        elif node.op_type == "TopK" and node.outputs[0].dtype == ir.DataType.INT64:
            _narrow(model.graph, node)


def _with_erf(graph: ir.Graph, node: ir.Node) -> None:
    """`x * (erf(x / sqrt 2) + 1) * 0.5`, the form that PyTorch exports below opset 20."""
    approximate = node.attributes.get("approximate")
    if approximate is not None and approximate.as_string() != "none":
        raise ModelError(
            f"node '{node.name}' is a Gelu approximated by {approximate.as_string()}",
            "the exact one",
            "build without a profile of standard TensorRT",
        )
    x = node.inputs[0]
    assert x is not None
    assert x.dtype is not None
    root, one, half = (
        constant(graph, f"gelu/{name}/{x.dtype.name.lower()}", value, x.dtype)
        for name, value in (("sqrt_2", 2**0.5), ("one", 1.0), ("half", 0.5))
    )
    scaled = new_node("Div", [x, root], node, "scaled")
    erf = new_node("Erf", [scaled.outputs[0]], node, "erf")
    shifted = new_node("Add", [erf.outputs[0], one], node, "shifted")
    product = new_node("Mul", [x, shifted.outputs[0]], node, "product")
    halved = new_node("Mul", [product.outputs[0], half], node, "halved")
    replace_node(graph, node, [scaled, erf, shifted, product, halved])


def _narrow(graph: ir.Graph, node: ir.Node) -> None:
    """Cast what is sorted to int32, and the sorted values back."""
    narrow = new_node("Cast", [node.inputs[0]], node, "int32", cast_to(ir.DataType.INT32))
    node.replace_input_with(0, narrow.outputs[0])
    graph.insert_before(node, narrow)
    values, name = node.outputs[0], node.outputs[0].name
    wide = new_node("Cast", [None], node, "int64", cast_to(ir.DataType.INT64))
    wide.outputs[0].shape, wide.outputs[0].type = values.shape, values.type
    ir.convenience.replace_all_uses_with(values, wide.outputs[0], replace_graph_outputs=True)
    wide.replace_input_with(0, values)
    values.type = ir.TensorType(ir.DataType.INT32)
    values.name, wide.outputs[0].name = wide.outputs[0].name, name  # it may be an output of the graph
    graph.insert_after(node, wide)

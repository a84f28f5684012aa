"""What an int8 graph computes, whatever a runtime's integer kernels do: the same graph with its products spelt out.

Runtimes have integer kernels of their own for each kind of CPU, and fuse what stands around them. Some add pairs of
products in 16 bits, which not every pair fits. Here the products are taken in double precision, which holds their sums
exactly. The graph is for proofs only, and never shipped.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ztdeploy.graph.rewriting import cast_to, constant, new_node, replace_node

_DOUBLE, _INTEGER, _SINGLE = ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.FLOAT


def with_exact_products(typed: ir.Model) -> ir.Model:
    """A copy of a graph that has been through `to_int8` or `to_static_int8`, without an integer product.

    Static ranges: values are rounded to integers and scaled back in fp32, so their products sum in fp32.
    """
    model = typed.clone()
    for node in [node for node in model.graph if node.op_type == "MatMulInteger"]:
        integers, weight, zero = node.inputs[:3]
        doubles = [
            new_node("Cast", [value], node, f"double-{name}", cast_to(_DOUBLE))
            for name, value in (("x", integers), ("zero", zero), ("weight", weight))
        ]
        left, offset, right = (one.outputs[0] for one in doubles)
        centred = new_node("Sub", [left, offset], node, "centred")
        product = new_node("MatMul", [centred.outputs[0], right], node, "product")
        replace_node(
            model.graph,
            node,
            [*doubles, centred, product, new_node("Cast", product.outputs, node, "sum", cast_to(_INTEGER))],
        )
    for node in list(model.graph):
        if node.op_type == "QuantizeLinear":
            _round(model.graph, node)
        elif node.op_type == "DequantizeLinear":
            _scale(model.graph, node)
    return model


def _round(graph: ir.Graph, node: ir.Node) -> None:
    """To integers less the zero point, which are held in fp32."""
    value, scale, zero = node.inputs
    assert zero is not None
    offset, limits = int(_numbers(zero)), np.iinfo(_numbers(zero).dtype)
    ends = [
        constant(graph, f"{node.name}/{name}", end - offset, _SINGLE)
        for name, end in (("low", limits.min), ("high", limits.max))
    ]
    steps = new_node("Div", [value, scale], node, "steps")
    whole = new_node("Round", steps.outputs, node, "whole")
    clipped = new_node("Clip", [whole.outputs[0], *ends], node, "clipped")
    replace_node(graph, node, [steps, whole, clipped])
    clipped.outputs[0].type = ir.TensorType(_SINGLE)


def _scale(graph: ir.Graph, node: ir.Node) -> None:
    """A weight once and for all; an activation, from which its zero point has gone already, or a pixel."""
    value, scale = node.inputs[:2]
    assert value is not None
    if value.is_initializer():
        rows = _numbers(value).astype(np.float32) * _numbers(scale)
        single = constant(graph, f"{node.name}/rows", rows, _SINGLE)
        ir.convenience.replace_all_uses_with(node.outputs[0], single)
        graph.remove(node, safe=True)
        return
    held = new_node("Cast", [value], node, "held", cast_to(_SINGLE))
    replace_node(graph, node, [held, new_node("Mul", [held.outputs[0], scale], node, "scaled")])


def _numbers(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()

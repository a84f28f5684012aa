"""What an int8 graph computes, whatever a runtime's integer kernels do: the same graph with its products spelt out.

Runtimes have integer kernels of their own for each kind of CPU, and fuse what stands around them. Some add pairs of
products in 16 bits, which not every pair fits. Here the products are taken in double precision, which holds their sums
exactly. The graph is for proofs only, and never shipped.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ztdeploy.host.graph.integer_layers import layers_of
from ztdeploy.host.graph.rewriting import cast_to, constant, new_node, numbers, replace_node
from ztdeploy.target.backends.openvino import widest_group

_DOUBLE, _INTEGER, _SINGLE = ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.FLOAT


def with_exact_products(typed: ir.Model) -> ir.Model:
    """A copy of a graph that has been through `to_int8` or `to_static_int8`, without an integer product.

    Static ranges: values are rounded to integers and scaled back in fp32, so their products sum in fp32. Where the
    graph leaves activations to the runtime, they are rounded as it does: by row, in groups.
    """
    model = typed.clone()
    _round_rows(model.graph)
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


def _round_rows(graph: ir.Graph) -> None:
    """Groups of a token's values to whole steps of a 127th of the group's largest magnitude."""
    layers = [
        (product, len(numbers(scaling.inputs[0])))
        for product, rounding, scaling in layers_of(graph)
        if rounding is None
    ]
    if not layers:
        return
    group = widest_group([width for _, width in layers])
    whole, least = constant(graph, "rows/127", 127, _SINGLE), constant(graph, "rows/least", 1e-30, _SINGLE)
    for node, width in layers:
        if width % group:
            continue
        apart, together, axis = (
            constant(graph, f"rows/{width}/{name}", shape, ir.DataType.INT64)
            for name, shape in (("apart", [0, 0, width // group, group]), ("together", [0, 0, width]), ("axis", [3]))
        )
        groups = new_node("Reshape", [node.inputs[0], apart], node, "groups")
        sizes = new_node("Abs", groups.outputs, node, "sizes")
        largest = new_node("ReduceMax", [sizes.outputs[0], axis], node, "largest")
        some = new_node("Max", [largest.outputs[0], least], node, "some")  # a group may hold nothing but zeros
        scale = new_node("Div", [some.outputs[0], whole], node, "scale")
        steps = new_node("Div", [groups.outputs[0], scale.outputs[0]], node, "steps")
        rounded = new_node("Round", steps.outputs, node, "rounded")
        scaled = new_node("Mul", [rounded.outputs[0], scale.outputs[0]], node, "scaled")
        row = new_node("Reshape", [scaled.outputs[0], together], node, "row")
        graph.insert_before(node, [groups, sizes, largest, some, scale, steps, rounded, scaled, row])
        node.replace_input_with(0, row.outputs[0])


def _round(graph: ir.Graph, node: ir.Node) -> None:
    """To integers less the zero point, which are held in fp32."""
    value, scale, zero = node.inputs
    assert zero is not None
    offset, limits = int(numbers(zero)), np.iinfo(numbers(zero).dtype)
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
        rows = numbers(value).astype(np.float32) * numbers(scale)
        single = constant(graph, f"{node.name}/rows", rows, _SINGLE)
        ir.convenience.replace_all_uses_with(node.outputs[0], single)
        graph.remove(node, safe=True)
        return
    held = new_node("Cast", [value], node, "held", cast_to(_SINGLE))
    replace_node(graph, node, [held, new_node("Mul", [held.outputs[0], scale], node, "scaled")])

"""Linear layers in 8-bit integers with ranges from calibration images, as pairs of QuantizeLinear and DequantizeLinear.

Runtimes with integer kernels take `DequantizeLinear(QuantizeLinear(x)) DequantizeLinear(W)` together: the types are in
the graph, and an answer depends on nothing but its own image. Weights are as in `int8`: symmetric, a scale per output
channel. Activations have one scale, over all tokens and images: as uint8 with a zero point, which is finer where
values lie on one side of zero (behind a Gelu), or as int8 without one, which is all that TensorRT takes.

By "row" nothing is said of activations but that they meet such weights: the runtime rounds them, token by token.

Never quantised: residual sums, softmax, LayerNorm, the products of attention, and what a pruning layer computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from ztdeploy.core.profile import Int8Options
from ztdeploy.host.graph.int8 import LARGEST, int8_weight, linear_layers
from ztdeploy.host.graph.patch_rows import patch_product
from ztdeploy.host.graph.precision import is_ranked
from ztdeploy.host.graph.rewriting import constant, new_node, replace_node

#: By the name of a value: the smallest and the largest number that it holds.
Ranges = Mapping[str, tuple[float, float]]
_SINGLE = ir.DataType.FLOAT
_ATTENTION = {"Add", "Mul", "MatMul", "Softmax"}
_AXIS = (ir.AttrInt64("axis", 1),)


def to_static_int8(model: ir.Model, options: Int8Options, ranges: Ranges) -> ir.Model:
    """A copy of an fp32 graph whose blocks' linear layers work on 8-bit integers; inputs and outputs keep their types.

    With uint8 activations and no block left out, the patch embedding becomes such a layer as well: pixels are integers
    already, so only its weights are rounded. By row it stays as it is, for the sake of the answers.

    Args:
        model: named by `stable_names`, with static shapes. It is not changed.
        options: which blocks, how many bits, which activations.
        ranges: of what enters each linear layer; see `ranges.measure_ranges`. Not looked at by "row".
    """
    typed = model.clone()
    largest, made = LARGEST[options.weight_bits], dict[ir.Value, ir.Value]()
    for node in linear_layers(typed.graph, options.from_block):
        value = node.inputs[0]
        assert value is not None
        if value not in made and not options.static:
            made[value] = value
        elif value not in made:
            made[value] = _quantised(typed.graph, node, value, ranges[str(value.name)], options)
        _replace(typed.graph, node, made[value], largest)
    if options.from_block == 0 and options.activations == "uint8":
        found = patch_product(typed.graph)
        if found is not None:
            node, pixels = found
            one = constant(typed.graph, "pixels.scale", 1.0, _SINGLE)
            dequantised = new_node("DequantizeLinear", [pixels, one], node, "pixels")
            dequantised.outputs[0].shape, dequantised.outputs[0].type = pixels.shape, ir.TensorType(_SINGLE)
            typed.graph.insert_before(node, dequantised)
            _replace(typed.graph, node, dequantised.outputs[0], largest)
    for name in [name for name, value in typed.graph.initializers.items() if not value.uses()]:
        typed.graph.initializers.pop(name)
    return typed


def within_int8(model: ir.Model, options: Int8Options) -> Callable[[ir.Node], bool]:
    """Which nodes of an int8 graph compute in the type of `options.rest`: those of blocks that stay as they are, and
    the products and softmax of attention where no pruning layer reads it."""
    ranked = {str(node.name).split("/")[0] for node in model.graph if node.op_type == "Softmax" and is_ranked(node)}

    def within(node: ir.Node) -> bool:
        block, *scopes = str(node.name).split("/")
        number = block.removeprefix("blocks.")
        if block == number or not number.isdigit():
            return False
        if int(number) < options.from_block:
            return True
        return block not in ranked and scopes[0] == "attn" and len(scopes) == 2 and _is_of_attention(node)

    return within


def _is_of_attention(node: ir.Node) -> bool:
    """The scaling of queries, both products, what merging adds, softmax; not what merging multiplies tokens by."""
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node.op_type in _ATTENTION and (node.op_type != "Mul" or (maker is not None and maker.op_type == "Gather"))


def scale_and_zero(low: float, high: float, options: Int8Options) -> tuple[float, int]:
    """What maps a range, widened to hold zero, to 8 bits; a range of nothing but zero to a scale of 1."""
    low, high = min(low, 0.0), max(high, 0.0)
    if options.activations == "int8":
        return max(-low, high) / 127 or 1.0, 0
    scale = (high - low) / 255 or 1.0
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def _quantised(
    graph: ir.Graph, node: ir.Node, value: ir.Value, span: tuple[float, float], options: Int8Options
) -> ir.Value:
    """A value, rounded to integers and back, ahead of the first node that reads it."""
    scale, zero = scale_and_zero(*span, options)
    dtype = ir.DataType.INT8 if options.activations == "int8" else ir.DataType.UINT8
    numbers = (
        constant(graph, f"{node.name}/range.scale", scale, _SINGLE),
        constant(graph, f"{node.name}/range.zero", zero, dtype),
    )
    there = new_node("QuantizeLinear", [value, *numbers], node, "quantize")
    back = new_node("DequantizeLinear", [there.outputs[0], *numbers], node, "dequantize")
    for output, kind in ((there.outputs[0], dtype), (back.outputs[0], _SINGLE)):
        output.shape, output.type = value.shape, ir.TensorType(kind)
    graph.insert_before(node, [there, back])
    return back.outputs[0]


def _replace(graph: ir.Graph, node: ir.Node, value: ir.Value, largest: int) -> None:
    weight = node.inputs[1]
    assert weight is not None
    integers, scales = int8_weight(graph, weight, largest)
    rows = new_node("DequantizeLinear", [integers, scales], node, "weight", _AXIS)
    rows.outputs[0].shape, rows.outputs[0].type = weight.shape, ir.TensorType(_SINGLE)
    replace_node(graph, node, [rows, new_node("MatMul", [value, rows.outputs[0]], node, "int8")])

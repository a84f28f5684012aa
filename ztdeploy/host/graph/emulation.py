"""Emulate a graph of lower precision by a graph that gives the same result in ONNX Runtime on any CPU.

Runtimes have different integer kernels for each kind of CPU, and fuse operators around them; some kernels add pairs
of products in 16 bits, which can overflow. ONNX Runtime has no fp16 kernels on a CPU: it computes in fp32 and removes
casts that it considers needless, so its results are nearer to fp32 than those of a GPU. Here integer products are
computed in double precision, which is exact, and half types are rounded by explicit operators. These graphs serve
proofs and are never shipped.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ztdeploy.host.graph.integer_layers import layers_of
from ztdeploy.host.graph.precision import MOVES
from ztdeploy.host.graph.rewriting import Replacement, constant, numbers
from ztdeploy.target.backends.base import widest_group

_SINGLE, _DOUBLE, _INTEGER, _LONG = ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64
#: 24 significant bits of fp32 less those of the type.
_BITS_LOST = {ir.DataType.FLOAT16: 13, ir.DataType.BFLOAT16: 16}


def with_exact_products(typed: ir.Model, row_groups: tuple[int, ...] = ()) -> ir.Model:
    """A copy of a graph from `to_int8`, with integer products replaced by exact floating-point ones.

    Static ranges: values are rounded to integers and scaled back in fp32, so their products sum in fp32. Where the
    graph leaves activations to the runtime, they are rounded as it does: by row, in groups.

    Args:
        row_groups: see `Backend.row_groups`; without groups no rows are rounded.
    """
    model = typed.clone()
    if row_groups:
        _round_rows(model.graph, row_groups)
    for node in list(model.graph):
        if node.op_type == "MatMulInteger":
            _multiply(Replacement(node))
    for node in list(model.graph):
        if node.op_type == "QuantizeLinear":
            _quantise(Replacement(node))
        elif node.op_type == "DequantizeLinear":
            _scale(Replacement(node))
    return model


def _round_rows(graph: ir.Graph, row_groups: tuple[int, ...]) -> None:
    """Round each group of a token's values to multiples of 1/127 of the group's largest magnitude."""
    layers = [
        (product, len(numbers(scaling.inputs[0])))
        for product, rounding, scaling in layers_of(graph)
        if rounding is None
    ]
    if not layers:
        return
    group = widest_group([width for _, width in layers], row_groups)
    whole, least = constant(graph, "rows/127", 127, _SINGLE), constant(graph, "rows/least", 1e-30, _SINGLE)
    for node, width in layers:
        if width % group:
            continue
        apart, together, axis = (
            constant(graph, f"rows/{width}/{name}", shape, _LONG)
            for name, shape in (("apart", [0, 0, width // group, group]), ("together", [0, 0, width]), ("axis", [3]))
        )
        new = Replacement(node)
        groups = new.add("Reshape", "groups", node.inputs[0], apart)
        largest = new.add("ReduceMax", "largest", new.add("Abs", "sizes", groups), axis)
        some = new.add("Max", "some", largest, least)  # a group may hold nothing but zeros
        scale = new.add("Div", "scale", some, whole)
        rounded = new.add("Round", "rounded", new.add("Div", "steps", groups, scale))
        row = new.add("Reshape", "row", new.add("Mul", "scaled", rounded, scale), together)
        new.insert_before()
        node.replace_input_with(0, row)


def _multiply(new: Replacement) -> None:
    """Products of integers in double precision."""
    integers, weight, zero = new.old.inputs[:3]
    values = (("x", integers), ("zero", zero), ("weight", weight))
    left, offset, right = (new.cast(f"double-{name}", value, _DOUBLE) for name, value in values)
    product = new.add("MatMul", "product", new.add("Sub", "centred", left, offset), right)
    new.cast("sum", product, _INTEGER)
    new.replace()


def _quantise(new: Replacement) -> None:
    """Round to integers and subtract the zero point; the result is fp32."""
    value, scale, zero = new.old.inputs
    offset, limits = int(numbers(zero)), np.iinfo(numbers(zero).dtype)
    ends = [new.constant(name, end - offset, _SINGLE) for name, end in (("low", limits.min), ("high", limits.max))]
    whole = new.add("Round", "whole", new.add("Div", "steps", value, scale))
    clipped = new.add("Clip", "clipped", whole, *ends)
    new.replace()
    clipped.type = ir.TensorType(_SINGLE)


def _scale(new: Replacement) -> None:
    """Scale a weight at build time; scale an activation (without its zero point) or a pixel by a node."""
    value, scale = new.old.inputs[:2]
    assert value is not None
    if value.is_initializer():
        rows = new.constant("rows", numbers(value).astype(np.float32) * numbers(scale), _SINGLE)
        ir.convenience.replace_all_uses_with(new.old.outputs[0], rows)
        new.graph.remove(new.old, safe=True)
    else:
        new.add("Mul", "scaled", new.cast("held", value, _SINGLE), scale)
        new.replace()


def with_rounding(typed: ir.Model) -> ir.Model:
    """An fp32 copy of a graph from `to_precision`, with explicit rounding.

    Each value of the half type is rounded to its significant bits, as by a GPU that accumulates in fp32. The type's
    range is not emulated.
    """
    model = typed.clone()
    values = [*model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)]
    low = {value: value.dtype for value in values if value.dtype in _BITS_LOST}
    for value in low:
        value.type = ir.TensorType(_SINGLE)
        if value.is_initializer() and value.const_value is not None:
            value.const_value = ir.tensor(numbers(value).astype(np.float32), name=value.name)
    for node in list(model.graph):
        source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
        # All floats are fp32 by now, so casts between them go from fp32 to fp32.
        if node.op_type == "Cast" and source is not None and source.dtype == output.dtype == _SINGLE:
            node.attributes["to"] = ir.AttrInt64("to", int(_SINGLE))
        if output in low and node.op_type not in MOVES:
            _round(Replacement(node), _BITS_LOST[low[output]])
    return model


def _round(new: Replacement, bits: int) -> None:
    """Veltkamp's splitting: with `t = x (2^bits + 1)`, `t - (t - x)` is x without its last bits, rounded to nearest."""
    value = new.old.outputs[0]
    scaled = new.add("Mul", "split", None, constant(new.graph, f"rounding/{bits}", 2.0**bits + 1, _SINGLE))
    rest = new.add("Sub", "rest", scaled, None)
    result = new.add("Sub", "rounded", scaled, rest, like=value)
    ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
    for node, position in ((new.nodes[0], 0), (new.nodes[1], 1)):
        node.replace_input_with(position, value)
    new.graph.insert_after(new.old, new.nodes)

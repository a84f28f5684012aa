"""What a half-precision graph computes where every operator rounds: the same graph in fp32, with rounding spelt out.

ONNX Runtime has no fp16 kernels on a CPU. It computes in fp32 and leaves out casts that it holds needless, so that its
results are nearer to fp32 than any GPU's. Here each value of the half type is rounded to its significant bits, as by a
GPU that accumulates in fp32. The type's range is not emulated. The graph is for proofs only, and never shipped.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ztdeploy.host.graph.precision import MOVES
from ztdeploy.host.graph.rewriting import constant, new_node

_SINGLE = ir.DataType.FLOAT
#: 24 significant bits of fp32 less those of the type.
_BITS_LOST = {ir.DataType.FLOAT16: 13, ir.DataType.BFLOAT16: 16}


def with_rounding(typed: ir.Model) -> ir.Model:
    """An fp32 copy of a graph that has been through `to_precision`, which rounds where that one would."""
    model = typed.clone()
    low = {value: value.dtype for value in _values(model.graph) if value.dtype in _BITS_LOST}
    for value in low:
        value.type = ir.TensorType(_SINGLE)
        if value.is_initializer() and value.const_value is not None:
            single = value.const_value.numpy().astype(np.float32)
            value.const_value = ir.tensor(single, name=value.name)
    for node in list(model.graph):
        output = node.outputs[0]
        if node.op_type == "Cast" and _is_float_cast(node):
            _as_identity(node)
        if output in low and node.op_type not in MOVES:
            _round(model.graph, node, _BITS_LOST[low[output]])
    return model


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]


def _is_float_cast(node: ir.Node) -> bool:
    """All types are fp32 by now: a cast between floats has the same type on both sides."""
    return node.inputs[0] is not None and node.inputs[0].dtype == node.outputs[0].dtype == _SINGLE


def _as_identity(node: ir.Node) -> None:
    node.attributes["to"] = ir.AttrInt64("to", int(_SINGLE))


def _round(graph: ir.Graph, node: ir.Node, bits: int) -> None:
    """Veltkamp's splitting: with `t = x (2^bits + 1)`, `t - (t - x)` is x without its last bits, rounded to nearest."""
    value = node.outputs[0]
    factor = constant(graph, f"rounding/{bits}", 2.0**bits + 1, _SINGLE)
    scaled = new_node("Mul", [None, factor], node, "split")
    rest = new_node("Sub", [scaled.outputs[0], None], node, "rest")
    rounded = new_node("Sub", [scaled.outputs[0], rest.outputs[0]], node, "rounded")
    result = rounded.outputs[0]
    result.shape, result.type = value.shape, value.type
    ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
    scaled.replace_input_with(0, value)
    rest.replace_input_with(1, value)
    graph.insert_after(node, [scaled, rest, rounded])

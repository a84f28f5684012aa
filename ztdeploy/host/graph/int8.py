"""Linear layers in 8-bit integers: weights are quantised at build time, activations in one of four ways.

Each product with a constant weight, `x W`, becomes `s_x s_w (q_x - z_x) q_w`. q_w is int8 and symmetric, with one scale
s_w per output channel (column): one column with large weights costs the others nothing, and the sums need no
correction for a zero point of theirs. Activations, by `Int8Options.activations`:

- "dynamic": uint8 with one scale and one zero point z_x per call (`DynamicQuantizeLinear`), over all rows of all
  images; nothing is calibrated. ONNX Runtime's kernels take no scale per row, so the answer for an image depends
  slightly on the other images of the call. ONNX Runtime's own quantiser writes this form, and its kernels fuse it.
- "uint8", "int8": with ranges from calibration images, over all tokens, as pairs of QuantizeLinear and
  DequantizeLinear, which runtimes with integer kernels fuse. An answer depends on its own image only. uint8 has a
  zero point, which is finer where values lie on one side of zero (behind a Gelu); TensorRT takes only int8 without one.
- "row": the graph quantises weights only; the runtime rounds activations, with a scale per token.

With dynamic or uint8 activations the patch embedding is quantised as well. Everything else keeps its precision: all
other nodes ahead of the first block, all nodes behind the last one (the classifier is cheap and ranks the classes), the
products of attention, softmax, LayerNorm, residual sums, and pruning layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ztdeploy.core.names import block_of, in_pruning_layer
from ztdeploy.core.profile import Int8Options
from ztdeploy.host.graph import GraphSpec
from ztdeploy.host.graph.patch_rows import patch_product
from ztdeploy.host.graph.rewriting import Replacement, constant, numbers, rank_of
from ztdeploy.host.graph.shared_weights import THRESHOLD_BYTES

#: By bits. Symmetric: -128 is not used, so that a weight and its negative have negatives of each other.
LARGEST = {8: 127, 7: 63}
_SINGLE, _INT8, _UINT8 = ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8


def to_int8(model: ir.Model, spec: GraphSpec) -> None:
    """Quantise the linear layers of blocks to 8-bit integers.

    Requires names as `stable_names` gives them, static shapes, and the spec's ranges if they are static. With dynamic
    or uint8 activations and no block left out, the patch embedding is quantised as well: pixels are integers already,
    so only its weights are rounded. Weights are rounded when they are read. Ensures that inputs and outputs keep their
    types; integer products have the names of the nodes that they replace, followed by `/int8`.
    """
    options = spec.int8 or Int8Options()
    assert spec.ranges is not None or not options.static, "static ranges have to be measured first"
    replace = _replace_dynamic if options.activations == "dynamic" else _replace_static
    rounded: dict[ir.Value, Any] = {}
    for node in linear_layers(model.graph, options.from_block):
        value = node.inputs[0]
        assert value is not None
        if value not in rounded:
            if options.activations == "dynamic":
                rounded[value] = _dynamic(model.graph, node, value).outputs
            elif options.static and spec.ranges is not None:
                rounded[value] = _static(node, value, spec.ranges[str(value.name)], options)
            else:
                rounded[value] = value
        replace(node, rounded[value], LARGEST[options.weight_bits])
    takes_pixels = options.activations in ("dynamic", "uint8")
    if options.from_block == 0 and takes_pixels and (found := patch_product(model)) is not None:
        node, pixels = found
        one = constant(model.graph, "pixels.scale", 1.0, _SINGLE)
        if options.activations == "dynamic":
            held: Any = (pixels, one, constant(model.graph, "pixels.zero", 0, _UINT8))
        else:
            values = Replacement(node)
            held = values.add("DequantizeLinear", "pixels", pixels, one, like=pixels, dtype=_SINGLE)
            values.insert_before()
        replace(node, held, LARGEST[options.weight_bits])
    RemoveUnusedNodesPass()(model)


def linear_layers(graph: ir.Graph, from_block: int) -> list[ir.Node]:
    """The products of tokens with constant matrices inside blocks, but outside their pruning layers."""
    return [node for node in graph if _is_linear_of_block(node, from_block)]


def _is_linear_of_block(node: ir.Node, from_block: int) -> bool:
    block = block_of(node.name)
    if node.op_type != "MatMul" or block is None or block < from_block or in_pruning_layer(node.name):
        return False
    weight = node.inputs[1]
    return weight is not None and weight.is_initializer() and weight.dtype == _SINGLE and rank_of(weight) == 2


def quantised(
    weight: NDArray[np.floating[Any]], largest: int = LARGEST[8]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight `[K, N]` as integers from -`largest` to `largest` and scales `[N]`: weight = integers * scales."""
    scales = (np.abs(weight).max(0) / largest).astype(np.float32)
    scales[scales == 0] = 1  # for a column of zeros
    return np.clip(np.rint(weight / scales), -largest, largest).astype(np.int8), scales


def _weight(graph: ir.Graph, weight: ir.Value | None, largest: int) -> tuple[ir.Value, ir.Value]:
    """The integers and scales of a weight as initialisers, which blocks with the same weight share."""
    assert weight is not None
    name, values = f"{weight.name}.int8", numbers(weight)
    scales = constant(graph, f"{weight.name}.scale", quantised(values, largest)[1], _SINGLE)
    if name in graph.initializers:
        return graph.initializers[name], scales

    def integers() -> ir.TensorProtocol:
        return ir.tensor(quantised(numbers(weight), largest)[0], name=name)

    lazy = ir.LazyTensor(integers, dtype=_INT8, shape=ir.Shape(values.shape), name=name)
    held = lazy if values.size >= THRESHOLD_BYTES else integers()
    value = ir.Value(name=name, shape=weight.shape, type=ir.TensorType(_INT8), const_value=held)
    graph.register_initializer(value)
    return value, scales


def _dynamic(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Node:
    """Insert nodes that quantise a value with a dynamic range, ahead of its first reader."""
    dynamic = ir.Node("", "DynamicQuantizeLinear", [value], num_outputs=3, name=f"{node.name}/quantize")
    for position, (dtype, shape) in enumerate(((_UINT8, value.shape), (_SINGLE, ir.Shape([])), (_UINT8, ir.Shape([])))):
        output = dynamic.outputs[position]
        output.name, output.type, output.shape = f"{dynamic.name}:{position}", ir.TensorType(dtype), shape
    graph.insert_before(node, dynamic)
    return dynamic


def _replace_dynamic(node: ir.Node, held: Sequence[ir.Value], largest: int) -> None:
    """Multiply integers, given with their scale and zero point."""
    new, result = Replacement(node), node.outputs[0]
    integers, scale, zero = held
    rows, columns = _weight(new.graph, node.inputs[1], largest)
    product = new.add("MatMulInteger", "int8", integers, rows, zero, like=result, dtype=ir.DataType.INT32)
    single = new.add("Cast", "single", product, like=result, dtype=_SINGLE, to=int(_SINGLE))
    new.add("Mul", "scaled", single, new.add("Mul", "scales", scale, columns, like=columns))
    new.replace()


def _static(node: ir.Node, value: ir.Value, span: tuple[float, float], options: Int8Options) -> ir.Value:
    """Insert nodes that quantise a value with a static range and dequantise it, ahead of its first reader."""
    scale, zero = scale_and_zero(*span, options)
    dtype, new = _INT8 if options.activations == "int8" else _UINT8, Replacement(node)
    steps = new.constant("range.scale", scale, _SINGLE), new.constant("range.zero", zero, dtype)
    there = new.add("QuantizeLinear", "quantize", value, *steps, like=value, dtype=dtype)
    back = new.add("DequantizeLinear", "dequantize", there, *steps, like=value, dtype=_SINGLE)
    new.insert_before()
    return back


def scale_and_zero(low: float, high: float, options: Int8Options) -> tuple[float, int]:
    """Scale and zero point that map a range, widened to include 0, to 8 bits; the scale of the range [0, 0] is 1."""
    low, high = min(low, 0.0), max(high, 0.0)
    if options.activations == "int8":
        return max(-low, high) / 127 or 1.0, 0
    scale = (high - low) / 255 or 1.0
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def _replace_static(node: ir.Node, value: ir.Value, largest: int) -> None:
    new, weight = Replacement(node), node.inputs[1]
    integers, scales = _weight(new.graph, weight, largest)
    rows = new.add("DequantizeLinear", "weight", integers, scales, like=weight, dtype=_SINGLE, axis=1)
    new.add("MatMul", "int8", value, rows)
    new.replace()

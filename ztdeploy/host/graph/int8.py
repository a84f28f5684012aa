"""Linear layers in 8-bit integers: weights ahead of time, activations while they run; nothing has to be calibrated.

Each product with a constant weight, `x W`, becomes `s_x s_w (q_x - z_x) q_w`:

- q_w is int8 and symmetric, with one scale s_w per output channel (column): one column with large weights costs the
  others nothing, and the sums need no correction for a zero point of theirs;
- q_x is uint8 with one scale and one zero point z_x per call (`DynamicQuantizeLinear`), over all rows of all images:
  ONNX Runtime's kernels take no scale per row. What an engine says of an image so depends a little on the images that
  it is given together with.

Everything else stays fp32: what comes ahead of the first block and behind the last one (the classifier is cheap, and
ranks the classes), the products of attention, softmax, LayerNorm, residual sums, and all that a pruning layer
computes. The form is the one that ONNX Runtime fuses into its own kernels, and that its own quantiser writes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ztdeploy.core.profile import Int8Options
from ztdeploy.host.graph.rewriting import cast_to, constant, new_node, replace_node
from ztdeploy.host.graph.shared_weights import THRESHOLD_BYTES
from ztdeploy.host.graph.stable_names import PRUNE

#: By bits. Symmetric: -128 is not used, so that a weight and its negative have negatives of each other.
LARGEST = {8: 127, 7: 63}
_SINGLE = ir.DataType.FLOAT


def to_int8(model: ir.Model, options: Int8Options) -> ir.Model:
    """A copy of an fp32 graph whose blocks' linear layers work on 8-bit integers; inputs and outputs keep their types.

    Args:
        model: named by `stable_names`, with static shapes. It is not changed; weights are rounded when they are read.
        options: which blocks, and how many bits.

    Returns:
        Its integer products bear the names of those whose places they took, with `/int8` behind.
    """
    typed = model.clone()
    inputs: dict[ir.Value, ir.Node] = {}
    for node in linear_layers(typed.graph, options.from_block):
        value = node.inputs[0]
        assert value is not None
        if value not in inputs:
            inputs[value] = _quantise(typed.graph, node, value)
        _replace(typed.graph, node, inputs[value], LARGEST[options.weight_bits])
    for name in [name for name, value in typed.graph.initializers.items() if not value.uses()]:
        typed.graph.initializers.pop(name)
    return typed


def quantised(
    weight: NDArray[np.floating[Any]], largest: int = LARGEST[8]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight `[K, N]` as integers up to `largest` either way and scales `[N]`: it is about integers * scales."""
    scales = (np.abs(weight).max(0) / largest).astype(np.float32)
    scales[scales == 0] = 1  # of a column of zeros
    return np.clip(np.rint(weight / scales), -largest, largest).astype(np.int8), scales


def linear_layers(graph: ir.Graph, from_block: int) -> list[ir.Node]:
    """The products of tokens with constant matrices inside blocks, but outside their pruning layers."""
    return [node for node in graph if _is_linear_of_block(node, from_block)]


def _is_linear_of_block(node: ir.Node, from_block: int) -> bool:
    """Whether a node multiplies tokens with a constant matrix, inside a block but outside its pruning layer."""
    scopes = (node.name or "").split("/")
    block = scopes[0].removeprefix("blocks.")
    if node.op_type != "MatMul" or PRUNE in scopes or not block.isdigit() or int(block) < from_block:
        return False
    weight = node.inputs[1]
    return (
        weight is not None
        and weight.is_initializer()
        and weight.dtype == _SINGLE
        and weight.shape is not None
        and weight.shape.rank() == 2
    )


def _quantise(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Node:
    """What turns a value into integers, ahead of the first node that reads them."""
    dynamic = ir.Node("", "DynamicQuantizeLinear", [value], num_outputs=3, name=f"{node.name}/quantize")
    types = (ir.DataType.UINT8, _SINGLE, ir.DataType.UINT8)
    shapes = (value.shape, ir.Shape([]), ir.Shape([]))
    for position, (output, dtype, shape) in enumerate(zip(dynamic.outputs, types, shapes, strict=True)):
        output.name, output.type, output.shape = f"{dynamic.name}:{position}", ir.TensorType(dtype), shape
    graph.insert_before(node, dynamic)
    return dynamic


def _replace(graph: ir.Graph, node: ir.Node, dynamic: ir.Node, largest: int) -> None:
    integers, scale, zero = dynamic.outputs
    weight = node.inputs[1]
    assert weight is not None
    rows, columns = int8_weight(graph, weight, largest)
    product = new_node("MatMulInteger", [integers, rows, zero], node, "int8")
    single = new_node("Cast", product.outputs, node, "single", cast_to(_SINGLE))
    scales = new_node("Mul", [scale, columns], node, "scales")
    scaled = new_node("Mul", [single.outputs[0], scales.outputs[0]], node, "scaled")
    for made, dtype in ((product, ir.DataType.INT32), (single, _SINGLE)):
        made.outputs[0].shape, made.outputs[0].type = node.outputs[0].shape, ir.TensorType(dtype)
    scales.outputs[0].shape, scales.outputs[0].type = columns.shape, columns.type
    replace_node(graph, node, [product, single, scales, scaled])


def int8_weight(graph: ir.Graph, weight: ir.Value, largest: int) -> tuple[ir.Value, ir.Value]:
    """The integers and scales of a weight as initialisers; blocks that share the weight share them."""
    name, tensor, shape = f"{weight.name}.int8", weight.const_value, weight.shape
    assert tensor is not None
    assert shape is not None
    scales = constant(graph, f"{weight.name}.scale", quantised(tensor.numpy(), largest)[1], _SINGLE)
    if name in graph.initializers:
        return graph.initializers[name], scales

    def integers() -> ir.TensorProtocol:
        return ir.tensor(quantised(tensor.numpy(), largest)[0], name=name)

    lazy = ir.LazyTensor(integers, dtype=ir.DataType.INT8, shape=ir.Shape(tensor.numpy().shape), name=name)
    held = lazy if tensor.size >= THRESHOLD_BYTES else integers()
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.INT8), const_value=held)
    graph.register_initializer(value)
    return value, scales

"""Prove a runtime's integer kernels: every integer layer of a graph by itself, on inputs whose products are known.

Whole int8 engines cannot be compared closely: the fp32 operators between integer products differ in the last bit, now
and then a value is rounded to the next integer, and every layer makes such differences larger. A single layer on given
integers can: sums of products of 8-bit integers are exact, or the kernel is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ztdeploy.host.graph.rewriting import Replacement, constant, numbers

#: Tokens in the input of a layer: some with extreme values, the others random.
ROWS = 16
_SINGLE = ir.DataType.FLOAT


@dataclass(frozen=True)
class IntegerLayers:
    """A graph with layers side by side; each has its own input and output, which are named after it."""

    model: ir.Model
    feeds: Mapping[str, NDArray[np.float32]]  #: `[1, ROWS, K]`
    wanted: Mapping[str, NDArray[np.float64]]  #: `[1, ROWS, N]`, exactly


def integer_layers(typed: ir.Model, *, seed: int = 0) -> IntegerLayers | None:
    """The integer layers of a graph that `to_int8` made with static ranges or by row; None where there are none.

    Inputs are multiples of the layer's own scale, so that rounding does not change them. Where the runtime rounds by
    row, the step is 1 and one value in 64 is 127, the largest, so that every scale is 1. The first rows hold the ends
    of the range, also with the signs of one output's weights, which gives the largest possible sums.
    """
    generator = np.random.default_rng(seed)
    graph = ir.Graph([], [], nodes=[], opset_imports=dict(typed.graph.opset_imports), name="integer layers")
    feeds, wanted = dict[str, NDArray[np.float32]](), dict[str, NDArray[np.float64]]()
    for product, rounding, scaling in layers_of(typed.graph):
        weight, scales = (numbers(value) for value in scaling.inputs[:2])
        scale, low, high = _range(rounding)
        steps = _extremes(weight, low, high, generator)
        if rounding is None:
            steps[:, ::64] = high
        source, result = _copy(graph, product, rounding, scaling)
        feeds[source] = (steps * scale).astype(np.float32)[None]
        sums = steps.astype(np.float64) @ weight.astype(np.float64)  # exact: far below 2^53
        wanted[result] = (sums * (scale * scales.astype(np.float64)))[None]
    return IntegerLayers(ir.Model(graph, ir_version=typed.ir_version), feeds, wanted) if feeds else None


def layers_of(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node | None, ir.Node]]:
    """Each product with an integer weight, except that of pixels: the product, the node that rounds its activations
    (None where the runtime does) and the node that scales its weight."""
    for node in (node for node in graph if node.op_type == "MatMul"):
        activation, weight = (value.producer() if value is not None else None for value in node.inputs)
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        if activation is None or activation.op_type != "DequantizeLinear":
            yield node, None, weight
            continue
        integers = activation.inputs[0]
        rounding = integers.producer() if integers is not None else None
        if rounding is not None and rounding.op_type == "QuantizeLinear":
            yield node, rounding, weight


def _range(rounding: ir.Node | None) -> tuple[float, int, int]:
    """The size of a step, and the first and last step, with the zero point subtracted."""
    if rounding is None:
        return 1.0, -127, 127
    scale, zero = (numbers(value) for value in rounding.inputs[1:])
    limits = np.iinfo(zero.dtype)
    return float(scale), int(limits.min) - int(zero), int(limits.max) - int(zero)


def _extremes(weight: NDArray[np.int8], low: int, high: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`[ROWS, K]`, for a weight `[K, N]`."""
    steps = generator.integers(low, high, (ROWS, len(weight)), endpoint=True)
    positive = weight[:, generator.integers(weight.shape[1])] > 0
    steps[:4] = [
        np.full(len(weight), low),
        np.full(len(weight), high),
        *(np.where(positive, *ends) for ends in ((high, low), (low, high))),
    ]
    return steps


def _copy(graph: ir.Graph, product: ir.Node, rounding: ir.Node | None, scaling: ir.Node) -> tuple[str, str]:
    """Add a layer to the graph; the names of its input and its output."""
    new = Replacement(product)
    width, outputs = numbers(scaling.inputs[0]).shape
    source = ir.Value(name=f"{product.name}/x", shape=ir.Shape([1, ROWS, width]), type=ir.TensorType(_SINGLE))
    graph.inputs.append(source)
    value = source
    if rounding is not None:
        steps = [_held(graph, one) for one in rounding.inputs[1:]]
        value = new.add("DequantizeLinear", "dequantize", new.add("QuantizeLinear", "quantize", source, *steps), *steps)
    weight = new.add("DequantizeLinear", "weight", *(_held(graph, one) for one in scaling.inputs), axis=1)
    result = new.add("MatMul", "y", value, weight, shape=(1, ROWS, outputs), dtype=_SINGLE)
    graph.extend(new.nodes)
    graph.outputs.append(result)
    return str(source.name), str(result.name)


def _held(graph: ir.Graph, value: ir.Value | None) -> ir.Value:
    assert value is not None
    assert value.dtype is not None
    return constant(graph, str(value.name), numbers(value), value.dtype)

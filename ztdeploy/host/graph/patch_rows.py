"""Make the patch embedding of pixels one matrix product that includes the normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.rewriter.pattern import Pattern

from ztdeploy.host.graph.rewriting import Replacement, constant, numbers, shape_of

_SINGLE, _LONG, _UINT8 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.UINT8
_TURNED = [0, 1, 3, 2, 4]


def _embedding(op: Any, image: Any, scale: Any, shift: Any, weight: Any, bias: Any, shape: Any) -> Any:
    normalised = op.Add(op.Mul(op.Transpose(op.Cast(image)), scale), shift)
    return op.Transpose(op.Reshape(op.Conv(normalised, weight, bias, _outputs=["patches"]), shape))


_PATTERN = Pattern(_embedding)


def patch_product(model: ir.Model) -> tuple[ir.Node, ir.Value] | None:
    """Replace the convolution that cuts uint8 pixels `[B, H, W, C]` into patches by a MatMul.

    Pixels of a patch are ordered `[row, column, channel]`. Normalisation by a and c becomes part of the weights and the
    bias: `(p a + c) W + b`.

    Returns:
        The MatMul, whose first input the caller has to set, and the pixels as uint8 `[B, N, P P C]`, which the caller
        has to convert for it; None where the graph has no such convolution.
    """
    graph = model.graph
    matches = ((node, _PATTERN.match(model, graph, node)) for node in graph if node.op_type == "Transpose")
    last, match = next(((node, match) for node, match in matches if match), (None, None))
    if last is None or match is None:
        return None
    image, *constants = (match.bindings[name] for name in ("image", "scale", "shift", "weight", "bias"))
    convolution = match.bindings["patches"].producer()
    if not all(value.is_initializer() for value in constants) or not _cuts_apart(image, convolution):
        return None
    scale, shift, weight, bias = (numbers(value).astype(np.float64) for value in constants)
    out, channels, tall, wide = weight.shape
    batch, height, width, _ = shape_of(image)
    down, across, row = height // tall, width // wide, wide * channels
    factor, offset = (values.reshape(1, channels, 1, 1) for values in (scale, shift))
    rows = (weight * factor).transpose(2, 3, 1, 0).reshape(-1, out).astype(np.float32)
    moved = (bias + (weight * offset).sum((1, 2, 3))).astype(np.float32)
    new = Replacement(last, convolution.name)
    cut = _reshape(new, "cut", image, (batch, down, tall, across, row))
    turned = new.add("Transpose", "turned", cut, shape=(batch, down, across, tall, row), dtype=_UINT8, perm=_TURNED)
    pixels = _reshape(new, "patches", turned, (batch, down * across, tall * row))
    matrix = constant(graph, f"{constants[2].name}.rows", rows, _SINGLE)
    product = new.add("MatMul", "product", pixels, matrix, like=last.outputs[0], dtype=_SINGLE)
    new.add("Add", "bias", product, new.constant("bias", moved, _SINGLE))
    new.replace()
    RemoveUnusedNodesPass()(model)
    return new.nodes[3], pixels


def _reshape(new: Replacement, part: str, value: ir.Value, shape: tuple[Any, ...]) -> ir.Value:
    target = new.constant(f"{part}.shape", (-1, *shape[1:]), _LONG)
    return new.add("Reshape", part, value, target, shape=shape, dtype=_UINT8)


def _cuts_apart(image: ir.Value, convolution: ir.Node) -> bool:
    """Whether a convolution cuts uint8 pixels into adjacent patches that cover the whole image."""
    sides, attributes = numbers(convolution.inputs[1]).shape[2:], convolution.attributes
    sizes = image.shape[1:3] if image.shape is not None else ()
    whole = all(isinstance(size, int) and size % side == 0 for size, side in zip(sizes, sides, strict=True))
    padded = "pads" in attributes and any(attributes["pads"].as_ints())
    return image.dtype == _UINT8 and whole and not padded and list(attributes["strides"].as_ints()) == list(sides)

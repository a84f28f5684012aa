"""The patch embedding of a graph that takes pixels, as one product of patches with a matrix, normalisation inside."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ztdeploy.host.graph.rewriting import constant, new_node, numbers, replace_node

_SINGLE, _LONG = ir.DataType.FLOAT, ir.DataType.INT64


def patch_product(graph: ir.Graph) -> tuple[ir.Node, ir.Value] | None:
    """Put a MatMul in the place of the convolution that cuts uint8 pixels `[B, H, W, C]` into patches.

    A patch's pixels lie `[row, column, channel]`; of `(p a + c) W + b`, the normalisation by a and c goes into
    weights and bias.

    Returns:
        The MatMul, whose first input is meant to hold the pixels' values, and the pixels themselves, uint8
        `[B, N, P P C]`, which it cannot take as they are; None where the graph has no such convolution.
    """
    parts = _parts(graph)
    if parts is None:
        return None
    image, scale, shift, convolution, last = parts
    weight, bias = (numbers(value).astype(np.float64) for value in convolution.inputs[1:3])
    out, channels, tall, wide = weight.shape
    assert image.shape is not None
    height, width = image.shape[1], image.shape[2]
    assert isinstance(height, int)
    assert isinstance(width, int)
    down, across = height // tall, width // wide
    factor, offset = (numbers(value).astype(np.float64).reshape(1, channels, 1, 1) for value in (scale, shift))
    rows = (weight * factor).transpose(2, 3, 1, 0).reshape(-1, out).astype(np.float32)
    moved = (bias + (weight * offset).sum((1, 2, 3))).astype(np.float32)
    name = convolution.name

    def reshaped(value: ir.Value, part: str, *sizes: int) -> ir.Node:
        return new_node("Reshape", [value, constant(graph, f"{name}/{part}.shape", sizes, _LONG)], convolution, part)

    row = wide * channels
    cut = reshaped(image, "cut", -1, down, tall, across, row)
    turned = new_node("Transpose", cut.outputs, convolution, "turned", [ir.AttrInt64s("perm", [0, 1, 3, 2, 4])])
    patches = reshaped(turned.outputs[0], "patches", -1, down * across, tall * row)
    shapes = ((down, tall, across, row), (down, across, tall, row), (down * across, tall * row))
    for node, shape in zip((cut, turned, patches), shapes, strict=True):
        node.outputs[0].shape = ir.Shape([image.shape[0], *shape])
        node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    matrix = constant(graph, f"{convolution.inputs[1].name}.rows", rows, _SINGLE)  # type: ignore[union-attr]
    product = new_node("MatMul", [patches.outputs[0], matrix], convolution, "product")
    product.outputs[0].shape, product.outputs[0].type = last.outputs[0].shape, ir.TensorType(_SINGLE)
    added = new_node("Add", [product.outputs[0], constant(graph, f"{name}/bias", moved, _SINGLE)], convolution, "bias")
    chain = _chain(last)
    replace_node(graph, last, [cut, turned, patches, product, added])
    for node in chain:
        if not node.outputs[0].uses():
            graph.remove(node, safe=True)
    return product, patches.outputs[0]


def _parts(graph: ir.Graph) -> tuple[ir.Value, ir.Value, ir.Value, ir.Node, ir.Node] | None:
    """Image, scale, shift, convolution, and the Transpose that gives tokens `[B, N, D]`."""
    convolution = next((node for node in graph if node.op_type == "Conv"), None)
    last = convolution
    for operator in ("Reshape", "Transpose"):
        users = list(last.outputs[0].consumers()) if last is not None else []
        last = users[0] if len(users) == 1 and users[0].op_type == operator else None
    if convolution is None or last is None or len(convolution.inputs) != 3:
        return None
    chain = _chain(last)
    if [node.op_type for node in chain[2:]] != ["Add", "Mul", "Transpose", "Cast"]:
        return None
    shift, scale = chain[2].inputs[1], chain[3].inputs[1]
    image, weight = chain[5].inputs[0], convolution.inputs[1]
    values = (image, weight, convolution.inputs[2], shift, scale)
    if any(value is None for value in values) or not all(value.is_initializer() for value in values[1:] if value):
        return None
    assert image is not None
    assert weight is not None
    assert weight.shape is not None
    sizes = image.shape[1:3] if image.shape is not None else ()
    whole = all(
        isinstance(size, int) and size % side == 0 for size, side in zip(sizes, weight.shape.numpy()[2:], strict=True)
    )
    apart = list(convolution.attributes["strides"].as_ints()) == list(weight.shape[2:])
    padded = "pads" in convolution.attributes and any(convolution.attributes["pads"].as_ints())
    if image.dtype != ir.DataType.UINT8 or not apart or not whole or padded:
        return None
    assert scale is not None
    assert shift is not None
    return image, scale, shift, convolution, last


def _chain(last: ir.Node) -> list[ir.Node]:
    """What leads to a node along first inputs, from the one ahead of it."""
    found, value = list[ir.Node](), last.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        found.append(node)
        value = node.inputs[0]
    return found

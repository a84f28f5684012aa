"""Write linear layers as one operator over the rows of all images, which adds the bias too.

ONNX Runtime does so by itself where the number of images is fixed. With a batch axis it leaves the sum an operator of
its own, which goes over all values once more (docs/explanation/measuring.md).
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ztdeploy.host.graph import GraphSpec
from ztdeploy.host.graph.rewriting import Replacement, shape_of, sole_maker


def linear_rows(model: ir.Model, _spec: GraphSpec) -> None:
    """`x W + b` of `[B, N, D]` -> Reshape, Gemm, Reshape.

    Requires static shapes. A sum that GELU reads stays, since ONNX Runtime computes it in the same operator as GELU.
    Ensures that values stay what they are up to rounding.
    """
    for total in [node for node in model.graph if node.op_type == "Add"]:
        product = sole_maker(total, "MatMul")
        if product is not None and _is_linear(product, total) and not _behind_is_gelu(total):
            _replace(product, total)


def _is_linear(product: ir.Node, total: ir.Node) -> bool:
    """Whether it is the product of tokens with a weight, and the sum adds a bias."""
    weight, bias = product.inputs[1], total.inputs[1]
    if weight is None or bias is None or not (weight.is_initializer() and bias.is_initializer()):
        return False
    return (shape_of(product.inputs[0]).rank(), shape_of(weight).rank(), shape_of(bias).rank()) == (3, 2, 1)


def _behind_is_gelu(total: ir.Node) -> bool:
    """Whether GELU reads the sum: as one operator, or as several, which read their input twice."""
    readers = total.outputs[0].uses()
    return len(readers) > 1 or any(node.op_type == "Gelu" for node, _ in readers)


def _replace(product: ir.Node, total: ir.Node) -> None:
    result, weight = total.outputs[0], product.inputs[1]
    sizes: Any = (*shape_of(result), shape_of(weight)[0])
    batch, tokens, width, inner = sizes
    rows = batch * tokens if isinstance(batch, int) else ir.SymbolicDim(f"{tokens}*{batch}")
    new, integers = Replacement(total, (product.name or "").rpartition("/")[0]), ir.DataType.INT64
    flat = new.constant("rows_shape", [-1, inner], integers)
    value = new.add("Reshape", "rows", product.inputs[0], flat, like=result, shape=(rows, inner))
    value = new.add("Gemm", "Gemm_0", value, weight, total.inputs[1], like=result, shape=(rows, width))
    new.add("Reshape", "tokens", value, new.constant("tokens_shape", [-1, tokens, width], integers), like=result)
    new.replace()
    assert product.graph is not None
    product.graph.remove(product, safe=True)

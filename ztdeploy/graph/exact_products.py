"""What an int8 graph computes, whatever a runtime's integer kernels do: the same graph with its products spelt out.

Runtimes have integer kernels of their own for each kind of CPU, and fuse what stands around them. Some add pairs of
products in 16 bits, which not every pair fits. Here the products are taken in double precision, which holds their sums
exactly. The graph is for proofs only, and never shipped.
"""

from __future__ import annotations

import onnx_ir as ir

from ztdeploy.graph.rewriting import cast_to, new_node, replace_node

_DOUBLE, _INTEGER = ir.DataType.DOUBLE, ir.DataType.INT32


def with_exact_products(typed: ir.Model) -> ir.Model:
    """A copy of a graph that has been through `to_int8`, without an integer product."""
    model = typed.clone()
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
    return model

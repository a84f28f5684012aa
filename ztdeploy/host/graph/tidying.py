"""The first passes of every trace: fewer nodes, gathers of whole rows, static shapes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

from ztdeploy.core.errors import ModelError
from ztdeploy.host.graph.rewriting import rank_of


def gather_rows(model: ir.Model) -> None:
    """GatherElements over an index expanded along the last axis -> GatherND, which copies whole rows.

    On ONNX Runtime's CPU kernels the expanded form reads one number and one index per element. Ensures that no
    GatherElements with an expanded index is left.
    """
    RewriteRuleSet([_ROWS]).apply_to_model(model)
    left = [node.name for node in model.graph if node.op_type == "GatherElements" and _is_expanded(node.inputs[1])]
    if left:
        raise AssertionError(f"gather over an expanded index was not recognised: {left}")


def _is_expanded(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "Expand"


def _over_expanded(op: Any, data: Any, indices: Any, shape: Any) -> Any:
    return op.GatherElements(data, op.Expand(indices, shape), axis=1, _outputs=["rows"])


def _by_row(op: Any, data: Any, indices: Any, **_: Any) -> Any:
    return op.GatherND(data, indices, batch_dims=1)


def _takes_whole_rows(_context: Any, data: ir.Value, indices: ir.Value, rows: ir.Value, **_: Any) -> bool:
    """Whether data is `[B, N, D]`, the index `[B, k, 1]` and the result `[B, k, D]`."""
    if not rank_of(data) == rank_of(indices) == 3 or data.shape is None or indices.shape is None or rows.shape is None:
        return False
    same_images = indices.shape[0] == data.shape[0]
    return same_images and indices.shape[2] == 1 and rows.shape[1:] == (indices.shape[1], data.shape[2])


# Several gathers may read one Expand, so it cannot be removed with the first.
_ROWS = RewriteRule(_over_expanded, _by_row, _takes_whole_rows, remove_nodes=False)


def clean(model: ir.Model) -> None:
    """Remove common subexpressions, identities and dead nodes; results do not change.

    Ensures that every node contributes to an output, and that the order is topological.
    """
    for graph_pass in (
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
    ):
        graph_pass(model)


def check_static_shapes(model: ir.Model) -> None:
    """Infer all shapes. Ensures that every value's rank is known, and every axis but that of the batch.

    Raises:
        ModelError: names the first node whose output has another shape.
    """
    common.ShapeInferencePass(data_prop=True)(model)
    leading = [value.shape[0] for value in model.graph.inputs if value.shape is not None and value.shape.rank()]
    batch = {str(dim) for dim in leading if not isinstance(dim, int)}
    for node in model.graph:
        for value in node.outputs:
            if not value.name:
                continue  # an unused optional output
            if value.shape is None:
                raise _not_static(node, "an unknown shape")
            symbols = [dim for dim in value.shape if not isinstance(dim, int)]
            behind = any(not isinstance(dim, int) for dim in value.shape[1:])
            if any(_images(dim) not in batch for dim in symbols) or (behind and not _is_leading_part(value.shape)):
                raise _not_static(node, f"the shape {value.shape}")


def _images(dim: ir.SymbolicDim) -> str:
    """The symbol of an axis over all images, or over so many rows of each: `batch` of `197*batch`."""
    rows, _, symbol = str(dim).rpartition("*")
    return symbol if not rows or rows.isdecimal() else str(dim)


def _is_leading_part(shape: ir.Shape) -> bool:
    """Whether q, k and v are stacked in front of the batch: `[3, batch, H, N, d]`."""
    return isinstance(shape[0], int) and all(isinstance(dim, int) for dim in shape[2:])


def _not_static(node: ir.Node, found: str) -> ModelError:
    return ModelError(
        f"node '{node.name}' of the exported graph has {found}",
        "static shapes behind the batch axis",
        "choose a model whose token count does not depend on the image, or report it as a bug",
    )

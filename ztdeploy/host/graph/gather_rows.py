"""GatherElements over an index expanded along the last axis -> GatherND, which copies whole rows.

On ONNX Runtime's CPU kernels the expanded form reads one number and one index per element.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def gather_rows(model: ir.Model) -> None:
    """Ensures that no GatherElements with an expanded index is left."""
    for node in list(model.graph):
        if node.op_type == "GatherElements" and (indices := _row_indices(node)) is not None:
            _replace(node, indices)
    RemoveUnusedNodesPass()(model)
    left = [node.name for node in model.graph if node.op_type == "GatherElements" and _expanded(node)]
    if left:
        raise AssertionError(f"gather over an expanded index was not recognised: {left}")


def _expanded(node: ir.Node) -> ir.Node | None:
    producer = node.inputs[1].producer() if node.inputs[1] is not None else None
    return producer if producer is not None and producer.op_type == "Expand" else None


def _row_indices(node: ir.Node) -> ir.Value | None:
    """The `[B, k, 1]` index under `GatherElements(data [B, N, D], Expand([B, k, 1]), axis=1)`."""
    data, expand, axis = node.inputs[0], _expanded(node), node.attributes.get("axis")
    if data is None or expand is None or data.shape is None or data.shape.rank() != 3:
        return None
    if axis is None or axis.as_int() != 1:
        return None
    indices = expand.inputs[0]
    if indices is None or indices.shape is None or indices.shape.rank() != 3 or indices.shape[2] != 1:
        return None
    result = node.outputs[0].shape
    whole_rows = result is not None and result[1:] == (indices.shape[1], data.shape[2])
    if not whole_rows or indices.shape[0] != data.shape[0]:
        return None
    return indices


def _replace(node: ir.Node, indices: ir.Value) -> None:
    gather = ir.Node("", "GatherND", [node.inputs[0], indices], [ir.AttrInt64("batch_dims", 1)], num_outputs=1)
    gather.metadata_props.update(node.metadata_props)
    old, new = node.outputs[0], gather.outputs[0]
    new.shape, new.type, new.name = old.shape, old.type, old.name
    graph = node.graph
    assert graph is not None
    graph.insert_before(node, gather)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)

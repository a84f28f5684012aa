"""Common subexpressions, identities and dead nodes out; nothing that runs is changed."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common


def clean(model: ir.Model) -> None:
    """Ensures that every node contributes to an output and that the order is topological."""
    for graph_pass in (
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
    ):
        graph_pass(model)

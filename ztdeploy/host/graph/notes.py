"""Two graphs from one: what ships, and the same with what its pruning layers note as further outputs.

What a layer decided by (scores, who was the most similar to whom) is computed in any case, but is no output: an engine
with more outputs is slower, and its runtime may fuse less. The graph with notes is run beside an engine, to be shown.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ztdeploy.host.graph.stable_names import PRUNE

#: The last part of the names of outputs that ship.
_CHOICES = ("kept", "into")


def notes_of(model: ir.Model) -> list[str]:
    """The names of a graph's outputs that are notes."""
    names = (value.name or "" for value in model.graph.outputs)
    return [name for name in names if (parts := name.split("/"))[1:-1] == [PRUNE] and parts[-1] not in _CHOICES]


def without_notes(noted: ir.Model) -> ir.Model:
    """A copy of a graph without its notes, and without what was computed for them alone; it shares the weights."""
    model, notes = noted.clone(), set(notes_of(noted))
    outputs = model.graph.outputs
    for position in reversed(range(len(outputs))):
        value = outputs[position]
        if value.name in notes:
            outputs.pop(position)
            node = value.producer()
            if node is not None:
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}:{value.index()}"
    RemoveUnusedNodesPass()(model)
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        model.graph.initializers.pop(name)
    return model

"""Make smaller graphs from a finished one: without its notes, or with a few of its blocks."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from ztdeploy.core.names import CONFIDENCE, INTO, KEPT, TOKENS, TOKENS_OUT, block_name, of_pruning_layer_itself
from ztdeploy.host.graph.rewriting import constant, rank_of, shape_of

_KEEP = 0  #: in the target of a Reshape: leave this axis as it is


def notes_of(model: ir.Model) -> list[str]:
    """Names of the outputs that are notes, which tell how a pruning layer decided (scores, most similar partners).

    Every graph computes them, but those that ship do not have them as outputs: an engine with more outputs is slower,
    and its runtime may fuse less. `show` runs the graph with notes beside the engine.
    """
    names = (value.name or "" for value in model.graph.outputs)
    of_layers = (name for name in names if of_pruning_layer_itself(name))
    return [name for name in of_layers if not name.endswith((f"/{KEPT}", f"/{INTO}"))]


def without_notes(noted: ir.Model, *, confidence: bool = False) -> ir.Model:
    """A copy of a graph without its notes and the nodes that only serve them; it shares the weights.

    Args:
        confidence: keep the confidence, which is an output of stages of a cascade only.
    """
    model, notes = noted.clone(), {*notes_of(noted), *(() if confidence else (CONFIDENCE,))}
    outputs = model.graph.outputs
    for position in reversed(range(len(outputs))):
        value = outputs[position]
        if value.name in notes:
            outputs.pop(position)
            node = value.producer()
            if node is not None:
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}:{value.index()}"
    RemoveUnusedNodesPass()(model)
    return model


def blocks_graph(model: ir.Model, blocks: range) -> ir.Model | None:
    """Neighbouring blocks (from 0) of an unpruned graph as a model, fp32 `[batch, tokens, D]` to the same shape.

    It serves to measure the cost of a block. It takes several blocks, because a single block that runs again and again
    finds its weights in the caches, unlike a whole model. The passes specialised the blocks for one number of tokens;
    here their reshapes keep the first axes instead, which costs no node.

    Args:
        model: named by `stable_names`; it is not changed, and shares its weights with the result.

    Returns:
        None where the blocks do more than map tokens to tokens, or otherwise depend on the number of tokens.
    """
    ends = _ends(model.graph, tuple(f"{block_name(block)}/" for block in blocks))
    if ends is None:
        return None
    before, after = ends
    _, tokens, width = shape_of(before)
    cut = ir.Model(ir.convenience.extract(model.graph, [before], [after]), ir_version=model.ir_version)
    cut.producer_name, cut.graph.name = model.producer_name, "blocks"
    # Cutting leaves initializers in arbitrary order; the same model must give the same bytes.
    for value in [cut.graph.initializers.pop(name) for name in sorted(cut.graph.initializers)]:
        cut.graph.register_initializer(value)
    if not isinstance(tokens, int) or _has_constants_for_each_token(cut.graph, tokens):
        return None
    if not all(_freed(node, tokens) for node in cut.graph):
        return None
    (start,), (end,) = cut.graph.inputs, cut.graph.outputs
    shape = ir.Shape(["batch", "tokens", width])
    start.name, start.shape = TOKENS, shape
    RemoveUnusedNodesPass()(cut)  # also the old targets
    for node in cut.graph:
        for value in node.outputs:
            value.shape = None
    end.name = TOKENS_OUT
    ShapeInferencePass(data_prop=True)(cut)
    return cut if end.shape == shape else None


def _ends(graph: ir.Graph, scopes: tuple[str, ...]) -> tuple[ir.Value, ir.Value] | None:
    """The input and the output `[B, N, D]` of these blocks; None if there is more than one of either."""
    nodes = [node for node in graph if (node.name or "").startswith(scopes)]
    own = {value for node in nodes for value in node.outputs}
    given = {value for node in nodes for value in node.inputs if value is not None and not value.is_initializer()} - own
    left = {value for value in own if any(user not in nodes for user, _ in value.uses()) or value.is_graph_output()}
    if len(given) != 1 or len(left) != 1:
        return None
    (before,), (after,) = given, left
    return (before, after) if rank_of(before) == 3 and before.shape == after.shape else None


def _has_constants_for_each_token(graph: ir.Graph, tokens: int) -> bool:
    """Whether there is an attention bias or a position table; weights have two axes of any length."""
    shapes = (value.shape for value in graph.initializers.values())
    return any(shape is not None and shape.rank() > 2 and tokens in (shape[-1], shape[-2]) for shape in shapes)


def _freed(node: ir.Node, tokens: int) -> bool:
    """Let a node take any number of tokens; False where that is impossible."""
    if node.op_type != "Reshape":
        return node.op_type not in ("Expand", "ConstantOfShape", "Slice", "Range", "Tile")
    data, target = node.inputs[0], node.inputs[1]
    sizes = None if target is None else ir.convenience.get_const_tensor(target)
    before, after = data.shape if data is not None else None, node.outputs[0].shape
    if sizes is None or before is None or after is None or min(before.rank(), after.rank()) < 2:
        return False
    if before[1] != tokens or after[1] != tokens or after[0] != before[0]:  # both axes must keep their places
        return False
    node.attributes.pop("allowzero", None)
    assert isinstance(node.graph, ir.Graph)
    kept = [_KEEP, _KEEP, *(int(size) for size in sizes.numpy()[2:])]
    node.replace_input_with(1, constant(node.graph, f"{node.name}/shape", kept, ir.DataType.INT64))
    return True

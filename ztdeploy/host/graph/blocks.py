"""A few transformer blocks alone, for any batch and any number of tokens: what a block costs can be measured with them.

A few, since one that is called again and again finds its weights in the caches, where they are not in a whole model.

They are cut out of a finished graph, so they have been through the same passes and compute attention in the same form.
There they were specialised for one number of tokens, which is in the shapes and in the targets of reshapes; those are
told to keep their first axes instead, which costs no node.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from ztdeploy.core.names import TOKENS, TOKENS_OUT

_KEEP = 0  #: in a reshape's target: this axis as it is


def blocks_graph(model: ir.Model, blocks: range) -> ir.Model | None:
    """Neighbouring blocks (from 0) of a dense graph as a model of their own, fp32 `[batch, tokens, D]` to the same.

    Args:
        model: named by `stable_names`; it is not changed, and shares its weights with the result.

    Returns:
        None where they do more than turn tokens into tokens, or depend on their number in another way.
    """
    ends = _ends(model.graph, tuple(f"blocks.{block}/" for block in blocks))
    if ends is None:
        return None
    before, after = ends
    assert before.shape is not None
    tokens = before.shape[1]
    cut = ir.Model(ir.convenience.extract(model.graph, [before], [after]), ir_version=model.ir_version)
    cut.producer_name, cut.graph.name = model.producer_name, "blocks"
    _sort_initializers(cut.graph)
    if not isinstance(tokens, int) or _has_constants_for_each_token(cut.graph, tokens):
        return None
    if not all(_free(node, tokens) for node in cut.graph):
        return None
    (start,), (end,) = cut.graph.inputs, cut.graph.outputs
    shape = ir.Shape(["batch", "tokens", before.shape[2]])
    start.name, start.shape = TOKENS, shape
    RemoveUnusedNodesPass()(cut)  # and the old targets
    for node in cut.graph:
        for value in node.outputs:
            value.shape = None
    end.name = TOKENS_OUT
    ShapeInferencePass(data_prop=True)(cut)
    return cut if end.shape == shape else None


def _sort_initializers(graph: ir.Graph) -> None:
    """Cutting leaves them in no particular order; the same model must give the same bytes."""
    values = [graph.initializers.pop(name) for name in sorted(graph.initializers)]
    for value in values:
        graph.register_initializer(value)


def _ends(graph: ir.Graph, scopes: tuple[str, ...]) -> tuple[ir.Value, ir.Value] | None:
    """What these blocks compute from, and what others read of them: one value `[B, N, D]` each, or None."""
    nodes = [node for node in graph if (node.name or "").startswith(scopes)]
    own = {value for node in nodes for value in node.outputs}
    read = {value for node in nodes for value in node.inputs if value is not None and not value.is_initializer()}
    given = read - own
    left = {value for value in own if any(user not in nodes for user, _ in value.uses()) or value.is_graph_output()}
    if len(given) != 1 or len(left) != 1:
        return None
    (before,), (after,) = given, left
    shapes = (before.shape, after.shape)
    if any(shape is None or shape.rank() != 3 for shape in shapes) or before.shape != after.shape:
        return None
    return before, after


def _has_constants_for_each_token(graph: ir.Graph, tokens: int) -> bool:
    """Whether it holds a bias of attention, or a table of positions; weights have two axes, of any length."""
    shapes = (value.shape for value in graph.initializers.values())
    return any(shape is not None and shape.rank() > 2 and tokens in (shape[-1], shape[-2]) for shape in shapes)


def _free(node: ir.Node, tokens: int) -> bool:
    """Make a node take any number of tokens; False where that cannot be done."""
    if node.op_type != "Reshape":
        return node.op_type not in ("Expand", "ConstantOfShape", "Slice", "Range", "Tile")
    data, target = node.inputs[0], node.inputs[1]
    constant = None if target is None else ir.convenience.get_const_tensor(target)
    if data is None or data.shape is None or target is None or constant is None:
        return False
    sizes, result = [int(size) for size in constant.numpy()], node.outputs[0].shape
    if result is None or result.rank() < 2 or data.shape.rank() < 2 or data.shape[1] != tokens:
        return False
    if result[0] != data.shape[0] or result[1] != tokens:  # both axes must stay where they are
        return False
    sizes[:2] = [_KEEP, _KEEP]
    node.attributes.pop("allowzero", None)
    tensor = ir.tensor(np.asarray(sizes, np.int64), name=f"{node.name}/shape")
    value = ir.Value(
        name=tensor.name, shape=ir.Shape([len(sizes)]), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    assert node.graph is not None
    node.graph.register_initializer(value)
    node.replace_input_with(1, value)
    return True

"""Do not compute rows that a pruning layer drops.

A pruning layer stands behind a block, but needs only the block's attention to decide. The rest of the block
(projection, residual sums, LayerNormalization, MLP) treats every token by itself, so the kept rows can be picked
before it: `f(x)[rows] = f(x[rows])`. The output is the same, with less work.
"""

from __future__ import annotations

from itertools import count

import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from ztdeploy.core.names import block_of, of_pruning_layer_itself
from ztdeploy.host.graph.rewriting import rank_of, shape_of

#: Operators that compute each element of their output from those at the same place, broadcasting.
ELEMENTWISE = frozenset(
    ("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Clip", "Cast", "Gelu", "Erf", "Tanh", "Sigmoid", "Relu", "HardSwish")
)


def early_rows(model: ir.Model) -> None:
    """Move the gather of kept rows from behind each block to behind the block's attention.

    Requires names as `stable_names` gives them. Ensures that nodes keep their names and outputs their values.
    """
    pickers = [node for node in model.graph if _picks_rows(node)]
    for picker in pickers:
        if behind := _works_row_by_row(picker):
            _move(model.graph, picker, behind)
    if pickers:
        TopologicalSortPass()(model)


def _picks_rows(node: ir.Node) -> bool:
    """Whether a node of a pruning layer itself (not of its parts) takes rows `[B, k, D]` of tokens `[B, N, D]`."""
    if not of_pruning_layer_itself(node.name) or rank_of(node.inputs[0]) != 3 or rank_of(node.outputs[0]) != 3:
        return False
    if node.op_type == "GatherND":
        return node.attributes.get_int("batch_dims", 0) == 1
    if node.op_type == "Slice":
        axes = ir.convenience.get_const_tensor(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else None
        return axes is not None and axes.numpy().tolist() == [1]
    return node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 1 and rank_of(node.inputs[1]) == 1


def _works_row_by_row(picker: ir.Node) -> set[ir.Node]:
    """Nodes of the picker's block that lead only to the picker and treat every token by itself."""
    tokens, block = picker.inputs[0], block_of(picker.name)
    assert tokens is not None
    found, waiting = set[ir.Node](), [tokens]
    while waiting:
        maker = waiting.pop().producer()
        if maker is None or maker in found or block_of(maker.name) != block or not _row_by_row(maker, tokens):
            continue
        found.add(maker)
        waiting += [value for value in maker.inputs if value is not None]
    while outsiders := {node for node in found if _read_by_others(node, found | {picker})}:
        found -= outsiders
    return found


def _row_by_row(node: ir.Node, tokens: ir.Value) -> bool:
    if not all(_has_rows(output, tokens) for output in node.outputs):
        return False
    if node.op_type == "Split":  # the halves of a gated MLP
        return node.attributes.get_int("axis", 0) in (-1, 2)
    if len(node.outputs) != 1:
        return False
    if node.op_type == "MatMul":
        weight = node.inputs[1]
        return weight is not None and weight.is_initializer() and rank_of(weight) == 2
    if node.op_type == "LayerNormalization":
        return node.attributes.get_int("axis", -1) in (-1, 2)
    # An operand without rows must be the same for all rows.
    constants = [value for value in node.inputs if value is not None and not _has_rows(value, tokens)]
    return node.op_type in ELEMENTWISE and all(rank_of(value) in (0, 1) for value in constants)


def _has_rows(value: ir.Value, tokens: ir.Value) -> bool:
    """Whether a value has a row for each token of each image."""
    return rank_of(value) == 3 and shape_of(value)[:2] == shape_of(tokens)[:2]


def _read_by_others(node: ir.Node, known: set[ir.Node]) -> bool:
    return any(value.is_graph_output() or any(user not in known for user, _ in value.uses()) for value in node.outputs)


def _move(graph: ir.Graph, picker: ir.Node, behind: set[ir.Node]) -> None:
    """Let the nodes between the attention and the picker work on the picked rows."""
    tokens, kept = picker.inputs[0], shape_of(picker.outputs[0])
    assert tokens is not None
    early: dict[ir.Value, ir.Value] = {}
    for node in [node for node in graph if node in behind]:
        for position, value in enumerate(node.inputs):
            if value is not None and value.producer() not in behind and _has_rows(value, tokens):
                if value not in early:
                    early[value] = _pick(graph, picker, value)
                node.replace_input_with(position, early[value])
    for output in (output for node in behind for output in node.outputs):
        output.shape = ir.Shape([*kept[:2], shape_of(output)[2]])
    ir.convenience.replace_all_uses_with(picker.outputs[0], tokens, replace_graph_outputs=True)
    graph.remove(picker, safe=True)


def _pick(graph: ir.Graph, picker: ir.Node, value: ir.Value) -> ir.Value:
    """The picked rows of another value."""
    attributes = list(picker.attributes.values())
    node = ir.Node("", picker.op_type, [value, *picker.inputs[1:]], attributes, num_outputs=1)
    stem, taken = (picker.name or "").rpartition("_")[0], {other.name for other in graph}
    node.name = next(name for number in count(1) if (name := f"{stem}_{number}") not in taken)
    rows = node.outputs[0]
    rows.name, rows.type = node.name, value.type
    rows.shape = ir.Shape([*shape_of(picker.outputs[0])[:2], shape_of(value)[2]])
    graph.append(node)  # the model is sorted at the end
    return rows

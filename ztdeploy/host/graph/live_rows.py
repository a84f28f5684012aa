"""Do not compute rows (tokens) that nothing reads.

Two kinds of nodes read some rows only, and both let what stands before them compute less: `f(x)[rows] = f(x[rows])`
wherever every token is treated by itself (projections, residual sums, LayerNormalization, MLP).

- A head that reads the class token, or the first few tokens. The last block then needs their rows only, also of its
  queries and of its attention matrix; keys and values stay whole. The outputs are the same up to rounding.
- A pruning layer. It stands behind a block, but decides by the block's attention, so the rows that stay are picked
  behind the attention. They are not picked ahead of it: most pruning layers read the whole attention matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from ztdeploy.core.names import in_pruning_layer, of_pruning_layer_itself
from ztdeploy.host.graph.rewriting import constant, rank_of, shape_of

#: Operators that compute each element of their output from those at the same place, broadcasting.
ELEMENTWISE = frozenset(
    ("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Neg", "Reciprocal", "Clip", "Cast", "Gelu", "Erf", "Tanh", "Sigmoid")
) | {"Relu", "HardSwish"}
#: Operators along one axis, by the axis that they have if none is given.
_ALONG = {"LayerNormalization": -1, "RMSNormalization": -1, "Softmax": -1, "Split": 0}


@dataclass(frozen=True)
class Rows:
    """Some rows of a value."""

    axis: int
    count: int
    picker: ir.Node | None = None  #: the node of a pruning layer that picks them; None: they are the first ones


#: What is read of a value: some rows, or (None) everything.
Need = Rows | None


@dataclass(frozen=True)
class _Narrow:
    """A node that computes some rows only: which, and the row axis of each input that has rows, by its position."""

    rows: Rows
    inputs: Mapping[int, int]


def live_rows(model: ir.Model) -> None:
    """Let nodes compute only those rows of `[B, N, D]`, and of attention, that other nodes read.

    Requires names as `stable_names` gives them, static shapes and a topological order. Ensures that nodes keep their
    names and outputs their values.
    """
    narrow = _narrow_nodes(model.graph)
    if narrow:
        _Rewriting(model.graph, narrow).run()
        RemoveUnusedNodesPass()(model)
        TopologicalSortPass()(model)


def _narrow_nodes(graph: ir.Graph) -> dict[ir.Node, _Narrow]:
    """The nodes of which only some rows are read, found from the outputs backwards."""
    needs: dict[ir.Value, Need] = dict.fromkeys(graph.outputs)
    narrow: dict[ir.Node, _Narrow] = {}
    for node in reversed(list(graph)):
        own = [needs[value] for value in node.outputs if value in needs]
        if not own:  # it served rows that are left out
            continue
        wanted = own[0] if len(set(own)) == 1 and len(own) == len(node.outputs) else None
        inputs = None if wanted is None else _row_axes(node, wanted)
        if wanted is not None and inputs is not None:
            narrow[node] = _Narrow(wanted, inputs)
        for position, value in enumerate(node.inputs):
            if value is None or (node in narrow and node.op_type == "Concat" and position not in (inputs or ())):
                continue
            need = None
            if wanted is not None and inputs is not None and position in inputs:
                need = replace(wanted, axis=inputs[position])
            elif position == 0:
                need = _picked_rows(node)
            needs[value] = _joined(needs[value], need) if value in needs else need
    return narrow


def _joined(one: Need, other: Need) -> Need:
    if one is None or other is None or (one.axis, one.picker) != (other.axis, other.picker):
        return None
    return max(one, other, key=lambda rows: rows.count)


def _picked_rows(node: ir.Node) -> Need:
    """The rows that a node reads of its first input, tokens `[B, N, D]`; None: all of them."""
    data, result = node.inputs[0], node.outputs[0]
    if rank_of(data) != 3:
        return None
    tokens, kept = shape_of(data)[1], 0
    if in_pruning_layer(node.name):  # of a layer itself (not of its parts): rows `[B, k, D]`
        if of_pruning_layer_itself(node.name) and rank_of(result) == 3 and _picks_by_index(node):
            size = shape_of(result)[1]
            return Rows(1, size, node) if isinstance(size, int) else None
        return None
    if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 1:
        index = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
        places = [] if index is None else index.numpy().ravel().tolist()
        kept = max(places) + 1 if places and min(places) >= 0 else 0
    elif _first_of(node, 1):
        size = shape_of(result)[1]
        kept = size if isinstance(size, int) else 0
    return Rows(1, kept) if isinstance(tokens, int) and 0 < kept < tokens else None


def _picks_by_index(node: ir.Node) -> bool:
    if node.op_type == "GatherND":
        return node.attributes.get_int("batch_dims", 0) == 1
    if node.op_type == "Slice":
        return _numbers(node, 3) == [1]
    return node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 1 and rank_of(node.inputs[1]) == 1


def _first_of(node: ir.Node, axis: int) -> bool:
    """Whether a node takes the first entries of its input along an axis."""
    if node.op_type != "Slice" or _numbers(node, 1) != [0] or _numbers(node, 4) not in (None, [1]):
        return False
    return _numbers(node, 3) in ([axis], [axis - (rank_of(node.inputs[0]) or 0)])


def _numbers(node: ir.Node, position: int) -> list[int] | None:
    """A constant input; None where it is missing or not constant."""
    value = node.inputs[position] if len(node.inputs) > position else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy().ravel().tolist()


def _row_axes(node: ir.Node, rows: Rows) -> dict[int, int] | None:
    """Which inputs have the rows of a node's output, and along which axis; None: a row depends on several of theirs."""
    rank, axis = rank_of(node.outputs[0]), rows.axis
    if in_pruning_layer(node.name) or rank is None or any(value and rank_of(value) is None for value in node.inputs):
        return None
    if rows.picker is None and (found := _moved(node, rows)) is not None:
        return found
    if axis >= rank - 1 or not (found := _row_by_row(node, rank, axis)):
        return None
    values = (node.outputs[0], *(node.inputs[position] for position in found))
    return found if all(_can_pick(value, rows) for value in values) else None


def _row_by_row(node: ir.Node, rank: int, axis: int) -> dict[int, int]:
    """The same for nodes that compute; empty where rows meet."""
    if node.op_type in ELEMENTWISE:
        own = {position: axis - rank + (rank_of(value) or 0) for position, value in enumerate(node.inputs) if value}
        return {position: at for position, at in own.items() if at >= 0 and shape_of(node.inputs[position])[at] != 1}
    along = node.op_type in _ALONG and node.attributes.get_int("axis", _ALONG[node.op_type]) in (-1, rank - 1)
    last = _numbers(node, 1) in ([-1], [rank - 1]) and node.attributes.get_int("keepdims", 1) == 1
    means = node.op_type == "ReduceMean" and last
    product = node.op_type == "MatMul" and axis == rank - 2 and rank_of(node.inputs[0]) == rank
    return {0: axis} if along or means or product else {}


def _moved(node: ir.Node, rows: Rows) -> dict[int, int] | None:
    """The same for nodes that move rows, of which the first ones can be followed."""
    data, result, axis = node.inputs[0], node.outputs[0], rows.axis
    if node.op_type == "Transpose":
        return {0: node.attributes["perm"].as_ints()[axis]}
    if node.op_type == "Reshape" and _numbers(node, 1) is not None:
        return {0: axis} if shape_of(data)[: axis + 1] == shape_of(result)[: axis + 1] else None
    if node.op_type == "Concat" and node.attributes.get_int("axis") in (axis, axis - shape_of(result).rank()):
        first = shape_of(data)[axis]
        return {0: axis} if isinstance(first, int) and rows.count <= first else None
    return {0: axis} if _first_of(node, axis) else None


def _can_pick(value: ir.Value | None, rows: Rows) -> bool:
    """Whether a pruning layer's node can pick rows of this value: it has a row for each token of each image."""
    if rows.picker is None:
        return True
    return rank_of(value) == 3 and shape_of(value)[:2] == shape_of(rows.picker.inputs[0])[:2]


class _Rewriting:
    """Changes the nodes of a graph in place, in topological order."""

    def __init__(self, graph: ir.Graph, narrow: Mapping[ir.Node, _Narrow]) -> None:
        self._graph, self._narrow = graph, narrow
        self._held: dict[ir.Value, Rows] = {}  #: the values that have some rows only
        self._picked: dict[tuple[ir.Value, Rows], ir.Value] = {}
        self._names = {node.name for node in graph}

    def run(self) -> None:
        for node in list(self._graph):
            data = node.inputs[0] if node.inputs else None
            if node in self._narrow:
                self._change(node, self._narrow[node])
            elif data is not None and data in self._held and self._held[data].picker is node:
                self._replace(node, data)

    def _change(self, node: ir.Node, narrow: _Narrow) -> None:
        rows, drops = narrow.rows, node.op_type == "Concat" or _first_of(node, narrow.rows.axis)
        for position, axis in narrow.inputs.items():
            value = node.inputs[position]
            assert value is not None
            node.replace_input_with(position, self._rows_of(value, replace(rows, axis=axis), node))
        if drops and node.inputs[0] is not None:
            self._replace(node, node.inputs[0])
            return
        if node.op_type == "Reshape":
            target = _numbers(node, 1) or []
            target[rows.axis] = rows.count
            node.replace_input_with(1, constant(self._graph, f"{node.name}/shape", target, ir.DataType.INT64))
        for output in node.outputs:
            shape = list(shape_of(output))
            shape[rows.axis] = rows.count
            output.shape, self._held[output] = ir.Shape(shape), rows

    def _replace(self, node: ir.Node, value: ir.Value) -> None:
        ir.convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)

    def _rows_of(self, value: ir.Value, rows: Rows, reader: ir.Node) -> ir.Value:
        """The rows of a value, which are picked where it has more."""
        if self._held.get(value) == rows:
            return value
        if (value, rows) not in self._picked:
            node = self._first(value, rows, reader) if rows.picker is None else self._by(rows.picker, value)
            self._graph.append(node)  # the model is sorted at the end
            picked, shape = node.outputs[0], list(shape_of(value))
            shape[rows.axis] = rows.count
            picked.name, picked.type, picked.shape = node.name, value.type, ir.Shape(shape)
            self._picked[value, rows], self._held[picked] = picked, rows
        return self._picked[value, rows]

    def _first(self, value: ir.Value, rows: Rows, reader: ir.Node) -> ir.Node:
        name = self._name((reader.name or "").rpartition("/")[0], "Slice")
        parts = {"starts": 0, "ends": rows.count, "axes": rows.axis}
        bounds = [constant(self._graph, f"{name}/{part}", [at], ir.DataType.INT64) for part, at in parts.items()]
        return ir.Node("", "Slice", [value, *bounds], num_outputs=1, name=name)

    def _by(self, picker: ir.Node, value: ir.Value) -> ir.Node:
        name = self._name((picker.name or "").rpartition("/")[0], picker.op_type)
        attributes = list(picker.attributes.values())
        return ir.Node("", picker.op_type, [value, *picker.inputs[1:]], attributes, num_outputs=1, name=name)

    def _name(self, scope: str, operator: str) -> str:
        name = next(name for number in count() if (name := f"{scope}/{operator}_{number}") not in self._names)
        self._names.add(name)
        return name

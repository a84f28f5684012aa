"""What several passes need to put a few nodes in the place of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray


def new_node(
    operator: str, inputs: Sequence[ir.Value | None], old: ir.Node, part: str, attributes: Sequence[ir.Attr] = ()
) -> ir.Node:
    """A node with one output, both named after the node whose place it takes a part in."""
    node = ir.Node("", operator, inputs, attributes, num_outputs=1, name=f"{old.name}/{part}")
    node.outputs[0].name = node.name
    return node


def cast_to(target: ir.DataType) -> tuple[ir.Attr]:
    """The attributes of a Cast."""
    return (ir.AttrInt64("to", int(target)),)


def constant(graph: ir.Graph, name: str, values: ArrayLike, dtype: ir.DataType) -> ir.Value:
    """An initializer of the graph; the one that is there already where the name is."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(np.asarray(values).astype(dtype.numpy()), dtype=dtype, name=name)
    shape = ir.Shape(np.shape(values))
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def numbers(value: ir.Value | None) -> NDArray[Any]:
    """What an initializer holds."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def replace_node(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put nodes in the place of one with a single output; the last of them gives the result."""
    before, after = old.outputs[0], new[-1].outputs[0]
    after.name, after.shape, after.type = before.name, before.shape, before.type
    graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(old, safe=True)

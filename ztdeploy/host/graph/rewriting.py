"""Helpers of the passes: read shapes and constants, and replace one node by several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray


class Replacement:
    """New nodes that replace the node `old`. They and their outputs are named after it: `blocks.0/mlp/Gelu_0/erf`."""

    def __init__(self, old: ir.Node, name: str | None = None) -> None:
        """
        Args:
            name: what the new nodes are named after instead.
        """
        assert isinstance(old.graph, ir.Graph)
        self.old, self.graph, self.nodes, self.name = old, old.graph, list[ir.Node](), name or old.name

    def add(
        self,
        operator: str,
        part: str,
        *inputs: ir.Value | None,
        like: ir.Value | None = None,
        shape: Sequence[Any] | None = None,
        dtype: ir.DataType | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Add a node behind those that were added before.

        Args:
            part: the last part of its name.
            like: a value of the output's shape and type, unless `shape` or `dtype` is given.

        Returns:
            Its only output.
        """
        given = ir.convenience.convert_attributes(attributes)
        node = ir.Node(domain, operator, inputs, given, num_outputs=1, name=f"{self.name}/{part}")
        self.nodes.append(node)
        output = node.outputs[0]
        output.name = node.name
        if like is not None:
            output.shape, output.type = like.shape, like.type
        if shape is not None:
            output.shape = ir.Shape(shape)
        if dtype is not None:
            output.type = ir.TensorType(dtype)
        return output

    def cast(self, part: str, value: ir.Value | None, to: ir.DataType) -> ir.Value:
        """Add a Cast."""
        return self.add("Cast", part, value, to=int(to))

    def constant(self, part: str, values: ArrayLike, dtype: ir.DataType) -> ir.Value:
        """Add an initializer for the added nodes."""
        return constant(self.graph, f"{self.name}/{part}", values, dtype)

    def replace(self) -> None:
        """Replace the old node; the last new output takes the name, shape and type of the old one's."""
        before, after = self.old.outputs[0], self.nodes[-1].outputs[0]
        after.name, after.shape, after.type = before.name, before.shape, before.type
        self.graph.insert_before(self.old, self.nodes)
        ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
        self.graph.remove(self.old, safe=True)

    def insert_before(self) -> None:
        """Insert the nodes ahead of the old one, which stays."""
        self.graph.insert_before(self.old, self.nodes)


def constant(graph: ir.Graph, name: str, values: ArrayLike, dtype: ir.DataType) -> ir.Value:
    """Add an initializer to the graph; if one of that name exists, return that one."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(np.asarray(values).astype(dtype.numpy(), copy=False), dtype=dtype, name=name)
    value = ir.Value(name=name, shape=ir.Shape(np.shape(values)), type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def numbers(value: ir.Value | None) -> NDArray[Any]:
    """The numbers that an initializer holds."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def shape_of(value: ir.Value | None) -> ir.Shape:
    """The shape of a value; in a graph with static shapes every value has one."""
    assert value is not None
    assert value.shape is not None
    return value.shape


def rank_of(value: ir.Value | None) -> int | None:
    return value.shape.rank() if value is not None and value.shape is not None else None


def sole_maker(node: ir.Node, operator: str) -> ir.Node | None:
    """What makes the first input of a node, if it is such an operator and makes it for this node alone."""
    value = node.inputs[0]
    maker = None if value is None else value.producer()
    alone = maker is not None and len(maker.outputs[0].uses()) == 1 and not maker.outputs[0].is_graph_output()
    return maker if alone and maker is not None and maker.op_type == operator else None

"""Half precision as types in the graph, which strongly typed runtimes follow; builder flags for it no longer exist.

The following parts stay fp32, because rounding there costs accuracy or changes the ranking of tokens:

- the normalisation of the image, ahead of the first contraction;
- LayerNorm, whose variance overflows in fp16 for some checkpoints, and for the same reason a head of text embeddings,
  which takes lengths;
- everything a pruning layer computes, and for bf16 the softmax that it reads: eight bits do not rank tokens.

Nodes that only move data keep the type of their data. Weights are cast once, at build time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.defs
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ztdeploy.core.errors import ModelError
from ztdeploy.core.names import ATTENTIONS, CONFIDENCE, block_of, in_pruning_layer
from ztdeploy.core.profile import Int8Options, Precision
from ztdeploy.host.graph import GraphSpec
from ztdeploy.host.graph.rewriting import numbers
from ztdeploy.host.graph.shared_weights import THRESHOLD_BYTES

LOW: dict[Precision, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_SUFFIX = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
_LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895e38}
_CONTRACTIONS = {"Conv", "MatMul", "Gemm", "Einsum"}
_NORMALISATIONS = {"LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization"}
_ATTENTION = {"Add", "Mul", "MatMul", "Softmax"}
MOVES = {"Gather", "GatherND", "GatherElements", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Concat"}
MOVES |= {"Expand", "Identity", "Split", "Flatten", "Pad"}


def to_precision(model: ir.Model, spec: GraphSpec) -> None:
    """Let nodes compute in the half type of a spec, fp16 or bf16; in an int8 graph, only the nodes of `_of_rest`.

    Requires names as `stable_names` gives them, and static shapes. Weights are cast when they are read. Ensures that
    inputs and outputs keep their types.

    Raises:
        ModelError: a weight is out of the type's range; a large one when it is read.
    """
    graph, casts = model.graph, _Casts(model.graph)
    within = _of_rest(graph, spec.int8 or Int8Options()) if spec.precision == "int8" else lambda _node: True
    choose, opset = _chooser(graph, LOW[spec.low], within), graph.opset_imports[""]
    for node in list(graph):
        target = choose(node)
        if target is None:
            continue
        for position, value in enumerate(node.inputs):
            if (
                value is not None
                and _is_float(value)
                and value.dtype != target
                and _takes(node, target, opset, position)
            ):
                node.replace_input_with(position, casts.of(value, target))
        for output in node.outputs:
            if _is_float(output):
                output.type = ir.TensorType(target)  # a copy of a graph shares its type objects with the original
    for position, output in enumerate(graph.outputs):
        if _is_float(output) and output.dtype != ir.DataType.FLOAT:
            graph.outputs[position] = casts.output(output)
    RemoveUnusedNodesPass()(model)


def _chooser(
    graph: ir.Graph, low: ir.DataType, within: Callable[[ir.Node], bool]
) -> Callable[[ir.Node], ir.DataType | None]:
    """A function from a node to the type that it computes in; None for nodes that have no choice."""
    first = next((node for node in graph if node.op_type in _CONTRACTIONS), None)
    ahead = _ancestors(first) if first is not None else set()
    opset = graph.opset_imports[""]

    def choose(node: ir.Node) -> ir.DataType | None:
        floats = [value for value in node.inputs if value is not None and _is_float(value)]
        if not floats:
            return None
        if node in ahead or node.op_type in _NORMALISATIONS:
            return ir.DataType.FLOAT
        moved = {value.dtype for value in floats if not value.is_initializer()}
        if node.op_type in MOVES and moved:
            return ir.DataType.FLOAT if moved == {ir.DataType.FLOAT} else low
        if keeps_fp32(node) or not within(node) or not _takes(node, low, opset):
            return ir.DataType.FLOAT
        if node.op_type == "Softmax" and low == ir.DataType.BFLOAT16 and _is_ranked(node):
            return ir.DataType.FLOAT
        return None if node.op_type == "Cast" else low

    return choose


def _of_rest(graph: ir.Graph, options: Int8Options) -> Callable[[ir.Node], bool]:
    """Which nodes of an int8 graph compute in the type of `options.rest`: blocks that are not quantised, and attention
    (products and softmax) where no pruning layer reads it."""
    ranked = {block_of(node.name) for node in graph if node.op_type == "Softmax" and _is_ranked(node)}

    def within(node: ir.Node) -> bool:
        block, scopes = block_of(node.name), str(node.name).split("/")[1:]
        if block is None or block < options.from_block:
            return block is not None
        return block not in ranked and scopes[0] in ATTENTIONS and len(scopes) == 2 and _is_of_attention(node)

    return within


def _is_of_attention(node: ir.Node) -> bool:
    """Scaling of queries, both products, the bias of merging, and softmax; not the weights of merging."""
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    scales_queries = maker is not None and maker.op_type in ("Gather", "Slice", "Transpose")
    return node.op_type in _ATTENTION and (node.op_type != "Mul" or scales_queries)


class _Casts:
    """Casts values, each of them once: behind its producer, or at build time for a weight."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self._made = graph, dict[tuple[ir.Value, ir.DataType], ir.Value]()

    def of(self, value: ir.Value, target: ir.DataType) -> ir.Value:
        key = (value, target)
        if key not in self._made:
            self._made[key] = self._weight(*key) if value.is_initializer() else self._cast(*key)
        return self._made[key]

    def output(self, value: ir.Value) -> ir.Value:
        """Make an fp32 value the graph output of this name; the old one gets another name."""
        name, value.name = value.name, f"{value.name}/{_SUFFIX[value.dtype or ir.DataType.FLOAT16]}"
        cast = self._cast(value, ir.DataType.FLOAT)
        cast.name = name
        return cast

    def _cast(self, value: ir.Value, target: ir.DataType) -> ir.Value:
        name, to = f"{value.name}/{_SUFFIX[target]}", ir.AttrInt64("to", int(target))
        output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(target))
        node, producer = ir.Node("", "Cast", [value], [to], outputs=[output], name=name), value.producer()
        if producer is None:  # a graph input
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        return output

    def _weight(self, value: ir.Value, target: ir.DataType) -> ir.Value:
        values, name = numbers(value), f"{value.name}.{_SUFFIX[target]}"

        def cast() -> ir.TensorProtocol:
            return ir.tensor(_in_range(numbers(value), target, str(value.name)), name=name)

        # What stays inside the graph is read by its serialiser, which would hide the error in one of its own.
        small = values.size * target.itemsize < THRESHOLD_BYTES
        tensor = cast() if small else ir.LazyTensor(cast, dtype=target, shape=ir.Shape(values.shape), name=name)
        weight = ir.Value(name=name, shape=value.shape, type=ir.TensorType(target), const_value=tensor)
        self._graph.register_initializer(weight)
        return weight


def _in_range(values: Any, target: ir.DataType, name: str) -> Any:
    with np.errstate(over="ignore"):
        low = values.astype(target.numpy())
    lost = np.isfinite(values) & ~np.isfinite(low.astype(np.float32))
    # Infinities that were there before are intended: prefix tokens have an infinite score.
    if lost.any():
        raise ModelError(
            f"weight '{name}' holds {np.abs(values[lost]).max():.4g}, which {_SUFFIX[target]} cannot",
            f"values up to {_LARGEST[target]:.6g}",
            f"choose a profile with precision fp32{' or bf16' if target == ir.DataType.FLOAT16 else ''}",
        )
    return low


def _takes(node: ir.Node, low: ir.DataType, opset: int, position: int = 0) -> bool:
    """Whether an input may have the type: Conv takes bf16 since opset 22 only, and the scales of Resize are fp32."""
    inputs = onnx.defs.get_schema(node.op_type, opset, node.domain).inputs
    return f"tensor({low.name.lower()})" in inputs[min(position, len(inputs) - 1)].types


def _ancestors(node: ir.Node) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = list(node.predecessors())
    while waiting:
        found.add(one := waiting.pop())
        waiting.extend(set(one.predecessors()) - found)
    return found


def keeps_fp32(node: ir.Node) -> bool:
    """Whether a node belongs to a part that always stays fp32: a pruning layer, a head of text embeddings, or the
    confidence, whose differences near 0 decide."""
    name = node.name or ""
    return in_pruning_layer(name) or "/text_head/" in name or name.startswith(f"{CONFIDENCE}/")


def _is_ranked(node: ir.Node) -> bool:
    """Whether a pruning layer reads what the node computes."""
    return any(in_pruning_layer(user.name) for user in node.outputs[0].consumers())


def _is_float(value: ir.Value) -> bool:
    return value.dtype in _SUFFIX

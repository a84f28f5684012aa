"""Cut a finished graph in front of a block, into two graphs that compute the same one after the other."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from ztdeploy.core.errors import ModelError
from ztdeploy.core.names import TOKENS, block_of
from ztdeploy.host.graph.rewriting import rank_of

_SINGLE = ir.DataType.FLOAT


def cut(model: ir.Model, block: int) -> tuple[ir.Model, ir.Model]:
    """The prefix, from the image to the tokens that enter a block, and the tail, from these tokens to all outputs.

    Tokens are handed over as `TOKENS`, fp32 `[B, N, D]`, which holds values of any lower precision exactly. What does
    not depend on the image, such as a table of positions, is computed by the tail where it needs it.

    Args:
        model: named by `stable_names`; it is not changed, and shares its weights with the results.
        block: counted from 0; no pruning layer stands before it.

    Raises:
        ModelError: blocks from this one on need something else from those before it.
    """
    prefix, tail = model.clone(), model.clone()
    _end_at(prefix.graph, _entering(prefix.graph, block))
    _begin_with(tail.graph, _entering(tail.graph, block))
    for one in (prefix, tail):
        RemoveUnusedNodesPass()(one)
        RemoveUnusedOpsetsPass()(one)
        for value in [one.graph.initializers.pop(name) for name in sorted(one.graph.initializers)]:
            one.graph.register_initializer(value)  # in a fixed order, so that the same model gives the same bytes
    return prefix, tail


def _entering(graph: ir.Graph, block: int) -> list[ir.Value]:
    """The tokens that enter a block, followed by copies of them in another type."""
    behind, by_image, images = set[ir.Node](), set[ir.Node](), list[ir.Value]()
    for node in graph:  # in topological order
        makers = {value.producer() for value in node.inputs if value is not None}
        own = block_of(node.name)
        if (own is not None and own >= block) or not behind.isdisjoint(makers):
            behind.add(node)
        given = [value for value in graph.inputs if value in node.inputs]
        if (given or not by_image.isdisjoint(makers)) and not _counts_images(node):
            by_image.add(node)
            images += given if node in behind else []
    before = [value for node in graph if node in by_image and node not in behind for value in node.outputs]
    found = [value for value in before if any(user in behind for user, _ in value.uses())]
    copies = [value for value in found if _copied(value) in found]
    tokens = [value for value in found if value not in copies]
    if images or len(tokens) != 1 or rank_of(tokens[0]) != 3 or any(value.is_graph_output() for value in found):
        names = ", ".join(f"'{value.name}'" for value in dict.fromkeys([*images, *tokens]))
        raise ModelError(
            f"blocks from {block + 1} on read {names or 'nothing'} from in front of them",
            "tokens, and nothing else",
            "build without --cascade",
        )
    return [*tokens, *copies]


def _counts_images(node: ir.Node) -> bool:
    """Whether a node gives the number of images, which tokens tell as well."""
    begin, end = (node.attributes.get_int(name, 0) for name in ("start", "end"))
    return node.op_type == "Shape" and (begin, end) == (0, 1)


def _copied(value: ir.Value) -> ir.Value | None:
    """What a cast copies."""
    maker = value.producer()
    return maker.inputs[0] if maker is not None and maker.op_type == "Cast" else None


def _end_at(graph: ir.Graph, entering: list[ir.Value]) -> None:
    given = entering[0]
    if given.dtype != _SINGLE:
        cast = _cast(given, _SINGLE)
        graph.append(cast)
        given = cast.outputs[0]
    given.name = TOKENS
    graph.outputs[:] = [given]


def _begin_with(graph: ir.Graph, entering: list[ir.Value]) -> None:
    taken = ir.Value(name=TOKENS, shape=entering[0].shape, type=ir.TensorType(_SINGLE))
    for value in entering:
        assert value.dtype is not None
        new = taken
        if value.dtype != _SINGLE:
            cast = _cast(taken, value.dtype)
            graph.insert_before(graph[0], cast)
            new = cast.outputs[0]
        ir.convenience.replace_all_uses_with(value, new)
    for node in graph:
        if _counts_images(node):
            node.replace_input_with(0, taken)
    graph.inputs[:] = [taken]


def _cast(value: ir.Value, to: ir.DataType) -> ir.Node:
    name = f"{TOKENS}/{to.name.lower()}"
    output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(to))
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))], outputs=[output], name=name)

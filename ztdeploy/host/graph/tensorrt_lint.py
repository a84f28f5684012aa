"""Find nodes that TensorRT would refuse, before it does, and name the node and its block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from ztdeploy.core.errors import ModelError
from ztdeploy.core.names import block_name, block_of

TOPK_LIMIT = 3840
#: Operators whose output shapes depend on values.
_DATA_DEPENDENT = {"NonZero", "Unique", "Compress", "NonMaxSuppression"}
#: The largest int64 is allowed: in slices it means "to the end".
_INT32 = np.iinfo(np.int32)


def check_tensorrt(model: ir.Model) -> None:
    """Raises ModelError naming the first node that TensorRT cannot take, and how many more there are."""
    found: list[tuple[ir.Node | None, str]]
    found = [(node, reason) for node in model.graph for rule in _RULES for reason in rule(node)]
    found += [(None, reason) for reason in _boundary(model.graph)]
    if not found:
        return
    node, reason = found[0]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    raise ModelError(
        f"{_where(node)}{reason}{more}",
        "operators that TensorRT takes",
        "choose another method or keep ratio, or build with a CPU profile",
    )


def _where(node: ir.Node | None) -> str:
    if node is None:
        return "the graph "
    block = block_of(node.name or "")
    of_block = "" if block is None else f" (of {block_name(block)})"
    return f"node '{node.name}'{of_block} "


def _topk(node: ir.Node) -> Iterator[str]:
    if node.op_type == "TopK" and node.inputs[1] is not None:
        count = ir.convenience.get_const_tensor(node.inputs[1])
        if count is None:
            yield "chooses a number of elements that is not fixed"
        elif count.numpy().item() > TOPK_LIMIT:
            yield f"chooses {count.numpy().item()} elements, more than TensorRT's {TOPK_LIMIT}"


def _scatter(node: ir.Node) -> Iterator[str]:
    reduction = node.attributes.get("reduction")
    if node.op_type in ("ScatterElements", "ScatterND") and reduction is not None and reduction.as_string() != "none":
        yield f"scatters with the reduction '{reduction.as_string()}'"


def _data_dependent(node: ir.Node) -> Iterator[str]:
    if node.op_type in _DATA_DEPENDENT:
        yield f"is a {node.op_type}, whose output has no fixed shape"


def _types(node: ir.Node) -> Iterator[str]:
    types = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
    if ir.DataType.DOUBLE in types:
        yield "computes in fp64"
    if ir.DataType.UINT8 in types and node.op_type not in ("Cast", "Shape"):
        yield "computes in uint8, which TensorRT only casts"


def _int64(node: ir.Node) -> Iterator[str]:
    for value in node.inputs:
        tensor = value.const_value if value is not None else None
        if tensor is not None and tensor.dtype == ir.DataType.INT64 and tensor.size:
            values = tensor.numpy()
            if values.min() < _INT32.min or _INT32.max < values.max() < np.iinfo(np.int64).max:
                yield f"reads the constant '{tensor.name}', which does not fit 32 bits"


def _boundary(graph: ir.Graph) -> Iterator[str]:
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            if value.dtype in (ir.DataType.INT64, ir.DataType.DOUBLE):
                yield f"has the {kind} '{value.name}' of type {value.dtype.name.lower()}; 32 bits are wanted"


_RULES: tuple[Callable[[ir.Node], Iterator[str]], ...] = (_topk, _scatter, _data_dependent, _types, _int64)

"""Graphs of tiny models, each exported once a run: an export takes seconds, and many files want the same."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx
import onnx_ir as ir

from helpers import processes
from helpers.models import PREPROCESS, VARIANTS, fits, pruned, variant
from helpers.sessions import serialised
from ztdeploy.core.locks import only_one
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec

SPEC = GraphSpec(20, "uint8", None)


@cache
def trace_of(name: str, method: str = "zero-tprune") -> ir.Model:
    """A line of `VARIANTS`: four blocks, pruning layers behind the second and the third. Nobody may change it."""
    assert processes.SHARED is not None
    file = processes.SHARED / "graphs" / f"{name}.{method}.onnx"
    with only_one(file.with_suffix(".lock")):
        if not file.exists():
            ir.save(export_onnx(pruned(variant(name), method), PREPROCESS, SPEC), file.with_suffix(".partial"))
            file.with_suffix(".partial").replace(file)
    return ir.load(file)


def trace_by(method: str) -> ir.Model:
    """Of the first line of `VARIANTS` that a method can prune. Nobody may change it."""
    return trace_of(next(name for name in VARIANTS if fits(method, name)), method)


def pruning_nodes(model: ir.Model) -> list[tuple[Any, ...]]:
    """All that pruning layers compute: operators, values by name, and the constants that they read."""
    return [
        (node.name, node.op_type, [value and value.name for value in node.inputs], [v.dtype for v in node.outputs])
        for node in model.graph
        if "prune" in (node.name or "").split("/")
    ]


def check_declared_types(model: ir.Model) -> int:
    """A graph is valid ONNX, and the types that it declares are those that ONNX infers.

    Returns:
        How many values inside it have a type.
    """
    proto = onnx.load_from_string(serialised(model))
    onnx.checker.check_model(proto, full_check=True)
    declared = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    inner = {name for node in proto.graph.node for name in node.output} & types.keys()
    assert {name: declared[name] for name in inner} == {name: types[name] for name in inner}
    return len(inner)

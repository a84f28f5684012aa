"""`python compiler.py GRAPH OUT`: what the fake TensorRT makes of an ONNX file, as a zip of plain graphs.

A graph is cut at its plugin nodes: a stage is a graph for ONNX Runtime, followed by plugin nodes that the fake computes
in NumPy, and so on. It runs in a process of its own, since the device has no `onnx`. Prints what a parser would refuse
the graph for, or nothing.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

PLUGIN_DOMAIN = "ztdeploy"


class RefusedError(Exception):
    """A graph that the parser takes no further."""


def main(graph: Path, out: Path) -> str | None:
    try:
        model = onnx.load(graph)
        check_operators(model)
        description, stages = cut(model)
    except RefusedError as refused:
        return str(refused)
    except Exception as error:
        return f"Failed to parse the model: {error}"
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("network.json", json.dumps(description))
        for index, stage in enumerate(stages):
            archive.writestr(f"{index}.onnx", stage.SerializeToString())
    return None


def check_operators(model: ModelProto) -> None:
    domains = {entry.domain: entry.version for entry in model.opset_import}
    for index, node in enumerate(model.graph.node):
        if node.domain == PLUGIN_DOMAIN:
            continue
        if node.domain or not onnx.defs.has(node.op_type, domains[""], ""):
            raise RefusedError(
                f"In node {index} with name: {node.name} and operator: {node.op_type} "
                f"(parseNode): UNSUPPORTED_NODE: No importer registered for op: {node.op_type}"
            )


def cut(model: ModelProto) -> tuple[dict[str, Any], list[ModelProto]]:
    graph = model.graph
    known = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    levels = levels_of(graph.node)
    depth = max(levels.values(), default=0)
    made_at = {output: (levels[node.output[0]], is_plugin(node)) for node in graph.node for output in node.output}
    users: dict[str, list[tuple[int, bool]]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append((levels[node.output[0]], is_plugin(node)))
    results = {value.name for value in graph.output}
    stages, names, plugins = [], [], []
    for level in range(depth + 1):
        nodes = [node for node in graph.node if levels[node.output[0]] == level and not is_plugin(node)]
        here = {output for node in nodes for output in node.output}
        used = {name for node in nodes for name in node.input if name}
        weights = [tensor for tensor in graph.initializer if tensor.name in used]
        given = sorted(used - here - {tensor.name for tensor in weights})
        wanted = sorted(
            name for name in here if name in results or any(u != (level, False) for u in users.get(name, []))
        )
        stage = helper.make_graph(
            nodes,
            f"stage {level}",
            [typed(known, name) for name in given],
            [typed(known, name) for name in wanted],
            weights,
        )
        opsets = [entry for entry in model.opset_import if entry.domain != PLUGIN_DOMAIN]
        stages.append(helper.make_model(stage, opset_imports=opsets, ir_version=model.ir_version))
        names.append({"inputs": given, "outputs": wanted})
        plugins.append([plugin(node) for node in graph.node if is_plugin(node) and levels[node.output[0]] == level])
    assert results <= set(made_at)
    description = {
        "inputs": [described(value) for value in graph.input],
        "outputs": [described(value) for value in graph.output],
        "stages": names,
        "plugins": plugins,
        "half": any(tensor.data_type == TensorProto.FLOAT16 for tensor in graph.initializer),
    }
    return description, stages


def levels_of(nodes: Iterable[NodeProto]) -> dict[str, int]:
    """The stage that each node belongs to, by its first output; the graph is sorted."""
    behind: dict[str, int] = {}
    levels = {}
    for node in nodes:
        level = max((behind.get(name, 0) for name in node.input), default=0)
        levels[node.output[0]] = level
        behind |= dict.fromkeys(node.output, level + int(is_plugin(node)))
    return levels


def is_plugin(node: NodeProto) -> bool:
    return bool(node.domain == PLUGIN_DOMAIN)


def plugin(node: NodeProto) -> dict[str, Any]:
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    attributes = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
    return {
        "name": node.name,
        "operator": node.op_type,
        "inputs": list(node.input),
        "output": node.output[0],
        "attributes": attributes,
    }


def typed(known: dict[str, ValueInfoProto], name: str) -> ValueInfoProto:
    """Without a shape: ONNX Runtime finds it out."""
    return helper.make_tensor_value_info(name, known[name].type.tensor_type.elem_type, None)


def described(value: ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = [-1 if dimension.dim_param else dimension.dim_value for dimension in tensor.shape.dim]
    return {"name": value.name, "type": kind, "shape": shape}


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])) or "", end="")

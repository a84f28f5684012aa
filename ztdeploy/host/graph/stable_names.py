"""Names that say where a node belongs: `blocks.2/prune/wpr/MatMul_3`.

The exporter keeps the module path of every node in its metadata. It becomes the node's scope; parameters keep
the names they have in the checkpoint. Afterwards the metadata (which holds file paths) is dropped, so that the
same module gives the same bytes anywhere.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

from ztdeploy.core.errors import ModelError

_SCOPES = "pkg.torch.onnx.name_scopes"
#: Wrapper modules around the user's model, and the name of what they do themselves.
_WRAPPERS = ("pruned.model", "pruned")
ROOT_SCOPE = "io"
#: The scope of a pruning layer within its block's; a module of that name is what it comes from.
PRUNE = "prune"


def stable_names(model: ir.Model) -> None:
    """Ensures that every node and value has a unique name, built from the module path and operator alone."""
    graph = model.graph
    fixed = {value.name for value in (*graph.inputs, *graph.outputs)}
    _name_initializers(graph)
    counts: Counter[str] = Counter()
    for node in graph:
        stem = f"{scope_name(_module_path(node))}/{node.op_type}"
        node.name = f"{stem}_{counts[stem]}"
        counts[stem] += 1
        for position, value in enumerate(node.outputs):
            if value.name != "" and value.name not in fixed:
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}:{position}"
    _strip_metadata(model)
    names = [node.name for node in graph]
    if len(set(names)) != len(names):
        raise ModelError("two nodes of the graph share a name", "unique names", "report this model's name as a bug")


def scope_name(module_path: str) -> str:
    """`blocks.2.prune.wpr` -> `blocks.2/prune/wpr`; the path of the root is `io`."""
    parts: list[str] = []
    for part in module_path.split("."):
        if part.isdigit() and parts:
            parts[-1] = f"{parts[-1]}.{part}"
        elif part:
            parts.append(part)
    return "/".join(parts) or ROOT_SCOPE


def _module_path(node: ir.Node) -> str:
    """The path of the innermost module that a node came from, wrappers removed."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "['']"))
    return _unwrap(next((scope for scope in reversed(scopes[:-1]) if scope and not scope.startswith("_")), ""))


def _unwrap(path: str) -> str:
    for wrapper in _WRAPPERS:
        if path == wrapper:
            return ""
        if path.startswith(wrapper + "."):
            return path[len(wrapper) + 1 :]
    return path


def _name_initializers(graph: ir.Graph) -> None:
    """Parameters keep their names; constants are named after their first user."""
    anonymous: Counter[str] = Counter()
    renamed: dict[ir.Value, str] = {}
    for node in graph:
        path = _module_path(node)
        for value in node.inputs:
            if value is None or not value.is_initializer() or value in renamed:
                continue
            name = _unwrap(value.name or "")
            if name == value.name and name not in ("scale", "shift"):
                if node.op_type == "MatMul" and value.shape is not None and value.shape.rank() == 2:
                    name = f"{path}.weight.T"  # the exporter transposes a linear layer's weight ahead of time
                else:
                    stem = f"{scope_name(path)}/const"
                    name = f"{stem}_{anonymous[stem]}"
                    anonymous[stem] += 1
            renamed[value] = name
    taken: Counter[str] = Counter()
    values = list(renamed.items())
    for value, _ in values:
        graph.initializers.pop(value.name or "")
    for value, name in values:
        taken[name] += 1
        value.name = name if taken[name] == 1 else f"{name}.{taken[name]}"
        graph.register_initializer(value)


def _strip_metadata(model: ir.Model) -> None:
    graph = model.graph
    model.metadata_props.clear()
    model.doc_string = graph.doc_string = None
    model.producer_name, model.producer_version = "ztdeploy", None
    graph.name = "ztdeploy"
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()

"""Names that say where a node belongs: `blocks.2/prune/wpr/MatMul_3`.

The exporter keeps the module path of every node in its metadata. It becomes the node's scope; parameters keep
the names they have in the checkpoint. Afterwards the metadata (which holds file paths) is dropped, so that the
same module gives the same bytes anywhere.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from ztdeploy.core.errors import ModelError
from ztdeploy.host.graph.rewriting import rank_of

_SCOPES = "pkg.torch.onnx.name_scopes"
#: Wrapper modules around the user's model, and the name of what they do themselves.
_WRAPPERS = ("pruned.model", "pruned")
ROOT_SCOPE = "io"


def stable_names(model: ir.Model) -> None:
    """Name every node and value after its module path and operator, and drop all metadata.

    Requires the exporter's metadata. Ensures that names are unique.
    """
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
    if len({node.name for node in graph}) != len(graph):
        raise ModelError("two nodes of the graph share a name", "unique names", "report this model's name as a bug")


def rename_scopes(model: ir.Model, paths: Mapping[str, str]) -> None:
    """Change module paths in the exporter's metadata and in the names of initializers.

    Args:
        paths: new paths by old ones, within the user's model.
    """
    inside = _WRAPPERS[0]
    for old, new in paths.items():
        for node in model.graph:
            if (scopes := node.metadata_props.get(_SCOPES)) is not None:
                node.metadata_props[_SCOPES] = scopes.replace(f"{inside}.{old}.", f"{inside}.{new}.")
        for name in [name for name in model.graph.initializers if name.startswith(f"{inside}.{old}.")]:
            model.graph.initializers[name].name = f"{inside}.{new}{name[len(inside) + 1 + len(old) :]}"


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
    wrapper = next((one for one in _WRAPPERS if f"{path}.".startswith(f"{one}.")), None)
    return path if wrapper is None else path[len(wrapper) + 1 :]


def _name_initializers(graph: ir.Graph) -> None:
    """Parameters keep their names; constants are named after their first user."""
    anonymous, taken, renamed = Counter[str](), Counter[str](), dict[ir.Value, str]()
    for node in graph:
        path = _module_path(node)
        for value in node.inputs:
            if value is None or not value.is_initializer() or value in renamed:
                continue
            name = _unwrap(value.name or "")
            if name == value.name and name not in ("scale", "shift"):
                if node.op_type == "MatMul" and rank_of(value) == 2:
                    name = f"{path}.weight.T"  # the exporter transposes a linear layer's weight ahead of time
                else:
                    stem = f"{scope_name(path)}/const"
                    name = f"{stem}_{anonymous[stem]}"
                    anonymous[stem] += 1
            renamed[value] = name
    for value in renamed:
        graph.initializers.pop(value.name or "")
    for value, name in renamed.items():
        taken[name] += 1
        value.name = name if taken[name] == 1 else f"{name}.{taken[name]}"
        graph.register_initializer(value)


def _strip_metadata(model: ir.Model) -> None:
    """The metadata holds file paths."""
    graph = model.graph
    model.producer_name, model.producer_version, graph.name = "ztdeploy", None, "ztdeploy"
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for one in (model, graph, *graph, *values):
        one.metadata_props.clear()
        one.doc_string = None

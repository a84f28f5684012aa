"""Replace scoring subgraphs by plugin nodes. Names find a subgraph, and a pattern checks it; a mismatch is an error.

Works on a graph file with onnx-graphsurgeon: the weights stay where they are. What the plugins compute is in
`plugins/README.md`; every attribute of a plugin node is read from the subgraph that it replaces.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.numpy_helper import to_array
from onnx_graphsurgeon.logger import G_LOGGER

from ztdeploy.core.errors import ModelError
from ztdeploy.core.files import write
from ztdeploy.core.names import is_pruning_module
from ztdeploy.core.options import VARIANCE_MAX, VARIANCE_MIN
from ztdeploy.target.plugins import NAMESPACE, SIMILARITY_PRUNE, VERSION, WEIGHTED_PAGE_RANK

G_LOGGER.severity = G_LOGGER.ERROR  # it prints to standard output, which belongs to --json

#: The module whose scores count by their values; those of the others only rank.
_VALUES_COUNT = "novelty/importance"
#: A pattern is an operator with the patterns of its inputs, or the name of a tensor: "?" any, and the same wherever the
#: name stands; "=" a constant whose value is wanted; "#" a constant that follows from the shapes. "TopK:1" is the
#: second output.
Pattern = Any
#: The value of a constant, whether an initializer or a node.
Reader = Callable[[gs.Tensor], Any]
_JOINED = ("ReduceSum", "?summed", "#")
_FILTERED = ("Mul", "?joined", ("Clip", "?passes", "#"))
_PASSES = ("Cast", ("Equal", ("Clip", "?energy", "=low", "=high"), "?energy"))
_ENERGY = ("ReduceSum", ("Mul", "?shares", "?shares"), "#")
_SHARES = ("Div", "?scores", ("Clip", ("ReduceSum", "?scores", "#"), "#"))
_RESCALED = ("Div", "?vector", ("Clip", ("ReduceMax", "?vector", "#"), "#"))

_FEATURE = ("Div", "?mean", ("Clip", ("ReduceL2", "?mean", "#"), "#"))
_SORTED = ("GatherND", "?feature", ("Unsqueeze", "?order", "#"))
_BEST = ("ReduceMax", ("MatMul", ("Slice", "?sorted", *"####"), ("Transpose", ("Slice", "?sorted", *"####"))), "#")
_DROPPED = ("GatherElements", ("Slice", "?order", "=first", *"###"), ("TopK:1", "?best", "=drop"))
_SURVIVORS = ("ScatterElements", "?ones", "?dropped", "?zeros")
_ONES, _ZEROS = ("Expand", "=one", "?shape"), ("ConstantOfShape", "?count")


def insert_plugin_nodes(plain: Path, out: Path) -> list[str]:
    """Write a copy of a graph with plugin nodes in the place of scoring subgraphs.

    Args:
        plain: an exported graph, its weights beside it.
        out: where the copy goes, in the same folder.

    Returns:
        The names of the plugin nodes. None, and no file is written, where the graph has no scoring.

    Raises:
        ModelError: a subgraph has the names of a scoring one, but other operators.
    """
    assert plain.parent == out.parent, "external data must lie beside the graph"
    model = onnx.load(plain, load_external_data=False)
    graph = gs.import_onnx(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def read(constant: gs.Tensor) -> Any:
        return to_array(tensors[constant.name], base_dir=str(plain.parent))

    scopes = dict.fromkeys(node.name.rsplit("/", 1)[0] for node in graph.nodes)
    outputs = {node.name.rsplit("/", 1)[0]: node.outputs[0] for node in graph.nodes}  # the last of each scope
    names = []
    for scope in scopes:
        if is_pruning_module(scope, "rank", "wpr", _VALUES_COUNT):
            names.append(_page_rank(graph, scope, outputs[scope], read))
        elif is_pruning_module(scope, "similarity"):
            names.append(_similarity(graph, scope, outputs[scope], read))
    if names:
        graph.cleanup().toposort()
        graph.import_domains = [*model.opset_import, onnx.helper.make_opsetid(NAMESPACE, int(VERSION))]
        changed = gs.export_onnx(graph, do_type_check=False, ir_version=model.ir_version, producer_name="ztdeploy")
        write(out, changed.SerializeToString(deterministic=True))
    return names


def _page_rank(graph: gs.Graph, scope: str, scores: gs.Tensor, read: Reader) -> str:
    found: dict[str, gs.Tensor] = {}
    _match(scope, scores, _JOINED, found)
    weighted = _producer(found["?summed"], "Mul")
    filter_heads = weighted is not None and _producer(weighted.inputs[1], "Clip") is not None
    if filter_heads:
        _match(scope, found["?summed"], _FILTERED, found)
    else:
        found["?joined"] = found["?summed"]
    root_mean_square = _producer(found["?joined"], "Mul") is not None
    if root_mean_square:
        _match(scope, found["?joined"], ("Mul", "?shares", "?shares"), found)
    else:
        found["?shares"] = found["?joined"]
    for name, pattern in (("?passes", _PASSES), ("?energy", _ENERGY)) if filter_heads else ():
        _match(scope, found[name], pattern, found)
    _match(scope, found["?shares"], _SHARES, found)
    walk = _walk(scope, found["?scores"])
    start = read(walk["start"]).reshape(-1)
    boosts = [1.0, len(start) ** 0.5, float(len(start))]
    boost = next((kind for kind, first in enumerate(boosts) if math.isclose(start[0], first, rel_tol=1e-6)), None)
    if boost is None or not np.allclose(start[1:], 1.0):
        raise _mismatch(scope, "an unknown start vector")
    survivors = [walk["survivors"]] if "survivors" in walk else []
    low, high = VARIANCE_MIN, VARIANCE_MAX  # unused where no head is filtered
    if filter_heads:
        live = len(start) - (_dropped(scope, survivors[0]) if survivors else 0)
        # The graph's limits are those of (1 + Var) / live, in single precision.
        low, high = (round(read(found[limit]).item() * live - 1, 5) for limit in ("=low", "=high"))
    attributes = {
        "iterations": walk["iterations"],
        "boost": boost,
        "filter_heads": int(filter_heads),
        "variance_min": low,
        "variance_max": high,
        "root_mean_square": int(root_mean_square),
    }
    inputs = [_uncast(walk["attention"]), *survivors]
    if is_pruning_module(scope, _VALUES_COUNT):
        scores = _behind_shares(graph, scope, scores, found["?shares"])
    return _replace(graph, WEIGHTED_PAGE_RANK, scope, inputs, scores, attributes)


def _behind_shares(graph: gs.Graph, scope: str, joined: gs.Tensor, shares: gs.Tensor) -> gs.Variable:
    """A tensor for the plugin's scores, of which the graph makes the joined shares.

    The plugin's scores have mean 1, and are roots of means over the heads; joined shares are sums of squares over the
    heads, in each of which shares sum to 1.
    """
    scores = gs.Variable(f"{scope}/scores", np.float32, joined.shape)
    squares = gs.Variable(f"{scope}/squares", np.float32, joined.shape)
    _, heads, _, tokens = shares.shape
    factor = gs.Constant(f"{scope}/factor", np.float32(heads / tokens**2).reshape(1))
    joined.inputs.clear()
    graph.nodes.append(gs.Node("Mul", squares.name, inputs=[scores, scores], outputs=[squares]))
    graph.nodes.append(gs.Node("Mul", f"{scope}/joined", inputs=[squares, factor], outputs=[joined]))
    return scores


def _walk(scope: str, scores: gs.Tensor) -> dict[str, Any]:
    """Walk back through the iterations `s <- m * (s A)`; all have the same attention matrix and mask."""
    vector, iterations, seen = scores, 0, dict[str, Any]()
    masked = _producer(vector, "Mul") is not None
    step: Pattern = ("MatMul", "?before", "?attention")
    while isinstance(vector, gs.Variable):
        if masked and _producer(vector, "Mul") is not None and isinstance(vector.inputs[0].inputs[0], gs.Constant):
            _match(scope, vector, ("Mul", "=start", "?mask"), seen)
            _match(scope, seen["?mask"], ("Unsqueeze", "?survivors", "#"), seen)
            return {
                "start": seen["=start"],
                "iterations": iterations,
                "attention": seen["?attention"],
                "survivors": seen["?survivors"],
            }
        if _producer(vector, "Div") is not None:
            rescaled: dict[str, gs.Tensor] = {}
            _match(scope, vector, _RESCALED, rescaled)
            vector = rescaled["?vector"]
        seen.pop("?before", None)
        _match(scope, vector, ("Mul", step, "?mask") if masked else step, seen)
        vector, iterations = seen["?before"], iterations + 1
    return {"start": vector, "iterations": iterations, "attention": seen["?attention"]}


def _dropped(scope: str, survivors: gs.Tensor) -> int:
    """How many tokens an S-stage drops; its plugin node is already in place."""
    node = _producer(survivors, SIMILARITY_PRUNE)
    if node is None:
        raise _mismatch(scope, f"survivors '{survivors.name}' that no S-stage gives")
    return int(node.attrs["drop"])


def _similarity(graph: gs.Graph, scope: str, survivors: gs.Tensor, read: Reader) -> str:
    found: dict[str, gs.Tensor] = {}
    _match(scope, survivors, _SURVIVORS, found)
    for name, pattern, value in (("?ones", _ONES, 1), ("?zeros", _ZEROS, 0)):
        if not isinstance(found[name], gs.Constant):  # folded where the batch is fixed
            _match(scope, found[name], pattern, found)
        elif not (read(found[name]) == value).all():
            raise _mismatch(scope, f"'{found[name].name}', which is not {value} throughout")
    _match(scope, found["?dropped"], _DROPPED, found)
    _match(scope, found["?best"], _BEST, found)
    _match(scope, found["?sorted"], _SORTED, found)
    _match(scope, found["?feature"], _FEATURE, found)
    _match(scope, found["?mean"], ("ReduceMean", "?keys", "#"), found)
    _match(scope, found["?order"], ("TopK:1", "?ranked", "=tokens"), found)
    scores, prefix = found["?ranked"], 0
    if (protect := _producer(scores, "Max")) is not None:
        scores, floor = protect.inputs
        prefix = int(np.isinf(read(floor)).sum())
    tokens, first = int(read(found["=tokens"]).item()), int(read(found["=first"]).item())
    group_a = (tokens - prefix) // 2
    if first % tokens != tokens - group_a:
        raise _mismatch(scope, f"a group of {-first % tokens} of {tokens} tokens")
    attributes = {"drop": int(read(found["=drop"]).item()), "prefix_tokens": prefix}
    return _replace(graph, SIMILARITY_PRUNE, scope, [scores, _uncast(found["?keys"])], survivors, attributes)


def _match(scope: str, tensor: gs.Tensor, pattern: Pattern, found: dict[str, gs.Tensor]) -> None:
    """
    Raises:
        ModelError: the subgraph is another one.
    """
    if isinstance(pattern, str):
        if pattern[0] in "#=" and not isinstance(tensor, gs.Constant):
            raise _mismatch(scope, f"'{tensor.name}' instead of a constant")
        if pattern == "#" or found.setdefault(pattern, tensor) is tensor or pattern[0] == "=":
            return
        raise _mismatch(scope, f"'{tensor.name}' instead of '{found[pattern].name}'")
    operator, *inputs = pattern
    operator, _, position = operator.partition(":")
    node = _producer(tensor, operator)
    if node is None or node.outputs.index(tensor) != int(position or 0) or len(node.inputs) != len(inputs):
        raise _mismatch(scope, f"'{tensor.name}' instead of a {operator} of {len(inputs)}")
    for one, wanted in zip(node.inputs, inputs, strict=True):
        _match(scope, one, wanted, found)


def _producer(tensor: gs.Tensor, operator: str) -> gs.Node | None:
    node = tensor.inputs[0] if isinstance(tensor, gs.Variable) and tensor.inputs else None
    return node if node is not None and node.op == operator else None


def _uncast(tensor: gs.Tensor) -> gs.Tensor:
    """The input of a cast from fp16 to fp32, since the kernels take fp16 and compute in fp32."""
    cast = _producer(tensor, "Cast")
    if cast is not None and cast.inputs[0].dtype == np.float16:
        return cast.inputs[0]
    return tensor


def _replace(
    graph: gs.Graph, operator: str, scope: str, inputs: list[gs.Tensor], output: gs.Tensor, attributes: dict[str, Any]
) -> str:
    output.inputs.clear()
    named = {**attributes, "plugin_version": VERSION, "plugin_namespace": NAMESPACE}
    node = gs.Node(operator, f"{scope}/{operator}_0", named, inputs, [output], NAMESPACE)
    graph.nodes.append(node)
    return str(node.name)


def _mismatch(scope: str, found: str) -> ModelError:
    return ModelError(
        f"'{scope}' of the graph has {found}",
        "the subgraph whose place a plugin can take",
        "report it with the model's name; other profiles than TensorRT's still build",
    )

"""Graphs with plugin nodes on a CPU: the operators of the contract in `plugins/README.md`, backed by any functions.

`operators` gives them to `onnx.reference.ReferenceEvaluator`; `run_with_plugins` runs what lies between them in ONNX
Runtime, which is quick enough for real models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from ztdeploy.target.plugins import NAMESPACE, SIMILARITY_PRUNE, WEIGHTED_PAGE_RANK

Array = NDArray[Any]
_LABELS = ("plugin_version", "plugin_namespace")


@dataclass(frozen=True)
class Implementation:
    """The two operators as functions of arrays; attributes come as keywords."""

    page_rank: Callable[..., Array]  #: (attention, survivors or None, *, iterations, boost, ...) -> scores
    similarity: Callable[..., Array]  #: (scores, keys, *, drop, prefix_tokens) -> survivors


def numpy_page_rank(
    attention: Array,
    survivors: Array | None = None,
    *,
    iterations: int,
    boost: int,
    filter_heads: int,
    variance_min: float,
    variance_max: float,
    root_mean_square: int,
) -> Array:
    """`[B, H, N, N]` and `[B, N]` to `[B, N]`."""
    batch, _, tokens, _ = attention.shape
    mask = np.ones((batch, tokens), np.float32) if survivors is None else survivors
    start = np.ones(tokens, np.float32)
    start[0] = tokens ** (boost / 2)
    joined = np.zeros((batch, tokens), np.float32)
    for image in range(batch):
        live = mask[image].sum()
        heads, counting = [], []
        for matrix in attention[image].astype(np.float32):
            scores = mask[image] * start
            for _ in range(iterations):
                scores = mask[image] * (matrix.T @ scores)
                scores = scores / max(scores.max(), np.finfo(np.float32).tiny)
            mean = scores.sum() / live
            scores = scores / mean if mean > 0 else np.zeros_like(scores)
            variance = (scores * scores).sum() / live - 1
            heads.append(scores)
            counting.append(not filter_heads or variance_min <= variance <= variance_max)
        chosen = np.stack([head for head, counts in zip(heads, counting, strict=True) if counts or not any(counting)])
        joined[image] = np.sqrt((chosen * chosen).mean(0)) if root_mean_square else chosen.mean(0)
    return joined


def numpy_similarity(scores: Array, keys: Array, *, drop: int, prefix_tokens: int) -> Array:
    """`[B, N]` and `[B, H, N, d]` to `[B, N]`."""
    survivors = np.ones_like(scores, dtype=np.float32)
    for image, (values, vectors) in enumerate(zip(scores, keys.astype(np.float32), strict=True)):
        feature = vectors.mean(0)
        feature = feature / np.maximum(np.linalg.norm(feature, axis=-1, keepdims=True), 1e-12)
        ranked = values.copy()
        ranked[:prefix_tokens] = np.inf
        order = np.argsort(-ranked, kind="stable")
        size = (len(values) - prefix_tokens) // 2
        group_b, group_a = order[: len(order) - size], order[len(order) - size :]
        best = (feature[group_a] @ feature[group_b].T).max(-1)
        survivors[image, group_a[np.argsort(-best, kind="stable")[:drop]]] = 0
    return survivors


NUMPY = Implementation(numpy_page_rank, numpy_similarity)


def operators(implementation: Implementation) -> list[type[OpRun]]:
    """For `ReferenceEvaluator(..., new_ops=...)`."""

    class PageRank(OpRun):
        op_domain = NAMESPACE

        def _run(self, attention: Array, survivors: Array | None = None, **attributes: Any) -> tuple[Array]:
            return (implementation.page_rank(attention, survivors, **_own(attributes)),)

    class Similarity(OpRun):
        op_domain = NAMESPACE

        def _run(self, scores: Array, keys: Array, **attributes: Any) -> tuple[Array]:
            return (implementation.similarity(scores, keys, **_own(attributes)),)

    PageRank.__name__, Similarity.__name__ = WEIGHTED_PAGE_RANK, SIMILARITY_PRUNE
    return [PageRank, Similarity]


def run_with_plugins(path: Path, feeds: Mapping[str, Array], backing: Implementation | Path) -> dict[str, Array]:
    """Run a graph: the nodes up to each plugin node in ONNX Runtime, the plugin node by the implementation.

    With the path of the plain graph in its place, by the nodes that each stands in for. ONNX Runtime computes fp16 in
    fp32 and rounds only where a session ends, so that in fp16 two runs are equal only if they end in the same places.
    """
    model = onnx.load(path)
    graph = model.graph
    outputs = [value.name for value in graph.output]
    nodes, values = list(graph.node), dict(feeds)
    places = [index for index, node in enumerate(nodes) if node.domain == NAMESPACE]
    for begin, end in zip([0, *(place + 1 for place in places)], [*places, len(nodes)], strict=True):
        part = nodes[begin:end]
        made = {name for node in part for name in node.output}
        later = {name for node in nodes[end:] for name in node.input} | set(outputs)
        taken = {name for node in part for name in node.input} & values.keys()
        if given := sorted(made & later):
            results = _run_part(model, part, sorted(taken), given, values)
            values.update(zip(given, results, strict=True))
        if end < len(nodes):
            node = nodes[end]
            given_values = [values[name] for name in node.input]
            if isinstance(backing, Path):
                values[node.output[0]] = _run_twin(backing, node, given_values)
                continue
            attributes = _own({one.name: onnx.helper.get_attribute_value(one) for one in node.attribute})
            function = backing.page_rank if node.op_type == WEIGHTED_PAGE_RANK else backing.similarity
            values[node.output[0]] = function(*given_values, **attributes)
    return {name: values[name] for name in outputs}


def _run_twin(plain: Path, node: onnx.NodeProto, values: list[Array]) -> Array:
    """What the plain graph's nodes between the same values make of them.

    Where the values of scores count, the plain graph has joined shares in their place.
    """
    model = onnx.load(plain)
    producers = {name: one for one in model.graph.node for name in one.output}
    (output,), scope = node.output, node.name.rpartition("/")[0]
    by_value = output not in producers
    if by_value:
        output = [one.output[0] for one in model.graph.node if one.name.rpartition("/")[0] == scope][-1]
    wanted, waiting = set[str](), [output]
    while waiting:
        name = waiting.pop()
        if name in producers and name not in node.input and producers[name].name not in wanted:
            wanted.add(producers[name].name)
            waiting.extend(producers[name].input)
    part = [one for one in model.graph.node if one.name in wanted]
    inputs = dict(zip(node.input, values, strict=True))
    (result,) = _run_part(model, part, list(inputs), [output], inputs)
    _, heads, tokens, _ = values[0].shape if by_value else (0, 1, 1, 0)
    return np.asarray(np.sqrt(result * (tokens**2 / heads)) if by_value else result)


def _run_part(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str], values: Any
) -> list[Array]:
    element = {name: onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype) for name in inputs}
    used = {name for node in nodes for name in node.input}
    part = onnx.helper.make_graph(
        nodes,
        "part",
        [onnx.helper.make_tensor_value_info(name, element[name], values[name].shape) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [tensor for tensor in model.graph.initializer if tensor.name in used],
    )
    imports = [one for one in model.opset_import if one.domain == ""]
    proto = onnx.helper.make_model(part, opset_imports=imports, ir_version=model.ir_version)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(outputs, {name: values[name] for name in inputs}))


def _own(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name not in _LABELS}

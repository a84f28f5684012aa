"""Rows that nothing reads are not computed: where they are picked, what works on fewer rows, and that results stay."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from helpers.graphs import SPEC, trace_of
from helpers.models import IMAGE_SIZE, PREPROCESS, pixels, pruned, schedule, variant

import ztdeploy.host.graph
from ztdeploy.core.cost import plan_gmacs
from ztdeploy.core.names import in_pruning_layer
from ztdeploy.core.plan import plan
from ztdeploy.core.schedule import LayerSpec
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import PASSES
from ztdeploy.host.graph.live_rows import live_rows
from ztdeploy.host.graph.rewriting import shape_of
from ztdeploy.host.graph.tidying import check_static_shapes
from ztdeploy.host.models.vit import VitAdapter

TOKENS, KEPT = 17, 13  # of the tiny model: around the pruning layer behind its second block
OWN = ("live-rows", "static-shapes")
#: Nodes of a block behind its attention.
BEHIND = ("attn/proj/MatMul_0", "norm2/LayerNormalization_0", "mlp/fc1/MatMul_0", "Add_1")


@cache
def traced(name: str, method: str, layers: tuple[LayerSpec, ...] = ()) -> ir.Model:
    """What the passes ahead of `live_rows` leave, since a trace takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        others = {name: target for name, target in PASSES.items() if name not in OWN}
        patch.setattr(ztdeploy.host.graph, "PASSES", others)
        return export_onnx(pruned(variant(name), method, *layers), PREPROCESS, SPEC)


@cache
def exported(name: str, method: str, *, early: bool, layers: tuple[LayerSpec, ...] = ()) -> ir.Model:
    """Of one trace, with `live_rows` or without."""
    model = traced(name, method, layers).clone()
    if early:
        live_rows(model)
    check_static_shapes(model)
    return model


def run(model: ir.Model, **feeds: np.ndarray) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    content = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def shape(model: ir.Model, name: str) -> ir.Shape:
    return shape_of(next(node for node in model.graph if node.name == name).outputs[0])


def rows(model: ir.Model, name: str) -> object:
    return shape(model, name)[1]


def macs(model: ir.Model) -> int:
    """Multiply-adds for one image, without those of pruning layers."""
    total = 0
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm", "Conv") and not in_pruning_layer(node.name):
            left, right = (shape_of(value) for value in node.inputs[:2])
            inner = math.prod(right[1:]) if node.op_type == "Conv" else left[-1]
            total += math.prod(shape_of(node.outputs[0])[1:]) * inner
    return total


def counted(name: str, method: str, layers: tuple[LayerSpec, ...] = ()) -> int:
    architecture = VitAdapter(variant(name), IMAGE_SIZE).architecture
    return round(plan_gmacs(architecture, plan(schedule(method, *layers), architecture)) * 1e9)


#: What picks the rows, in one model; and models around one that picks them.
CHOICES = [("class-token", method) for method in ("zero-tprune", "wpr", "random", "slice")]
CHOICES += [(name, "zero-tprune") for name in ("average-pool", "distilled", "qk-norm-layer-scale")]


@pytest.mark.parametrize(("name", "method"), CHOICES)
@pytest.mark.short("[class-token-", "[distilled-zero-tprune")
def test_the_outputs_are_those_of_the_late_choice(name: str, method: str) -> None:
    image = np.asarray(pixels(3, seed=2).numpy())
    late, early = (run(exported(name, method, early=early), image=image) for early in (False, True))
    for expected, found in zip(late, early, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["zero-tprune", "random", "slice"])
def test_everything_behind_the_attention_works_on_the_kept_rows(method: str) -> None:
    late, early = (exported("class-token", method, early=early) for early in (False, True))
    for name in BEHIND:
        assert (rows(late, f"blocks.1/{name}"), rows(early, f"blocks.1/{name}")) == (TOKENS, KEPT)
    assert rows(early, "blocks.1/attn/qkv/MatMul_0") == TOKENS, "every token is attended to"
    assert rows(early, "blocks.0/mlp/fc1/MatMul_0") == TOKENS


@pytest.mark.parametrize(
    ("name", "read"),
    [("class-token", 1), ("distilled", 2), *((name, None) for name in ("average-pool", "attention-pool"))]
    + [pytest.param(name, 1, marks=pytest.mark.long) for name in ("qk-norm-layer-scale", "registers")],
)
def test_the_last_block_computes_what_the_head_reads(name: str, read: int | None) -> None:
    model, found = trace_of(name), VitAdapter(variant(name), IMAGE_SIZE).architecture
    left = rows(model, "blocks.3/attn/qkv/MatMul_0")
    assert found.read_tokens == read
    assert {rows(model, f"blocks.3/{node}") for node in BEHIND} == {read or left}
    for product in ("attn/MatMul_0", "attn/MatMul_1"):  # by head
        assert shape(model, f"blocks.3/{product}")[2] == (read or left)
    assert rows(model, "blocks.2/Add_1") == left, "keys and values are those of all tokens"


LAST = (LayerSpec(block=2, keep_ratio=0.7), LayerSpec(block=4, keep_ratio=0.7))


@pytest.mark.long
@pytest.mark.parametrize("method", ["tome", "zero-tprune"])
def test_a_layer_at_the_last_block_decides_as_before(method: str) -> None:
    """Inside or behind it; its choice is an output of the graph."""
    late, early = (exported("class-token", method, early=early, layers=LAST) for early in (False, True))
    image = np.asarray(pixels(3, seed=2).numpy())
    for expected, found in zip(run(late, image=image), run(early, image=image), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert macs(early) == counted("class-token", method, LAST)


@pytest.mark.parametrize(
    ("name", "method"), [("class-token", method) for method in ("zero-tprune", "slice", "tofu", "diffrate", "ppt")]
)
def test_multiply_adds_are_those_that_the_manifest_tells(name: str, method: str) -> None:
    assert macs(exported(name, method, early=True)) == counted(name, method)
    assert macs(exported(name, method, early=False)) > counted(name, method)


@pytest.mark.parametrize("node", ["blocks.3/Slice_0", "blocks.3/attn/Slice_0"])
def test_another_row_would_be_noticed(node: str) -> None:
    model = exported("class-token", "zero-tprune", early=True).clone()
    for part, places in (("starts", [1]), ("ends", [2])):
        model.graph.initializers[f"{node}/{part}"].const_value = ir.tensor(np.array(places))
    image = np.asarray(pixels(3, seed=2).numpy())
    (right, *_), (wrong, *_) = (
        run(one, image=image) for one in (exported("class-token", "zero-tprune", early=True), model)
    )
    assert np.abs(right - wrong).max() > 100 * 1e-4, "far more than parity allows"


BODY = """
    a = MatMul(x, w)
    b = {between}
    c = Add(x, b)
    y = Slice(c, zero, two, one)
"""
HEAD = """<ir_version: 9, opset_import: ["" : 20]>
g (float[n, 5, 3] x) => (float[n, 2, 3] y{more})
<float[3, 3] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}},
 float[1, 5, 1] places = {{1, 2, 3, 4, 5}}>
{{{body}}}"""


def block(between: str, more: str = "") -> ir.Model:
    proto = onnx.parser.parse_model(HEAD.format(more=more, body=BODY.format(between=between)))
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    for index, node in enumerate(model.graph):
        node.name = f"blocks.0/{'prune/' if node.op_type == 'Slice' else ''}{node.op_type}_{index}"
    return model


@pytest.mark.parametrize(
    ("between", "more", "narrow"),
    [
        ("Gelu(a)", "", True),
        ("Softmax <axis = 1> (a)", "", False),  # tokens meet
        ("ReduceMean <keepdims = 1> (a, one)", "", False),
        ("Mul(a, places)", "", False),  # every token has another factor
        ("Gelu(a)", ", float[n, 5, 3] a", False),  # somebody else reads all rows
    ],
)
def test_only_what_treats_tokens_alike_and_serves_nobody_else_is_narrowed(
    between: str, more: str, narrow: bool
) -> None:
    model, image = block(between, more), np.arange(30, dtype=np.float32).reshape(2, 5, 3) / 30
    before = run(model, x=image)
    live_rows(model)
    for expected, found in zip(before, run(model, x=image), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert product.outputs[0].shape is not None
    assert (product.outputs[0].shape[1] == 2) is narrow


def test_two_exports_give_the_same_bytes() -> None:
    """One of them with all passes of the table."""
    models = (exported("class-token", "zero-tprune", early=True), trace_of("class-token"))
    contents = [ir.serde.serialize_model(model).SerializeToString(deterministic=True) for model in models]
    assert contents[0] == contents[1]

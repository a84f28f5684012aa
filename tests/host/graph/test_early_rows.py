"""Rows that go are not computed: where they are picked, what works on fewer rows, and that results stay."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from helpers.graphs import SPEC, trace_of
from helpers.models import PREPROCESS, pixels, pruned, variant

import ztdeploy.host.graph
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph.early_rows import early_rows

TOKENS, KEPT = 17, 13  # of the tiny model: around the pruning layer behind its second block


@cache
def exported(name: str, method: str, *, early: bool) -> ir.Model:
    """Of one trace, since it takes seconds: what the passes leave but for `early_rows`, and the same with it."""
    if early:
        model = exported(name, method, early=False).clone()
        early_rows(model)
        return model
    with pytest.MonkeyPatch.context() as patch:
        others = {name: target for name, target in ztdeploy.host.graph.PASSES.items() if name != "early-rows"}
        patch.setattr(ztdeploy.host.graph, "PASSES", others)
        return export_onnx(pruned(variant(name), method), PREPROCESS, SPEC)


def run(model: ir.Model, **feeds: np.ndarray) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    content = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def rows(model: ir.Model, name: str) -> object:
    shape = next(node for node in model.graph if node.name == name).outputs[0].shape
    assert shape is not None
    return shape[1]


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
    for name in ("attn/proj/MatMul_0", "norm2/LayerNormalization_0", "mlp/fc1/MatMul_0", "Add_1"):
        assert (rows(late, f"blocks.1/{name}"), rows(early, f"blocks.1/{name}")) == (TOKENS, KEPT)
    assert rows(early, "blocks.1/attn/qkv/MatMul_0") == TOKENS, "every token is attended to"
    assert rows(early, "blocks.0/mlp/fc1/MatMul_0") == TOKENS


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
    early_rows(model)
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

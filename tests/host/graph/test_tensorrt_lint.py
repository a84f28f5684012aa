"""What TensorRT would refuse is refused before, by node and block; what it takes passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.errors import refused
from helpers.models import PREPROCESS, pruned, tiny_vit

from ztdeploy.core.errors import ModelError
from ztdeploy.core.methods import METHODS
from ztdeploy.core.schedule import LayerSpec
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.graph.tensorrt_lint import TOPK_LIMIT, check_tensorrt

SPEC = GraphSpec(20, "uint8", None)


def graph(body: str, name: str = "blocks.3/prune/select/Node_0", **constants: Any) -> ir.Model:
    """A model whose last node bears the name; constants may be of any size."""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]>\n{body}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items())
    proto.graph.node[-1].name = name
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))


TOPK = "g (float[n, 9000] x) => (float[n, k] y)\n{ y, z = TopK (x, count) }"
SCATTER = "g (float[n, 4] x, int32[n, 2] i, float[n, 2] u) => (float[n, 4] y)\n"
REFUSED = {
    "TopK of more than its limit": (graph(TOPK, count=np.array([TOPK_LIMIT + 1])), "chooses 3841 elements"),
    "TopK of a number that is not fixed": (
        graph(
            "g (float[n, 9] x, int32[1] c) => (float[n, k] y)\n{ count = Cast <to = 7> (c)\n y, z = TopK (x, count) }"
        ),
        "not fixed",
    ),
    "ScatterElements with a reduction": (
        graph(SCATTER + '{ y = ScatterElements <axis = 1, reduction = "add"> (x, i, u) }'),
        "reduction 'add'",
    ),
    "ScatterND with a reduction": (
        graph(
            "g (float[4] x, float[2] u) => (float[4] y)\n"
            '<int64[2, 1] i = {0, 1}>\n{ y = ScatterND <reduction = "max"> (x, i, u) }'
        ),
        "reduction 'max'",
    ),
    "NonZero": (graph("g (float[n, 4] x) => (int32[2, k] y)\n{ y = NonZero (x) }"), "is a NonZero"),
    "Unique": (graph("g (float[n] x) => (float[k] y)\n{ y = Unique (x) }"), "is a Unique"),
    "Compress": (graph("g (float[4] x, bool[4] c) => (float[k] y)\n{ y = Compress (x, c) }"), "is a Compress"),
    "fp64": (
        graph("g (float[n] x) => (float[n] y)\n{ d = Cast <to = 11> (x)\n e = Relu (d)\n y = Cast <to = 1> (e) }"),
        "computes in fp64",
    ),
    "arithmetic in uint8": (
        graph("g (uint8[n, 4] x) => (uint8[4, n] y)\n{ y = Transpose <perm = [1, 0]> (x) }"),
        "computes in uint8",
    ),
    "an int64 beyond 32 bits": (
        graph(
            "g (int32[n] x) => (int32[n] y)\n{ a = Cast <to = 7> (x)\n b = Add (a, big)\n y = Cast <to = 6> (b) }",
            big=2**40,
        ),
        "'big', which does not fit 32 bits",
    ),
    "an int64 below 32 bits": (
        graph(
            "g (int32[n] x) => (int32[n] y)\n{ a = Cast <to = 7> (x)\n b = Add (a, big)\n y = Cast <to = 6> (b) }",
            big=-(2**40),
        ),
        "'big', which does not fit 32 bits",
    ),
}
ACCEPTED = {
    "TopK at its limit": graph(TOPK, count=np.array([TOPK_LIMIT])),
    "a scatter that replaces": graph(SCATTER + "{ y = ScatterElements <axis = 1> (x, i, u) }"),
    "a scatter that says so": graph(SCATTER + '{ y = ScatterElements <axis = 1, reduction = "none"> (x, i, u) }'),
    "an image in uint8 that is cast first": graph("g (uint8[n, 4] x) => (float[n, 4] y)\n{ y = Cast <to = 1> (x) }"),
    "the shape of an image in uint8": graph(
        "g (uint8[n, 4] x) => (int32[2] y)\n{ s = Shape (x)\n y = Cast <to = 6> (s) }"
    ),
    "a slice to the end": graph(
        "g (float[n, 4] x) => (float[n, 3] y)\n<int64[1] a = {1}>\n{ y = Slice (x, a, end, a) }",
        end=np.array([np.iinfo(np.int64).max]),
    ),
}


@pytest.mark.parametrize(("model", "words"), REFUSED.values(), ids=REFUSED)
def test_what_it_refuses_it_names(model: ir.Model, words: str) -> None:
    message = refused(lambda: check_tensorrt(model), words, "build with a CPU profile", kind=ModelError)
    culprit = message.split("'")[1]
    assert culprit in [node.name for node in model.graph]
    if culprit.startswith("blocks.3"):
        assert f"node '{culprit}' (of blocks.3) " in message


@pytest.mark.parametrize("model", ACCEPTED.values(), ids=ACCEPTED)
def test_what_it_takes_passes(model: ir.Model) -> None:
    check_tensorrt(model)


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        ("g (int64[n] x) => (int32[n] y)\n{ y = Cast <to = 6> (x) }", "the input 'x' of type int64"),
        ("g (int32[n] x) => (int64[n] y)\n{ y = Cast <to = 7> (x) }", "the output 'y' of type int64"),
        ("g (double[n] x) => (float[n] y)\n{ y = Cast <to = 1> (x) }", "fp64"),
    ],
)
def test_inputs_and_outputs_have_32_bits(signature: str, words: str) -> None:
    refused(lambda: check_tensorrt(graph(signature)), words, kind=ModelError)


def test_a_node_outside_the_blocks_has_no_block() -> None:
    model = graph("g (float[n, 4] x) => (int32[2, k] y)\n{ y = NonZero (x) }", name="head/NonZero_0")
    message = refused(lambda: check_tensorrt(model), "node 'head/NonZero_0' is a NonZero", kind=ModelError)
    assert "(of " not in message


def test_how_many_more_there_are() -> None:
    body = "g (float[n, 4] x) => (int32[2, k] y)\n{ z = NonZero (x)\n w = NonZero (z)\n y = Unique (w) }"
    message = refused(lambda: check_tensorrt(graph(body)), ", and 2 more; expected", kind=ModelError)
    assert "is a NonZero" in message


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.short("[zero-tprune]", "[novelty-merge]")
def test_the_graphs_of_every_method_pass(method: str) -> None:
    layers = (LayerSpec(block=1, keep_ratio=0.6, iterations=2),)
    traced = export_onnx(pruned(tiny_vit(depth=2), method, *layers), PREPROCESS, SPEC)
    for spec in (SPEC, replace(SPEC, precision="fp16"), replace(SPEC, precision="fp16", turing=True)):
        check_tensorrt(specialise(traced, spec))

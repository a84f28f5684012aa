"""Blocks cut out of a dense graph: they compute what PyTorch's do, at any batch and number of tokens."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from helpers.models import IMAGE_SIZE, PREPROCESS, variant

from ztdeploy.core.keep_ratio import uniform_schedule
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec
from ztdeploy.host.graph.parts import blocks_graph
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning.pruned_model import PrunedModel


def dense_graph(model, batch: int | None) -> ir.Model:
    with PrunedModel(VitAdapter(model, IMAGE_SIZE), uniform_schedule(1.0, 4)) as pruned:
        return export_onnx(pruned, PREPROCESS, GraphSpec(20, "uint8", batch))


def run(model: ir.Model, tokens: np.ndarray) -> np.ndarray:
    content = ir.serde.serialize_model(model).SerializeToString()
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"tokens": tokens})[0]


@pytest.mark.parametrize(("name", "batch"), [("class-token", None), ("qk-norm-layer-scale", 2)])
def test_as_the_blocks_themselves(name, batch):
    model = variant(name)
    graph = dense_graph(model, batch)
    before = ir.serde.serialize_model(graph).SerializeToString(deterministic=True)
    cut = blocks_graph(graph, range(1, 3))
    assert cut is not None
    assert ir.serde.serialize_model(graph).SerializeToString(deterministic=True) == before, "the graph stays as it is"
    assert {(node.name or "").split("/")[0] for node in cut.graph} == {"blocks.1", "blocks.2"}
    own = {node.op_type for node in graph.graph if (node.name or "").startswith(("blocks.1/", "blocks.2/"))}
    assert {node.op_type for node in cut.graph} == own, "and none is added"
    for shape in ((1, 17, 48), (3, 5, 48), (2, 33, 48)):
        tokens = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = model.blocks[2](model.blocks[1](tokens)).numpy()
        np.testing.assert_allclose(run(cut, tokens.numpy()), expected, atol=1e-4)


VALUE = "[batch, 4, 8]"


def made_of(*lines: str) -> ir.Model:
    """A graph whose nodes are named as those of block 0."""
    from test_passes import parse

    signature = f"blocks (float{VALUE} x, float{VALUE} other) => (float{VALUE} y)"
    model = parse(f"{signature} {{ {' '.join(lines)} }}")
    for position, node in enumerate(model.graph):
        node.name = f"blocks.0/{node.op_type}_{position}" if node.outputs[0].name != "y" else "head/Y"
    return model


@pytest.mark.parametrize(
    ("lines", "possible"),
    [
        (["a = Relu(x)", "y = Neg(a)"], True),
        (["a = Add(x, other)", "y = Neg(a)"], False),  # from two values
        (["a = Relu(x)", "b = Abs(a)", "y = Add(a, b)"], False),  # two values of it are read
        (["s = Constant<value_ints = [-1, 8]>()", "f = Reshape(x, s)", "y = Neg(x)"], False),  # nothing is read
        (["y = Neg(x)"], False),  # there are none
    ],
)
def test_what_can_be_cut_out(lines, possible):
    assert (blocks_graph(made_of(*lines), range(1)) is not None) is possible


@pytest.mark.parametrize(
    ("target", "back", "possible"), [([-1, 4, 2, 4], [-1, 4, 8], True), ([-1, 8], [-1, 4, 8], False)]
)
def test_reshapes(target, back, possible):
    """One that mixes the tokens with another axis depends on their number."""
    from ztdeploy.host.graph.rewriting import constant

    model = made_of("s = Constant<value_ints = [0]>()", "a = Relu(x)", "b = Abs(a)", "y = Neg(b)")
    graph = model.graph
    relu = next(node for node in graph if node.op_type == "Relu")
    after = next(node for node in graph if node.op_type == "Abs")
    for name, sizes in (("there", target), ("back", back)):
        reshape = ir.Node("", "Reshape", [relu.outputs[0], constant(graph, name, sizes, ir.DataType.INT64)])
        reshape.name = f"blocks.0/Reshape_{name}"
        reshape.outputs[0].name, reshape.outputs[0].dtype = name + "_out", ir.DataType.FLOAT
        reshape.outputs[0].shape = ir.Shape(["batch" if size == -1 and len(sizes) > 2 else 4 * 8 for size in sizes])
        if len(sizes) > 2:
            reshape.outputs[0].shape = ir.Shape(["batch", *sizes[1:]])
        graph.insert_before(after, reshape)
        after.replace_input_with(0, reshape.outputs[0])
        relu = reshape
    assert (blocks_graph(model, range(1)) is not None) is possible

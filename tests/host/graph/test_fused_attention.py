"""Attention in ONNX Runtime's own operator: which blocks get it, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from helpers.graphs import SPEC, check_declared_types, trace_of
from helpers.models import PREPROCESS, pixels, pruned, variant

from ztdeploy.core.names import block_of, in_pruning_layer
from ztdeploy.core.preprocess_spec import PreprocessSpec
from ztdeploy.core.schedule import LayerSpec, PruningSchedule
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.graph.fused_attention import fuse_attention, separate_projections
from ztdeploy.host.models import adapt
from ztdeploy.host.pruning.pruned_model import PrunedModel

FUSED = replace(SPEC, fused_attention_from=1)
OPERATOR = "MultiHeadAttention_0"


def run(model: ir.Model, images: np.ndarray) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    content = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: images}))


def fused_blocks(model: ir.Model) -> list[str]:
    return [str(node.name) for node in model.graph if node.domain == "com.microsoft"]


def nodes_of(model: ir.Model, block: int) -> list[tuple[bool, str]]:
    """Operators, and whether they belong to a pruning layer, in some order."""
    nodes = [node for node in model.graph if block_of(node.name) == block]
    return sorted((in_pruning_layer(node.name), node.op_type) for node in nodes)


@pytest.mark.parametrize("name", ["class-token", "average-pool", "distilled"])
def test_blocks_without_a_pruning_layer_are_fused_and_the_result_stays(name: str) -> None:
    plain, fused = trace_of(name), specialise(trace_of(name), FUSED)
    last = [f"blocks.3/attn/{OPERATOR}"] if name == "average-pool" else []  # others need few rows of its attention
    assert fused_blocks(fused) == [f"blocks.0/attn/{OPERATOR}", *last]
    assert len(nodes_of(fused, 0)) < len(nodes_of(plain, 0)), "what it replaces is gone"
    assert fused_blocks(trace_of(name)) == [], "the trace itself is as it was"
    images = np.asarray(pixels(3, seed=5).numpy())
    for expected, found in zip(run(plain, images), run(fused, images), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", [FUSED, replace(FUSED, precision="int8")], ids=["fp32", "int8"])
@pytest.mark.parametrize("name", ["class-token", "qk-norm-layer-scale"])
def test_three_products_give_the_bits_of_one(name: str, spec: GraphSpec) -> None:
    model, images = trace_of(name), np.asarray(pixels(3, seed=5).numpy())
    expected = run(specialise(model, replace(spec, fused_attention_from=None)), images)
    separate_projections(model := model.clone(), spec)
    assert "Gather" not in {node.op_type for node in model.graph if block_of(node.name) in (0, 3)}
    found = run(specialise(model, replace(spec, fused_attention_from=None)), images)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_integer_projections_are_fused_too() -> None:
    int8 = replace(SPEC, precision="int8")
    plain, fused = (
        specialise(trace_of("average-pool"), replace(int8, fused_attention_from=least)) for least in (None, 1)
    )
    assert fused_blocks(fused) == [f"blocks.{block}/attn/{OPERATOR}" for block in (0, 3)]
    images = np.asarray(pixels(3, seed=5).numpy())
    np.testing.assert_allclose(run(fused, images)[0], run(plain, images)[0], atol=0.1)


@pytest.mark.parametrize("name", ["average-pool", "registers"])
def test_blocks_that_weigh_tokens_by_size_are_fused_too(name: str) -> None:
    """Tokens of unlike sizes enter the blocks 2 and 3, and what a layer reads of keys keeps no block plain."""
    trace, images = trace_of(name, "tome"), np.asarray(pixels(3, seed=5).numpy())
    fused = specialise(trace, FUSED)
    check_declared_types(fused)
    blocks = range(4 if name == "average-pool" else 3)  # the other's head reads one row of its last attention
    assert fused_blocks(fused) == [f"blocks.{block}/attn/{OPERATOR}" for block in blocks]
    for expected, found in zip(run(trace, images), run(fused, images), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_the_same_blocks_of_timm_and_of_transformers_become_the_same_operators() -> None:
    pytest.importorskip("transformers")
    from helpers.families import library_model
    from timm.models.vision_transformer import VisionTransformer

    from ztdeploy.host.models.hf_model import HubModel

    size, sizes = 80, {"embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 2, "num_classes": 0}
    twins = (VisionTransformer(img_size=size, **sizes), HubModel(library_model("hf/ViTMSNModel", depth=2), None))
    preprocess = PreprocessSpec(image_size=size, resize=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    found = []
    for model in twins:
        with PrunedModel(adapt(model, size), PruningSchedule(name="test", layers=())) as module:
            found.append(specialise(export_onnx(module, preprocess, SPEC), FUSED))
    assert nodes_of(found[0], 0) == nodes_of(found[1], 0)
    assert fused_blocks(found[1]) == [f"blocks.{block}/attention/{OPERATOR}" for block in (0, 1)]


def test_a_method_that_reads_no_attention_leaves_every_block_to_be_fused() -> None:
    """But for the last block, of which the head reads one token."""
    assert len(fused_blocks(specialise(trace_of("class-token", "slice"), FUSED))) == 3


def test_only_blocks_with_enough_tokens_are_fused() -> None:
    tokens = 16  # of the tiny model; 12 and 8 behind its pruning layers
    for least, expected in ((tokens, ["blocks.0"]), (tokens + 1, []), (8, ["blocks.0", "blocks.3"])):
        fused = specialise(trace_of("average-pool"), replace(SPEC, fused_attention_from=least))
        assert [name.partition("/")[0] for name in fused_blocks(fused)] == expected


def test_normalised_queries_and_keys_stay_plain() -> None:
    """The operator projects and multiplies at once, so nothing can come between."""
    fused = specialise(trace_of("qk-norm-layer-scale"), FUSED)
    assert fused_blocks(fused) == []


def test_attention_that_something_else_reads_stays_plain() -> None:
    model = export_onnx(
        pruned(variant("class-token"), "zero-tprune", LayerSpec(block=1, keep_ratio=1.0)), PREPROCESS, SPEC
    )
    tapped = next(node for node in model.graph if node.name == "blocks.2/attn/Softmax_0")
    model.graph.outputs.append(tapped.outputs[0])
    separate_projections(model, FUSED)
    fuse_attention(model, FUSED)
    assert len(fused_blocks(model)) == 2
    assert f"blocks.2/attn/{OPERATOR}" not in fused_blocks(model)

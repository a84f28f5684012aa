"""Attention in ONNX Runtime's own operator: which blocks get it, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from helpers.graphs import SPEC, trace_of
from helpers.models import PREPROCESS, pixels, pruned, variant

from ztdeploy.core.schedule import LayerSpec
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import specialise
from ztdeploy.host.graph.fused_attention import fuse_attention

FUSED = replace(SPEC, fused_attention_from=1)


def run(model: ir.Model, images: np.ndarray) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    content = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: images}))


def fused_blocks(model: ir.Model) -> list[str]:
    return [str(node.name) for node in model.graph if node.domain == "com.microsoft"]


@pytest.mark.parametrize("name", ["class-token", "average-pool", "distilled"])
def test_blocks_without_a_pruning_layer_are_fused_and_the_result_stays(name: str) -> None:
    plain, fused = trace_of(name), specialise(trace_of(name), FUSED)
    last = ["blocks.3/attn/Attention_0"] if name == "average-pool" else []  # others need few rows of its attention
    assert fused_blocks(fused) == ["blocks.0/attn/Attention_0", *last]
    assert len(list(fused.graph)) < len(list(plain.graph)), "what it replaces is gone"
    assert fused_blocks(plain) == [], "the trace itself is as it was"
    images = np.asarray(pixels(3, seed=5).numpy())
    for expected, found in zip(run(plain, images), run(fused, images), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


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
    fuse_attention(model, FUSED)
    assert len(fused_blocks(model)) == 2
    assert "blocks.2/attn/Attention_0" not in fused_blocks(model)

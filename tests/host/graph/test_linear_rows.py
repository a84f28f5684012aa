"""Linear layers over the rows of all images: which there are, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from helpers.graphs import SPEC, check_declared_types, trace_of
from helpers.models import pixels
from helpers.sessions import run_graph

from ztdeploy.host.graph import GraphSpec, specialise

ROWS = replace(SPEC, rows=True)


def linear_layers(model: ir.Model, operator: str) -> set[str]:
    """The layers of blocks that an operator computes, without the pruning layers' own products."""
    nodes = [node for node in model.graph if node.op_type == operator and node.inputs[1].is_initializer()]
    names = {str(node.name).rpartition("/")[0] for node in nodes}
    return {name for name in names if name.startswith("blocks.") and "prune" not in name}


@pytest.mark.parametrize("name", ["class-token", "average-pool", "qk-norm-layer-scale"])
def test_all_but_those_in_front_of_gelu_add_their_bias_themselves(name: str) -> None:
    plain, model = trace_of(name), specialise(trace_of(name), ROWS)
    gelu = {f"blocks.{block}/mlp/fc1" for block in range(4)}
    assert linear_layers(model, "Gemm") == linear_layers(plain, "MatMul") - gelu
    assert linear_layers(model, "MatMul") == gelu
    check_declared_types(model)
    assert linear_layers(plain, "Gemm") == set(), "the trace itself is as it was"


@pytest.mark.parametrize("spec", [ROWS, replace(ROWS, fused_attention_from=1)], ids=["plain", "fused attention"])
def test_results_stay(spec: GraphSpec) -> None:
    plain, model = trace_of("class-token"), specialise(trace_of("class-token"), spec)
    for images in (np.asarray(pixels(count, seed=5).numpy()) for count in (1, 3)):
        before, after = (run_graph(one, image=images) for one in (plain, model))
        assert before.keys() == after.keys()
        for output, expected in before.items():
            np.testing.assert_allclose(after[output], expected, rtol=1e-5, atol=1e-5)

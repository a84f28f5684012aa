"""The roofline counts what nodes compute and move; the sum over an engine is what its plan says."""

from __future__ import annotations

import pytest

pytest.importorskip("benchmarks.limits", reason="the benchmarks lie in a checkout only")

import numpy as np

from benchmarks.limits import Cost, Peaks, cost_of, profiled, table
from ztdeploy.core.bundle import read_bundle
from ztdeploy.target.backends.base import NodeRun


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "expected"),
    [
        ("MatMul", [(2, 5, 8)], [(2, 5, 6)], Cost(macs=480, weights=4 * 48, activations=4 * 140)),
        ("DynamicQuantizeMatMul", [(1, 5, 8), (6,)], [(1, 5, 6)], Cost(0, 240, 48, 4 * 76)),
        ("FusedMatMul", [(1, 2, 5, 4), (1, 2, 4, 5)], [(1, 2, 5, 5)], Cost(macs=200, activations=4 * 130)),
        ("Conv", [(1, 3, 8, 8), (7, 3, 4, 4), (7,)], [(1, 7, 2, 2)], Cost(1344, 0, 1344, 4 * (192 + 7 + 28))),
        ("MultiHeadAttention", [(1, 5, 8)] * 3, [(1, 5, 8)], Cost(macs=400, activations=4 * 160)),
        ("Softmax", [(1, 2, 5, 5)], [(1, 2, 5, 5)], Cost(activations=400)),
        ("Reshape", [(1, 50), (2,)], [(5, 10)], Cost()),
    ],
)
def test_what_a_node_does_follows_from_its_shapes(operator, inputs, outputs, expected):
    assert cost_of(NodeRun("node", operator, 1.0, tuple(inputs), tuple(outputs))) == expected


def test_a_part_is_bound_by_its_products_or_by_its_bytes():
    peaks = Peaks(fp32=1e9, int8=4e9, memory=1e9, cache=1e10)
    assert Cost(macs=2e6, integer_macs=4e6, weights=1e6).bound_ms(peaks) == pytest.approx(3)
    assert Cost(macs=2e6, weights=5e6, activations=1e7).bound_ms(peaks) == pytest.approx(6)


def test_the_products_of_an_engine_are_those_of_its_plan(digits_bundle):
    bundle = read_bundle(digits_bundle)
    pixels = np.zeros((1, *bundle.manifest.preprocess.shape), np.uint8)
    for variant in (bundle.manifest.dense, bundle.variant()):
        nodes, call_ms = profiled(bundle, variant, "cpu", pixels, threads=1)
        found = sum((cost_of(node.run) for node in nodes), Cost())
        assert found.macs / 1e9 == pytest.approx(variant.gmacs, rel=0.02)
        rows = table(nodes, call_ms, variant.plan.tokens_per_block, Peaks(1e11, 4e11, 2e10, 1e11)).splitlines()
        assert {len(row.split("|")) for row in rows} == {9}
        assert any(row.startswith("| block 1, ") for row in rows)

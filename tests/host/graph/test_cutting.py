"""A graph that is cut in front of a block: prefix and tail compute what it does, to the last bit where types agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from helpers.errors import refused
from helpers.graphs import SPEC, check_declared_types, trace_by, trace_of
from helpers.models import PREPROCESS, VARIANTS, pixels, pruned, variant
from helpers.sessions import run_graph, serialised
from test_passes import parse

from ztdeploy.core.errors import ModelError
from ztdeploy.core.methods import METHODS
from ztdeploy.core.names import block_of
from ztdeploy.core.profile import Int8Options
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.graph.cutting import cut
from ztdeploy.host.graph.ranges import measure_ranges

#: The block of the first pruning layer of `trace_of`, from 0.
BLOCK = 1


def check_cut(model: ir.Model, block: int, batches: tuple[int, ...] = (1, 3), apart: float = 0) -> None:
    """Both halves are valid, end and begin where they should, and give all that the whole gives.

    Args:
        apart: how far what they give may be from what the whole gives.
    """
    before = serialised(model)
    prefix, tail = cut(model, block)
    assert serialised(model) == before, "the graph stays as it is"
    assert [serialised(one) for one in cut(model, block)] == [serialised(prefix), serialised(tail)]
    inside = [{block_of(node.name) for node in one.graph} - {None} for one in (prefix, tail)]
    assert not inside[0] or max(filter(lambda one: one is not None, inside[0])) < block  # type: ignore[type-var]
    assert min(filter(lambda one: one is not None, inside[1])) == block  # type: ignore[type-var]
    for batch in batches:
        feed = pixels(batch).numpy()
        whole, tokens = run_graph(model, image=feed), run_graph(prefix, image=feed)
        assert {name: value.dtype for name, value in tokens.items()} == {"tokens": np.float32}
        found = run_graph(tail, **tokens)
        assert list(found) == list(whole)
        for name, value in whole.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=apart, err_msg=name)


@pytest.mark.short("class-token", "average-pool")
@pytest.mark.parametrize("name", VARIANTS)
def test_kinds_of_models(name: str) -> None:
    check_cut(trace_of(name), BLOCK)
    check_cut(trace_of(name), 0)


@pytest.mark.short("zero-tprune-merge", "tome", "novelty-merge")
@pytest.mark.parametrize("method", METHODS)
def test_methods(method: str) -> None:
    """Those that merge, and those whose layers are inside of blocks, among them."""
    check_cut(trace_by(method), BLOCK)


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, precision="fp16"),
        replace(SPEC, precision="int8", int8=Int8Options()),
        replace(SPEC, precision="int8", int8=Int8Options(activations="row")),
        replace(SPEC, precision="int8", int8=Int8Options(activations="uint8")),
        replace(SPEC, precision="int8", int8=Int8Options(from_block=2)),
    ],
    ids=["fp16", "dynamic", "row", "static", "from block 3"],
)
def test_precisions(spec: GraphSpec) -> None:
    """Tokens are handed over in fp32, which holds all values of lower precisions. Where ONNX Runtime has no kernels of
    fp16, it leaves out some roundings of the whole graph.
    """
    trace = trace_of("class-token")
    ranges = measure_ranges(trace, [pixels(4).numpy()], "min-max", threads=1)
    model = specialise(trace, spec, ranges)
    check_cut(model, BLOCK, apart=5e-3 if spec.precision == "fp16" else 0)
    for one in cut(model, BLOCK):
        check_declared_types(one)


@pytest.mark.long
def test_a_fixed_batch() -> None:
    torch.manual_seed(0)
    model = export_onnx(pruned(variant("class-token")), PREPROCESS, replace(SPEC, batch=2))
    check_cut(model, BLOCK, batches=(2,))


def test_what_else_crosses_the_cut_is_refused() -> None:
    """A second value of a block before, or the image itself; a copy in another type is none, nor the batch's size."""
    value = "[batch, 4, 8]"

    def model(*lines: str) -> ir.Model:
        found = parse(f"cut (float{value} image) => (float{value} y) {{ {' '.join(lines)} }}")
        for node in found.graph:
            block = 1 if node.outputs[0].name in ("b", "c", "y") else 0
            node.name = f"blocks.{block}/{node.outputs[0].name}"
        return found

    first = ("k = Sin(image)", "t = Cos(k)")
    copies = (*first, "h = Cast <to = 10> (t)", "b = Cast <to = 1> (h)", "y = Add(t, b)")
    prefix, tail = cut(model(*copies), 1)
    feed = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    whole = run_graph(model(*copies), image=feed)["y"]
    np.testing.assert_array_equal(run_graph(tail, **run_graph(prefix, image=feed))["y"], whole)
    for also in ("k", "image"):
        wrong = model(*first, f"b = Sin({also})", "y = Add(t, b)")
        refused(lambda wrong=wrong: cut(wrong, 1), "blocks from 2 on read", "nothing else", kind=ModelError)

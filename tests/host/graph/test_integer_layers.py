"""Integer layers by themselves: inputs that rounding does not change, exact results, and kernels that lose sums."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
from helpers.errors import refused
from helpers.models import PREPROCESS, pixels, pruned, variant
from helpers.sessions import serialised
from onnx import load_from_string
from onnx.reference import ReferenceEvaluator

from ztdeploy.core.errors import ParityError
from ztdeploy.core.profile import Int8Options
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.graph.integer_layers import ROWS, IntegerLayers, integer_layers, layers_of
from ztdeploy.host.graph.ranges import measure_ranges
from ztdeploy.host.graph.rewriting import numbers
from ztdeploy.host.parity import LAYER_TOLERANCE, prove_layers

SPEC = GraphSpec(20, "uint8", None)
KINDS = ("uint8", "int8", "row")
DEPTH = 4


@cache
def traced() -> ir.Model:
    return export_onnx(pruned(variant("class-token"), "zero-tprune"), PREPROCESS, SPEC)


@cache
def typed(kind: str, bits: int = 8) -> ir.Model:
    options = Int8Options.model_validate({"activations": kind, "weight_bits": bits})
    ranges = measure_ranges(traced(), [pixels(4).numpy()], "min-max", threads=1)
    return specialise(traced(), replace(SPEC, precision="int8", int8=options), ranges)


def layers(kind: str, bits: int = 8) -> IntegerLayers:
    found = integer_layers(typed(kind, bits))
    assert found is not None
    return found


class Saturating:
    """A kernel that adds the products of two neighbours in 16 bits, as processors without VNNI do."""

    def __init__(self, kind: str, bits: int) -> None:
        self.kind, self.bits = kind, bits

    def infer(self, feeds):
        results = {}
        for (name, x), (product, rounding, scaling) in zip(
            feeds.items(), layers_of(typed(self.kind, self.bits).graph), strict=True
        ):
            assert str(product.name) in name
            scale, zero = (1.0, 0) if rounding is None else map(float, map(numbers, rounding.inputs[1:]))
            weight, scales = (numbers(value) for value in scaling.inputs[:2])
            integers = np.rint(x[0] / scale + zero)
            pairs = np.zeros((ROWS, weight.shape[1]))
            for at in range(0, len(weight), 2):
                sums = integers[:, at : at + 2].astype(np.int64) @ weight[at : at + 2].astype(np.int64)
                pairs += np.clip(sums, -(2**15), 2**15 - 1)
            pairs -= zero * weight.astype(np.float64).sum(0)
            results[f"{product.name}/y"] = (pairs * scale * scales)[None].astype(np.float32)
        return results

    def close(self) -> None: ...


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_computes_what_is_wanted(kind: str) -> None:
    """By ONNX's own reference, which rounds and scales as the standard says."""
    found = layers(kind)
    assert len(found.feeds) == len(found.wanted) == 4 * DEPTH
    evaluator = ReferenceEvaluator(load_from_string(serialised(found.model)))
    given = dict(zip(found.wanted, evaluator.run(list(found.wanted), dict(found.feeds)), strict=True))
    for name, wanted in found.wanted.items():
        assert np.abs(given[name] - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_whole_steps_that_reach_both_ends(kind: str) -> None:
    for x, (_, rounding, _) in zip(layers(kind).feeds.values(), layers_of(typed(kind).graph), strict=True):
        assert x.shape[:2] == (1, ROWS)
        scale, zero = (1.0, 0) if rounding is None else map(float, map(numbers, rounding.inputs[1:]))
        steps = x / scale
        assert np.abs(steps - np.rint(steps)).max() < 1e-3
        ends = {"uint8": (-zero, 255 - zero), "int8": (-128, 127), "row": (-127, 127)}[kind]
        assert (np.rint(steps).min(), np.rint(steps).max()) == ends
        if kind == "row":
            groups = np.abs(x[..., : x.shape[-1] // 64 * 64]).reshape(-1, 64)
            assert (groups.max(-1) == 127).all(), "every scale is 1"


def test_the_graph_stays_as_it_was_and_fp32_has_no_such_layers() -> None:
    before = serialised(typed("uint8"))
    layers("uint8")
    assert serialised(typed("uint8")) == before
    assert integer_layers(traced()) is None


def test_a_kernel_that_loses_sums_is_found_out() -> None:
    """In each layer, whatever its weights; with seven bits no pair is lost."""
    found = layers("uint8")
    refused(
        lambda: prove_layers("keep-0.70 (mine)", Saturating("uint8", 8), found),
        "keep-0.70 (mine)",
        "not exact",
        "blocks.",
        "weight_bits = 7",
        kind=ParityError,
    )
    assert prove_layers("mine", Saturating("uint8", 7), layers("uint8", 7)) <= LAYER_TOLERANCE
    given = Saturating("uint8", 8).infer(found.feeds)
    for name, wanted in found.wanted.items():
        assert np.abs(given[name] - wanted).max() > 100 * LAYER_TOLERANCE * np.abs(wanted).max()


@pytest.mark.parametrize("where", [slice(0, 1), slice(-1, None), slice(None)])
def test_what_is_no_number_is_an_error(where: slice) -> None:
    """In the first layer, the last, or all: no number is larger than NaN, nor smaller."""

    class Broken(Saturating):
        def infer(self, feeds):
            wanted = dict(layers("uint8").wanted)
            return wanted | {name: np.full_like(wanted[name], np.nan) for name in [*wanted][where]}

    refused(lambda: prove_layers("mine", Broken("uint8", 8), layers("uint8")), "not exact", kind=ParityError)

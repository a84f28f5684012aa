"""Half precision emulated in fp32: every rounding is there, is the right one, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from helpers.graphs import SPEC, trace_of
from helpers.models import pixels
from helpers.sessions import run_graph, serialised
from hypothesis import given, settings
from hypothesis import strategies as st

from ztdeploy.core.profile import Precision
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.graph.emulation import with_rounding
from ztdeploy.host.graph.precision import MOVES

SPECS: dict[str, GraphSpec] = {
    "fp16": replace(SPEC, precision="fp16"),
    "bf16": replace(SPEC, precision="bf16"),
    "fp16 for turing": replace(SPEC, precision="fp16", turing=True),
    "fp16 for boards": replace(SPEC, precision="fp16", board=True),
    "bf16 for boards": replace(SPEC, precision="bf16", board=True),
}
DTYPE: dict[Precision, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
#: Significant bits; the smallest normal number.
BITS: dict[Precision, int] = {"fp16": 11, "bf16": 8}
NORMAL: dict[Precision, float] = {"fp16": 2.0**-14, "bf16": 2.0**-126}
HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
HALF_PROTOS = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
ADDED = ("/split", "/rest", "/rounded")


@cache
def typed(name: str) -> ir.Model:
    return specialise(trace_of("class-token"), SPECS[name])


@cache
def rounded(name: str) -> ir.Model:
    return with_rounding(typed(name))


@cache
def results(name: str) -> dict[str, Any]:
    """Every fp32 value of the rounded graph."""
    proto = ir.serde.serialize_model(rounded(name))
    known = {value.name for value in proto.graph.output}
    floats = onnx.shape_inference.infer_shapes(proto).graph.value_info
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=value.name, type=value.type)
        for value in floats
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and value.name not in known
    )
    return run_graph(proto.SerializeToString(), image=pixels(4).numpy())


@cache
def exact() -> dict[str, Any]:
    return run_graph(trace_of("class-token"), image=pixels(4).numpy())


def halves(name: str) -> Iterator[tuple[ir.Node, bool]]:
    """Nodes of the typed graph with a half-precision result, and whether they compute it."""
    for node in typed(name).graph:
        if node.outputs[0].dtype in HALVES:
            yield node, node.op_type not in MOVES


def is_representable(values: np.ndarray, precision: Precision) -> bool:
    normal = values[(np.abs(values) >= NORMAL[precision]) | (values == 0)]
    return bool((normal == normal.astype(DTYPE[precision]).astype(np.float32)).all())


@pytest.mark.parametrize("name", SPECS)
class TestGraph:
    def test_it_is_valid_onnx_in_fp32(self, name: str) -> None:
        proto = ir.serde.serialize_model(rounded(name))
        onnx.checker.check_model(proto, full_check=True)
        del proto.graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
        assert len(inferred.value_info) > 300
        types = {
            value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input, *inferred.output)
        }
        assert not types & HALF_PROTOS
        assert not {tensor.data_type for tensor in proto.graph.initializer} & HALF_PROTOS
        casts = {one.i for node in proto.graph.node if node.op_type == "Cast" for one in node.attribute}
        assert not casts & HALF_PROTOS

    def test_declared_types_hold(self, name: str) -> None:
        proto = ir.serde.serialize_model(rounded(name))
        declared = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
        assert not set(declared.values()) & HALF_PROTOS
        del proto.graph.value_info[:]
        for value in onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.value_info:
            assert declared.get(value.name) in (None, value.type.tensor_type.elem_type), value.name

    def test_inputs_and_outputs_stay(self, name: str) -> None:
        for kind in ("inputs", "outputs"):
            before, after = (list(getattr(model.graph, kind)) for model in (typed(name), rounded(name)))
            assert [(v.name, v.dtype, str(v.shape)) for v in before] == [(v.name, v.dtype, str(v.shape)) for v in after]

    def test_the_typed_graph_is_not_touched(self, name: str) -> None:
        before = serialised(typed(name))
        copy = with_rounding(typed(name))
        for node in copy.graph:
            node.name = "renamed"
        assert serialised(typed(name)) == before
        assert any(value.dtype in HALVES for value in typed(name).graph.initializers.values())

    def test_the_same_bytes_every_time(self, name: str) -> None:
        assert serialised(with_rounding(typed(name))) == serialised(rounded(name))

    def test_whatever_computes_rounds_once_and_whatever_moves_does_not(self, name: str) -> None:
        computing = [node.name for node, computes in halves(name) if computes]
        moving = [node.name for node, computes in halves(name) if not computes]
        assert len(computing) > 60
        assert len(moving) > 30
        names = [node.name or "" for node in rounded(name).graph]
        assert len(set(names)) == len(names)
        added = [one for one in names if one.endswith(ADDED)]
        assert sorted(added) == sorted(f"{one}{part}" for one in computing for part in ADDED)
        assert [one for one in names if one not in added] == [node.name for node in typed(name).graph]

    def test_nothing_reads_what_has_not_been_rounded(self, name: str) -> None:
        nodes = {node.name: node for node in rounded(name).graph}
        for node, computes in halves(name):
            if computes:
                readers = {user.name for user in nodes[node.name].outputs[0].consumers()}
                assert readers == {f"{node.name}/split", f"{node.name}/rest"}
                assert nodes[f"{node.name}/rounded"].outputs[0].consumers()

    def test_weights_keep_their_values(self, name: str) -> None:
        weights = rounded(name).graph.initializers
        for key, value in typed(name).graph.initializers.items():
            assert value.const_value is not None
            assert weights[key].const_value is not None
            assert weights[key].dtype == weights[key].const_value.dtype
            original, copy = value.const_value.numpy(), weights[key].const_value.numpy()
            if value.dtype in HALVES:
                assert copy.dtype == np.float32
            np.testing.assert_array_equal(copy, original.astype(copy.dtype))

    def test_pruning_layers_are_not_rounded(self, name: str) -> None:
        """But for the product that Turing takes in fp16."""
        names = {node.name or "" for node in rounded(name).graph if (node.name or "").endswith("/rounded")}
        places = {one.split("MatMul_0")[0] for one in names if "/prune/" in one}
        wanted = {f"blocks.{block}/prune/similarity/" for block in (1, 2)}
        assert places == (wanted if SPECS[name].turing else set())


@pytest.mark.parametrize("name", SPECS)
class TestValues:
    def test_whatever_is_half_holds_values_of_the_type(self, name: str) -> None:
        values, precision, count = results(name), SPECS[name].precision, 0
        for node, computes in halves(name):
            result = values[f"{node.name}/rounded" if computes else str(node.outputs[0].name)]
            assert is_representable(result, precision), node.name
            count += 1
        assert count > 90

    def test_it_is_a_rounding_that_takes_something(self, name: str) -> None:
        """What is rounded is seldom of the type before, and afterwards is the nearest value that is."""
        values, precision = results(name), SPECS[name].precision
        changed = 0
        for node, computes in halves(name):
            if computes:
                before, after = values[str(node.outputs[0].name)], values[f"{node.name}/rounded"]
                check_nearest(before, after, precision)
                changed += not is_representable(before, precision)
        assert changed > 50

    def test_the_result_is_near_fp32_and_another(self, name: str) -> None:
        wanted, found = exact(), results(name)
        scale = max(1.0, float(np.abs(wanted["logits"]).max()))
        kept = [output for output in wanted if output != "logits"]
        assert len(kept) == 2
        for output in kept:
            assert found[output].dtype == np.int32
            shares = [np.isin(theirs, ours).mean() for theirs, ours in zip(wanted[output], found[output], strict=True)]
            assert np.mean(shares) > 0.7
        difference = np.abs(wanted["logits"] - found["logits"]).max(-1)
        assert difference.min() > 1e-5 * scale
        same = np.logical_and.reduce([(wanted[output] == found[output]).all(-1) for output in kept])
        assert difference[same].max(initial=0) < (2e-2 if SPECS[name].precision == "fp16" else 2e-1) * scale


def check_nearest(values: np.ndarray, found: np.ndarray, precision: Precision) -> None:
    """As NumPy casts; a value in the middle may go either way. Splitting knows no even."""
    normal = np.abs(values) >= NORMAL[precision]
    values, found = values[normal], found[normal]
    with np.errstate(over="ignore"):
        wanted = values.astype(DTYPE[precision]).astype(np.float32)
    inside = np.isfinite(wanted)
    values, found, wanted = values[inside], found[inside], wanted[inside]
    assert is_representable(found, precision)
    _, exponent = np.frexp(values)
    middle = np.abs(values.astype(np.float64) - wanted) == np.ldexp(1.0, exponent - BITS[precision] - 1)
    np.testing.assert_array_equal(found[~middle], wanted[~middle])
    np.testing.assert_array_equal(np.abs(found - values)[middle], np.abs(wanted - values)[middle])


@cache
def splitting(precision: Precision) -> ort.InferenceSession:
    """x + 0, rounded."""
    element = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    low = {"fp16": 10, "bf16": 16}[precision]
    body = f"g (float[n] x) => (float[n] y)\n<{element}[1] unused = {{0}}>\n"
    body += f"{{ low = Cast <to = {low}> (x)\n y = Cast <to = 1> (low) }}"
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]>\n{body}')
    del proto.graph.initializer[:]
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))
    model.graph[0].name, model.graph[1].name = "low", "high"
    assert [node.op_type for node in with_rounding(model).graph] == ["Cast", "Mul", "Sub", "Sub", "Cast"]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(serialised(with_rounding(model)), options, providers=["CPUExecutionProvider"])


def split(values: np.ndarray, precision: Precision) -> np.ndarray:
    return np.asarray(splitting(precision).run(None, {"x": values})[0])


@pytest.mark.parametrize("precision", DTYPE)
class TestSplitting:
    def test_random_values_go_to_the_nearest(self, precision: Precision) -> None:
        generator = np.random.default_rng(0)
        exponents = generator.uniform(-14, 15.9, 200_000)
        values = (generator.choice([-1, 1], exponents.shape) * 2.0**exponents).astype(np.float32)
        check_nearest(values, split(values, precision), precision)

    def test_values_of_the_type_stay(self, precision: Precision) -> None:
        patterns = np.arange(2**16, dtype=np.uint16).view(DTYPE[precision]).astype(np.float32)
        patterns = patterns[np.isfinite(patterns) & (np.abs(patterns) < 1e30) & (np.abs(patterns) > 1e-30)]
        assert len(patterns) > 40_000
        np.testing.assert_array_equal(split(patterns, precision), patterns)

    def test_zeros_stay_and_the_middle_goes_to_a_neighbour(self, precision: Precision) -> None:
        ulp = 2.0 ** (1 - BITS[precision])
        ties = np.array([1 + (step + 0.5) * ulp for step in range(64)], np.float32)
        for values in (ties, -ties, 8 * ties, ties / 64):
            check_nearest(values, split(values, precision), precision)
        beside = np.concatenate([np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(9))])
        np.testing.assert_array_equal(
            split(beside, precision), beside.astype(DTYPE[precision]).astype(np.float32), strict=True
        )
        np.testing.assert_array_equal(split(np.zeros(3, np.float32), precision), np.zeros(3))

    @settings(deadline=None, max_examples=100)
    @given(sample=st.lists(st.floats(width=32, min_value=-65504, max_value=65504, allow_subnormal=False), min_size=1))
    def test_any_value_goes_to_the_nearest(self, sample: list[float], precision: Precision) -> None:
        values = np.array(sample, np.float32)
        values = values[(np.abs(values) > 1e-30) | (values == 0)]
        check_nearest(values, split(values, precision), precision)
        np.testing.assert_array_equal(split(-values, precision), -split(values, precision))

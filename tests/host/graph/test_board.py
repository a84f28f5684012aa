"""Graphs for parsers of TensorRT 10.3: which operators go, and that nothing else changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.errors import refused
from helpers.graphs import SPEC, check_declared_types, trace_of
from helpers.models import PREPROCESS, images, pixels, pruned, variant
from helpers.plugin_ops import NUMPY, run_with_plugins
from helpers.sessions import run_graph, serialised

from ztdeploy.core.errors import ModelError
from ztdeploy.core.profile import Precision
from ztdeploy.core.schedule import LayerSpec
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.graph.emulation import with_rounding
from ztdeploy.host.graph.old_runtimes import for_old_parsers
from ztdeploy.host.graph.plugin_nodes import insert_plugin_nodes
from ztdeploy.host.graph.shared_weights import SharedWeights

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
ERF = ["Div", "Erf", "Add", "Mul", "Mul"]
GELU = 'g (float[n, 3] x) => (float[n, 3] y)\n{{ y = Gelu <approximate = "{}"> (x) }}'

#: Tiny models by name: variant and spec. Each has two pruning layers, but for the last.
MODELS: dict[str, tuple[str, GraphSpec]] = {
    "class token": ("class-token", SPEC),
    "two prefix tokens, float input, batch of 2": ("distilled", GraphSpec(20, "float32", 2)),
    "no prefix": ("average-pool", SPEC),
    "not pruned": ("class-token", SPEC),
}


def parse(body: str, opset: int = 20) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{body}')
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True))


@cache
def traced(name: str) -> ir.Model:
    which, spec = MODELS[name]
    if name == "not pruned":
        return export_onnx(pruned(variant(which), "zero-tprune", LayerSpec(block=1, keep_ratio=1.0)), PREPROCESS, spec)
    if spec == SPEC:
        return trace_of(which)
    return export_onnx(pruned(variant(which)), PREPROCESS, spec)


@cache
def graphs(name: str, precision: Precision) -> tuple[ir.Model, ir.Model]:
    """The graph of a type, and the same for boards."""
    plain = replace(MODELS[name][1], precision=precision)
    return specialise(traced(name), plain), specialise(traced(name), replace(plain, board=True))


def feed(name: str) -> np.ndarray:
    spec = MODELS[name][1]
    return np.asarray((pixels if spec.image_input == "uint8" else images)(spec.batch or 5, seed=3).numpy())


def sorts(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "TopK"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
class TestEveryModel:
    def test_what_old_parsers_may_not_know_is_gone(self, name: str, precision: Precision) -> None:
        plain, board = graphs(name, precision)
        before, after = (Counter(node.op_type for node in model.graph) for model in (plain, board))
        assert before["Gelu"] == 4, "else the test shows nothing"
        assert after["Gelu"] == 0
        assert after["Erf"] == 4
        assert len(sorts(board)) == len(sorts(plain))
        integers = [node for node in sorts(plain) if node.outputs[0].dtype == ir.DataType.INT64]
        assert len(integers) == (0 if name == "not pruned" else 2)
        assert not [node for node in sorts(board) if ir.DataType.INT64 in (node.inputs[0].dtype, node.outputs[0].dtype)]

    def test_it_is_valid_onnx_whose_declared_types_hold(self, name: str, precision: Precision) -> None:
        check_declared_types(graphs(name, precision)[1])

    def test_names_stay_unique_and_the_signature_as_it_was(self, name: str, precision: Precision) -> None:
        plain, board = graphs(name, precision)
        names = [node.name for node in board.graph]
        assert len(set(names)) == len(names)
        values = [value.name for node in board.graph for value in node.outputs if value.name]
        assert len(set(values)) == len(values)
        for kind in ("inputs", "outputs"):
            before, after = ([*getattr(model.graph, kind)] for model in (plain, board))
            assert [(v.name, v.dtype, str(v.shape)) for v in before] == [(v.name, v.dtype, str(v.shape)) for v in after]
        kept = [value for value in board.graph.outputs if value.name != "logits"]
        assert [value.dtype for value in kept] == [ir.DataType.INT32] * (0 if name == "not pruned" else 2)

    def test_gelu_is_computed_in_the_type_that_it_had(self, name: str, precision: Precision) -> None:
        plain, board = graphs(name, precision)
        wanted = next(node.outputs[0].dtype for node in plain.graph if node.op_type == "Gelu")
        parts = [node for node in board.graph if "/Gelu_0/" in (node.name or "")]
        assert [node.op_type for node in parts] == 4 * ERF
        for node in parts:
            assert {value.dtype for value in (*node.inputs, *node.outputs) if value is not None} == {wanted}

    def test_the_same_bytes_every_time(self, name: str, precision: Precision) -> None:
        again = specialise(traced(name), replace(MODELS[name][1], precision=precision, board=True))
        assert serialised(again) == serialised(graphs(name, precision)[1])


@pytest.mark.parametrize("name", MODELS)
class TestResults:
    def test_fp32_keeps_the_same_tokens(self, name: str) -> None:
        plain, board = (run_graph(model, image=feed(name)) for model in graphs(name, "fp32"))
        check_equal(plain, board, 1e-5)

    def test_fp16_and_bf16_differ_by_rounding_only(self, name: str) -> None:
        """Rounded at every node: the five nodes round thrice more than one. A near cut may fall otherwise."""
        precisions: dict[Precision, float] = {"fp16": 1e-2, "bf16": 1e-1}
        for precision, allowed in precisions.items():
            rounded = [with_rounding(model) for model in graphs(name, precision)]
            plain, board = (run_graph(model, image=feed(name)) for model in rounded)
            assert all(board[output].dtype == plain[output].dtype for output in plain)
            scale = max(1.0, float(np.abs(plain["logits"]).max()))
            same = [(plain[output] == board[output]).all(-1) for output in plain if output != "logits"]
            agree = np.logical_and.reduce(same, axis=0) if same else np.full(len(board["logits"]), True)
            assert agree.any()
            assert np.abs(plain["logits"] - board["logits"])[agree].max() <= allowed * scale


def check_equal(plain: dict[str, Any], other: dict[str, Any], allowed: float) -> None:
    assert plain.keys() == other.keys()
    for name, wanted in plain.items():
        if name != "logits":
            assert other[name].dtype == np.int32
            np.testing.assert_array_equal(other[name], wanted, err_msg=name)
    scale = max(1.0, float(np.abs(plain["logits"]).max()))
    assert np.abs(plain["logits"] - other["logits"]).max() <= allowed * scale


class TestGraph:
    def test_the_trace_stays_as_it_was(self) -> None:
        model = traced("class token")
        before = serialised(model)
        for precision in PRECISIONS:
            for node in specialise(model, replace(SPEC, precision=precision, board=True)).graph:
                node.name = "renamed"
        assert serialised(model) == before

    def test_a_graph_without_such_operators_is_left_alone(self) -> None:
        board = graphs("class token", "fp32")[1].clone()
        before = serialised(board)
        for_old_parsers(board, SPEC)
        assert serialised(board) == before

    def test_turing_and_board_go_together(self) -> None:
        board = specialise(traced("class token"), replace(SPEC, precision="fp16", turing=True, board=True))
        onnx.checker.check_model(onnx.load_from_string(serialised(board)), full_check=True)
        assert not [node for node in board.graph if node.op_type == "Gelu"]

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_plugin_nodes_find_their_places(self, precision: Precision, tmp_path: Path) -> None:
        plain = tmp_path / "graph.onnx"
        weights = SharedWeights()
        weights.add(plain, graphs("class token", precision)[1].clone())
        weights.write(tmp_path / "weights.safetensors")
        out = tmp_path / "graph.plugins.onnx"
        assert len(insert_plugin_nodes(plain, out)) == 6
        assert "Gelu" not in {node.op_type for node in onnx.load(out, load_external_data=False).graph.node}
        if precision == "fp32":
            image = pixels(3).numpy()
            board = run_graph(graphs("class token", "fp32")[0], image=image)
            check_equal(board, run_with_plugins(out, {"image": image}, NUMPY), 1e-5)


class TestGelu:
    def test_it_is_the_exact_one(self) -> None:
        model = parse(GELU.format("none"))
        x = np.linspace(-8, 8, 300, dtype=np.float32).reshape(-1, 3)
        before = run_graph(model, x=x)["y"]
        for_old_parsers(model, SPEC)
        assert [node.op_type for node in model.graph] == ERF
        assert [value.name for value in model.graph.outputs] == ["y"]
        np.testing.assert_allclose(run_graph(model, x=x)["y"], before, rtol=1e-5, atol=1e-6)

    def test_without_the_attribute_it_is_the_exact_one_too(self) -> None:
        model = parse("g (float[n, 3] x) => (float[n, 3] y)\n{ y = Gelu(x) }")
        for_old_parsers(model, SPEC)
        assert [node.op_type for node in model.graph] == ERF

    def test_two_share_their_constants(self) -> None:
        model = parse("g (float[n, 3] x) => (float[n, 3] y)\n{ a = Gelu(x)\n y = Gelu(a) }")
        model.graph[0].name, model.graph[1].name = "first", "second"
        for_old_parsers(model, SPEC)
        assert [node.op_type for node in model.graph] == 2 * ERF
        assert len(model.graph.initializers) == 3
        assert all(value.const_value is not None for value in model.graph.initializers.values())

    def test_an_approximation_is_refused_by_name(self) -> None:
        model = parse(GELU.format("tanh"))
        model.graph[0].name = "blocks.3/mlp/act/Gelu_0"
        refused(
            lambda: for_old_parsers(model, SPEC), "'blocks.3/mlp/act/Gelu_0'", "tanh", "the exact one", kind=ModelError
        )


class TestTopK:
    BODY = (
        "g ({0}[2, 9] x) => ({0}[2, 4] y, int64[2, 4] indices)\n<int64[1] k = {{4}}, {0}[1] one = {{1}}>\n"
        "{{ values, indices = TopK <axis = -1, largest = {1}, sorted = 1> (x, k)\n y = Add(values, one) }}"
    )
    BARE = (
        "g (int64[2, 9] x) => (int64[2, 4] values, int64[2, 4] indices)\n<int64[1] k = {4}>\n"
        "{ values, indices = TopK(x, k) }"
    )

    def check(self, model: ir.Model) -> None:
        model.graph[0].name = "sort"
        x = np.stack([np.random.default_rng(seed).permutation(9) for seed in range(2)]) - 3
        before = run_graph(model, x=x)
        for_old_parsers(model, SPEC)
        assert [node.op_type for node in model.graph][:3] == ["Cast", "TopK", "Cast"]
        onnx.checker.check_model(onnx.load_from_string(serialised(model)), full_check=True)
        after = run_graph(model, x=x)
        assert after.keys() == before.keys()
        for name, wanted in before.items():
            assert after[name].dtype == np.int64
            np.testing.assert_array_equal(after[name], wanted)

    @pytest.mark.parametrize("largest", [0, 1])
    def test_values_and_indices_stay_int64_outside(self, largest: int) -> None:
        self.check(parse(self.BODY.format("int64", largest)))

    def test_outputs_of_the_graph_keep_their_names(self) -> None:
        self.check(parse(self.BARE))

    def test_floats_are_sorted_as_they_were(self) -> None:
        model = parse(self.BODY.format("float", 1))
        before = serialised(model)
        for_old_parsers(model, SPEC)
        assert serialised(model) == before

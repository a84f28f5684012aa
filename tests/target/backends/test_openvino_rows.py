"""What OpenVINO is given in place of a graph: as many answers as before, and the same ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.processors import needs_bf16
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ztdeploy.target.backends.openvino import exact_kernels, load_openvino
from ztdeploy.target.backends.openvino_rows import block, early_bf16, early_scales, even_number, even_rows, in_fp32

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
RANDOM = np.random.default_rng(0)
ROWS, WIDTH = 67, 32
X = RANDOM.standard_normal((1, ROWS, WIDTH)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "even"),
    [(1, 1), (64, 64), (67, 68), (69, 69), (98, 98), (139, 140), (196, 196), (197, 198), (257, 258), (577, 578)],
)
def test_numbers_of_rows(rows: int, even: int) -> None:
    assert even_number(rows) == even


@given(st.integers(1, 3000))
def test_rows_become_few_more_and_only_where_blocks_become_large(rows: int) -> None:
    even = even_number(rows)
    assert rows <= even <= rows * 17 / 16
    assert even == rows or block(even) >= 32
    assert even_number(even) == even


class Graph:
    """An ONNX graph that is written operator by operator."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: Any, kind: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def rounded(self, value: str, kind: Any = np.uint8) -> str:
        numbers = self.constant(0.02), self.constant(0 if kind is np.int8 else 120, kind)
        return self.add("DequantizeLinear", self.add("QuantizeLinear", value, *numbers), *numbers)

    def linear(self, value: str, inputs: int, outputs: int) -> str:
        weight = self.constant(RANDOM.integers(-127, 128, (inputs, outputs)), np.int8)
        scale = self.constant(RANDOM.random(outputs) * 1e-3)
        product = self.add("MatMul", value, self.add("DequantizeLinear", weight, scale, axis=1))
        return self.add("Add", product, self.constant(RANDOM.standard_normal(outputs)))

    def read(self, outputs: list[str]) -> Any:
        value = helper.make_tensor_value_info
        given = value("x", TensorProto.FLOAT, [1, ROWS, WIDTH])
        results = [value(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", [given], results, self.constants)
        opset = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        return load_openvino().Core().read_model(model.SerializeToString())


def mlp(graph: Graph, kind: Any = np.uint8, width: int = 2 * WIDTH) -> str:
    wide = graph.add("Gelu", graph.linear(graph.rounded("x", kind), WIDTH, width))
    return graph.add("Add", "x", graph.linear(graph.rounded(wide, kind), width, WIDTH))


def answers(model: Any) -> list[Any]:
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, **exact_kernels(WIDTH, 8)}
    compiled = load_openvino().Core().compile_model(model, "CPU", options)
    return [np.array(value) for value in compiled({"x": X}).values()]


def changed(
    build: Callable[[Graph], list[str]], change: Callable[[Any, Any], int], bound: float = 1e-5
) -> tuple[int, Any]:
    """How often a graph is changed, and what came of it; its outputs keep their shapes and nearly all bits."""
    graph = Graph()
    outputs = build(graph)
    before, model = graph.read(outputs), graph.read(outputs)
    number = change(model, load_openvino().opset13)
    for one, other in zip(answers(before), answers(model), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=bound * np.abs(one).max())
    return number, model


def kinds(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ordered_ops())


def rows_of_products(model: Any) -> list[int]:
    return [node.get_output_shape(0)[-2] for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]


def test_by_row_products_with_integer_weights_get_rows_too() -> None:
    """Of fp32 values, which OpenVINO rounds itself; a product with fp32 weights is none of theirs."""

    def build(graph: Graph) -> list[str]:
        wide = graph.add("Gelu", graph.linear("x", WIDTH, 2 * WIDTH))
        plain = graph.add("MatMul", "x", graph.constant(RANDOM.standard_normal((WIDTH, 2 * WIDTH))))
        return [graph.add("Add", "x", graph.linear(wide, 2 * WIDTH, WIDTH)), plain]

    number, model = changed(build, lambda model, opset: even_rows(model, opset, by_row=True))
    assert number == 1
    assert sorted(rows_of_products(model)) == [ROWS, ROWS + 1, ROWS + 1]
    assert changed(build, even_rows)[0] == 0


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_both_layers_of_an_mlp_get_rows_once(kind: Any) -> None:
    number, model = changed(lambda graph: [mlp(graph, kind)], even_rows)
    assert number == 1
    assert rows_of_products(model) == [68, 68]
    assert model.outputs[0].shape[1] == ROWS
    assert kinds(model)["Pad"] == 1


def test_rows_are_cut_off_where_they_meet() -> None:
    """Behind the product rows are summed: zeros more would count, since each has a bias."""

    def build(graph: Graph) -> list[str]:
        wide = graph.linear(graph.rounded("x"), WIDTH, 3 * WIDTH)
        return [graph.add("ReduceSum", wide, graph.constant([1], np.int64))]

    assert changed(build, even_rows)[0] == 1


def test_rows_are_cut_off_ahead_of_numbers_that_differ_by_row() -> None:
    def build(graph: Graph) -> list[str]:
        wide = graph.linear(graph.rounded("x"), WIDTH, 2 * WIDTH)
        return [graph.add("Add", wide, graph.constant(RANDOM.standard_normal((1, ROWS, 2 * WIDTH))))]

    number, model = changed(build, even_rows)
    assert number == 1
    assert model.outputs[0].shape[1] == ROWS


def test_what_two_read_stays() -> None:
    """Integers that two products read, and a product that two read: both are of the image's rows alone."""

    def shared(graph: Graph) -> list[str]:
        rounded = graph.rounded("x")
        return [graph.add("Mul", *(graph.linear(rounded, WIDTH, 2 * WIDTH) for _ in range(2)))]

    def read_twice(graph: Graph) -> list[str]:
        wide = graph.linear(graph.rounded("x"), WIDTH, 2 * WIDTH)
        return [graph.add("Mul", wide, graph.add("Sigmoid", wide))]

    assert changed(shared, even_rows)[0] == 0
    number, model = changed(read_twice, even_rows)
    assert number == 1
    assert model.outputs[0].shape[1] == ROWS


def test_products_that_do_not_widen_or_hold_no_integers_stay() -> None:
    def fp32(graph: Graph) -> list[str]:
        return [graph.add("MatMul", "x", graph.constant(RANDOM.standard_normal((WIDTH, 2 * WIDTH))))]

    assert changed(lambda graph: [mlp(graph, width=WIDTH)], even_rows)[0] == 0
    assert changed(fp32, even_rows)[0] == 0


def turned(graph: Graph, *, keys_in_fp32: bool, scale: float = 0.25, queries_twice: bool = False) -> list[str]:
    """Queries, keys and values, as attention in bf16 makes them."""
    wide = graph.linear(graph.rounded("x"), WIDTH, 3 * WIDTH)
    split = graph.add("Reshape", wide, graph.constant([1, ROWS, 3, 4, WIDTH // 4], np.int64))
    whole = graph.add("Transpose", split, perm=[2, 0, 3, 1, 4])
    parts = [graph.add("Gather", whole, graph.constant(index, np.int64), axis=0) for index in range(3)]
    keys = graph.add("Transpose", parts[1], perm=[0, 1, 3, 2])
    low = [graph.add("Cast", one, to=TensorProto.BFLOAT16) for one in (parts[0], keys, parts[2])]
    low[0] = graph.add("Mul", low[0], graph.add("Cast", graph.constant(scale), to=TensorProto.BFLOAT16))
    products = graph.add("MatMul", graph.add("MatMul", *low[:2]), low[2])
    if queries_twice:
        products = graph.add("Add", products, graph.add("Cast", parts[0], to=TensorProto.BFLOAT16))
    found = [graph.add("Cast", products, to=TensorProto.FLOAT)]
    return [*found, graph.add("ReduceMean", parts[1])] if keys_in_fp32 else found


@needs_bf16
def test_queries_keys_and_values_are_rounded_before_they_are_turned() -> None:
    number, model = changed(lambda graph: turned(graph, keys_in_fp32=False), early_bf16)
    assert number == 1
    turns = [node for node in model.get_ordered_ops() if node.get_type_name() == "Transpose"]
    assert {node.get_output_element_type(0).get_type_name() for node in turns} == {"bf16"}


@needs_bf16
def test_what_a_pruning_layer_reads_in_fp32_is_not_rounded_early() -> None:
    assert changed(lambda graph: turned(graph, keys_in_fp32=True), early_bf16)[0] == 0


@needs_bf16
def test_queries_are_scaled_where_they_are_made() -> None:
    number, model = changed(lambda graph: turned(graph, keys_in_fp32=True), early_scales)
    assert number == 1
    low = [node for node in model.get_ordered_ops() if node.get_output_element_type(0).get_type_name() == "bf16"]
    assert "Multiply" not in {node.get_type_name() for node in low}


@needs_bf16
def test_a_factor_that_changes_digits_stays_and_so_does_what_others_read() -> None:
    assert changed(lambda graph: turned(graph, keys_in_fp32=True, scale=0.3), early_scales)[0] == 0
    assert changed(lambda graph: turned(graph, keys_in_fp32=True, queries_twice=True), early_scales)[0] == 0


@needs_bf16
def test_without_bf16_all_of_it_is_computed_in_fp32() -> None:
    """Queries, their factor, keys and values; what is left of bf16 are constants that nobody reads."""
    number, model = changed(lambda graph: turned(graph, keys_in_fp32=False), in_fp32, bound=0.03)
    assert number == 4
    assert "bf16" not in {node.get_output_element_type(0).get_type_name() for node in model.get_ordered_ops()}

"""Linear layers in 8-bit integers with ranges from images: which they are, what they compute, what stays as it was."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.graphs import SPEC, pruning_nodes, trace_by
from helpers.models import PREPROCESS, pixels, tiny_vit
from helpers.sessions import run_graph, serialised
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from ztdeploy.core.methods import METHODS
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.profile import Int8Options
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.graph.emulation import with_exact_products, with_rounding
from ztdeploy.host.graph.int8 import scale_and_zero
from ztdeploy.host.graph.patch_rows import patch_product
from ztdeploy.host.graph.ranges import measure_ranges
from ztdeploy.host.graph.rewriting import Replacement
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.backends.openvino import OpenVinoBackend

UINT8 = Int8Options(activations="uint8")
LINEAR, DEPTH = ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2"), 4


@cache
def ranges(method: str) -> dict[str, tuple[float, float]]:
    return measure_ranges(trace_by(method), [pixels(4).numpy()], "min-max", threads=1)


def quantised(method: str, options: Int8Options = UINT8) -> ir.Model:
    return specialise(trace_by(method), replace(SPEC, precision="int8", int8=options), ranges(method))


def quantised_products(model: ir.Model) -> list[str]:
    """Those between an activation and a weight that both come from integers."""
    found = []
    for node in model.graph:
        makers = [value.producer() if value is not None else None for value in node.inputs]
        if node.op_type == "MatMul" and [maker and maker.op_type for maker in makers] == ["DequantizeLinear"] * 2:
            found.append(str(node.name))
    return found


@pytest.mark.parametrize("method", METHODS)
def test_linear_layers_of_every_method_and_nothing_else(method: str) -> None:
    before = serialised(trace_by(method))
    typed = quantised(method)
    assert serialised(trace_by(method)) == before
    assert serialised(quantised(method)) == serialised(typed), "the same bytes every time"
    onnx.checker.check_model(onnx.load_from_string(serialised(typed)), full_check=True)
    layers = [f"blocks.{block}/{layer}/MatMul_0/int8" for block in range(DEPTH) for layer in LINEAR]
    assert quantised_products(typed) == ["patch_embed/proj/Conv_0/product/int8", *layers]
    assert pruning_nodes(typed) == pruning_nodes(trace_by(method))
    readers = {
        user.op_type for n in typed.graph if n.op_type == "DequantizeLinear" for user in n.outputs[0].consumers()
    }
    assert readers == {"MatMul"}
    image = pixels(3).numpy()
    single, integers = run_graph(trace_by(method), image=image), run_graph(typed, image=image)
    assert {name: values.shape for name, values in integers.items()} == {n: v.shape for n, v in single.items()}
    assert np.isfinite(integers["logits"]).all()


def test_each_activation_is_rounded_once_and_each_weight_per_channel() -> None:
    typed = quantised("zero-tprune")
    rounded = [node for node in typed.graph if node.op_type == "QuantizeLinear"]
    assert len(rounded) == len(LINEAR) * DEPTH, "pixels are integers already"
    for node in typed.graph:
        value = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if value is not None and value.is_initializer():
            assert value.dtype == ir.DataType.INT8
            assert node.inputs[1] is not None
            assert value.shape is not None
            assert list(node.inputs[1].shape or ()) == [value.shape[1]]
            assert node.attributes["axis"].as_int() == 1


def test_int8_activations_have_no_zero_point_and_leave_pixels_alone() -> None:
    """TensorRT takes no other."""
    typed = quantised("zero-tprune", Int8Options(activations="int8"))
    assert "Conv" in {node.op_type for node in typed.graph}
    zeros = [node.inputs[2] for node in typed.graph if node.op_type == "QuantizeLinear"]
    assert {(zero.dtype, int(zero.const_value.numpy())) for zero in zeros} == {(ir.DataType.INT8, 0)}


def test_blocks_ahead_stay_and_so_do_pixels() -> None:
    typed = quantised("zero-tprune", Int8Options(activations="uint8", from_block=2))
    assert {name.split("/")[0] for name in quantised_products(typed)} == {"blocks.2", "blocks.3"}
    assert "Conv" in {node.op_type for node in typed.graph}


def test_by_row_only_weights_are_integers_in_the_graph() -> None:
    typed = specialise(trace_by("zero-tprune"), replace(SPEC, precision="int8", int8=Int8Options(activations="row")))
    assert "QuantizeLinear" not in {node.op_type for node in typed.graph}
    weights = [node.inputs[0] for node in typed.graph if node.op_type == "DequantizeLinear"]
    assert sum(weight.dtype == ir.DataType.INT8 for weight in weights) == len(LINEAR) * DEPTH
    assert "Conv" in {node.op_type for node in typed.graph}, "patches stay as they are"
    image = pixels(4).numpy()
    spelt_out = with_exact_products(typed, OpenVinoBackend.row_groups)
    exact, rounded = (run_graph(model, image=image)["logits"] for model in (trace_by("zero-tprune"), spelt_out))
    assert 0 < np.median(np.abs(exact - rounded)) < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(("width", "group"), [(384, 192), (128, 128), (64, 64), (72, None)])
def test_by_row_the_proof_rounds_groups_of_a_token(width: int, group: int | None) -> None:
    """Each to 127ths of its largest magnitude, in NumPy; where nothing divides the width, nothing is rounded."""
    generator = np.random.default_rng(width)
    weight = generator.normal(size=(width, 33)).astype(np.float32)
    x = (generator.normal(size=(2, 7, width)) * generator.uniform(0, 9, (2, 7, 1))).astype(np.float32)
    x[0, 0] = 0
    typed = specialise(product(weight, 3), replace(SPEC, precision="int8", int8=Int8Options(activations="row")))
    scales = np.abs(weight).max(0) / 127
    rounded = x
    if group is not None:
        groups = x.reshape(2, 7, -1, group)
        steps = np.maximum(np.abs(groups).max(-1, keepdims=True), 1e-30) / np.float32(127)
        rounded = (np.rint(groups / steps) * steps).reshape(x.shape)
    wanted = rounded @ (np.rint(weight / scales) * scales)
    given = run_graph(with_exact_products(typed, OpenVinoBackend.row_groups), x=x)["y"]
    assert np.abs(given - wanted).max() <= 1e-5 * np.abs(wanted).max()


def product(weight: np.ndarray, rank: int = 2) -> ir.Model:
    """A linear layer as a graph: `y = x W`."""
    value, leading = onnx.helper.make_tensor_value_info, ["b", 7][: rank - 1]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="blocks.0/attn/proj/MatMul_0")
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [value("x", 1, [*leading, weight.shape[0]])],
        [value("y", 1, [*leading, weight.shape[1]])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))


def test_the_product_is_what_the_formula_says() -> None:
    """s_x s_w (q_x - z_x) q_w in NumPy, in ONNX's reference, and spelt out; what is out of range is clipped."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(96, 33)).astype(np.float32)
    x = generator.normal(size=(7, 96)).astype(np.float32)
    typed = specialise(product(weight), replace(SPEC, precision="int8", int8=UINT8), {"x": (-1.5, 2.25)})
    step = np.float32(3.75 / 255)
    integers = np.clip(np.rint(x / step) + np.rint(1.5 / step), 0, 255).astype(np.int64)
    assert (integers == 0).any()
    assert (integers == 255).any()
    scales = np.abs(weight).max(0) / 127
    wanted = step * scales * ((integers - int(np.rint(1.5 / step))) @ np.rint(weight / scales).astype(np.int64))
    results = {
        "reference": ReferenceEvaluator(onnx.load_from_string(serialised(typed))).run(None, {"x": x})[0],
        "spelt out": run_graph(with_exact_products(typed), x=x)["y"],
    }
    for name, result in results.items():
        np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max(), err_msg=name)


def test_spelt_out_nothing_is_quantised_and_the_answer_is_near() -> None:
    typed = quantised("zero-tprune")
    before = serialised(typed)
    exact = with_exact_products(typed)
    assert serialised(typed) == before
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in exact.graph}
    assert pruning_nodes(exact) == pruning_nodes(typed)
    image = pixels(4).numpy()
    logits = [run_graph(model, image=image)["logits"] for model in (typed, exact, trace_by("zero-tprune"))]
    scale = np.abs(logits[2]).max()
    assert np.abs(logits[0] - logits[1]).max() < 0.05 * scale
    assert np.median(np.abs(logits[1] - logits[2])) < 0.1 * scale


def wide_grey() -> ir.Model:
    """A trace whose images are no squares, and have one channel."""
    vit = tiny_vit(depth=1, image_size=(16, 48), in_chans=1)
    spec = PREPROCESS.model_copy(update={"image_size": ImageSize(16, 48), "mean": (0.4,), "std": (0.3,)})
    with PrunedModel(VitAdapter(vit, (16, 48)), PruningSchedule(name="dense", layers=())) as module:
        return export_onnx(module, spec, GraphSpec(20, "uint8", None))


@pytest.mark.parametrize("shape", [(32, 32, 3), (16, 48, 1)])
def test_patches_times_a_matrix_are_the_convolution(shape: tuple[int, int, int]) -> None:
    single = trace_by("zero-tprune") if shape[0] == shape[1] else wide_grey()
    model = single.clone()
    found = patch_product(model)
    assert found is not None
    product, patches = found
    values = Replacement(product)
    product.replace_input_with(0, values.cast("single", patches, ir.DataType.FLOAT))
    values.insert_before()
    assert "Conv" not in {node.op_type for node in model.graph}
    image = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    ours, theirs = run_graph(model, image=image), run_graph(single, image=image)
    np.testing.assert_allclose(ours["logits"], theirs["logits"], rtol=1e-4, atol=1e-4)
    assert patch_product(model) is None, "nothing is left to replace"


def test_attention_that_nobody_ranks_by_can_be_bf16() -> None:
    typed = quantised("zero-tprune", Int8Options(activations="uint8", rest="bf16"))
    kinds = {str(n.name).split("/")[0]: n.outputs[0].dtype for n in typed.graph if n.op_type == "Softmax"}
    low, single = ir.DataType.BFLOAT16, ir.DataType.FLOAT
    assert kinds == {"blocks.0": low, "blocks.1": single, "blocks.2": single, "blocks.3": low}
    assert pruning_nodes(typed) == pruning_nodes(quantised("zero-tprune"))
    assert len(quantised_products(typed)) == len(LINEAR) * DEPTH + 1
    emulated = run_graph(with_rounding(with_exact_products(typed)), image=pixels(2).numpy())
    assert np.isfinite(emulated["logits"]).all()
    ahead = quantised("zero-tprune", Int8Options(activations="uint8", rest="bf16", from_block=1))
    products = {n.outputs[0].dtype for n in ahead.graph if n.op_type == "MatMul" and "blocks.0/mlp" in str(n.name)}
    assert products == {low}


def test_ranges_are_those_of_all_images_by_an_independent_evaluation() -> None:
    image = pixels(5).numpy()
    name = "blocks.1/norm1/LayerNormalization_0"
    watched = trace_by("zero-tprune").clone()
    watched.graph.outputs.append(next(n.outputs[0] for n in watched.graph if n.name == name))
    values = run_graph(watched, image=image)[name]
    found = measure_ranges(trace_by("zero-tprune"), [image[:2], image[2:]], "min-max", threads=1)
    np.testing.assert_allclose(found[name], (values.min(), values.max()), rtol=1e-5)
    inner = measure_ranges(trace_by("zero-tprune"), [image[:2], image[2:]], "percentile", threads=1)
    wanted = [np.mean([np.quantile(one, q) for one in values]) for q in (1e-4, 1 - 1e-4)]
    np.testing.assert_allclose(inner[name], wanted, rtol=1e-4)
    low, high = measure_ranges(trace_by("zero-tprune"), [image], "entropy", threads=1)[name]
    assert values.min() <= low < 0 < high <= values.max() * 1.0001


@given(st.floats(-50, 50), st.floats(-50, 50), st.sampled_from(["uint8", "int8"]))
def test_zero_is_exact_and_the_range_is_covered(one: float, other: float, activations: Any) -> None:
    low, high = sorted((one, other))
    scale, zero = scale_and_zero(low, high, Int8Options(activations=activations))
    least, most = (-127, 127) if activations == "int8" else (0, 255)
    assert scale > 0
    assert least <= zero <= most
    assert (least - zero) * scale <= min(low, 0) + 0.51 * scale
    assert (most - zero) * scale >= max(high, 0) - 0.51 * scale

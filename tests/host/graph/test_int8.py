"""Linear layers in 8-bit integers: which they are, what they compute, and what must stay as it was."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.graphs import SPEC, pruning_nodes, trace_by
from helpers.models import PREPROCESS, pixels, pruned, tiny_vit, variant
from helpers.sessions import run_graph, serialised
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import QuantType, quantize_dynamic

from ztdeploy.core.methods import METHODS
from ztdeploy.core.profile import Int8Options
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import specialise
from ztdeploy.host.graph.emulation import with_exact_products
from ztdeploy.host.graph.int8 import quantised
from ztdeploy.host.graph.parts import blocks_graph, notes_of, without_notes
from ztdeploy.host.graph.patch_rows import patch_product
from ztdeploy.host.graph.rewriting import Replacement
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning.pruned_model import PrunedModel

INT8 = replace(SPEC, precision="int8")
LINEAR, DEPTH = ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2"), 4


@cache
def dense() -> ir.Model:
    module = PrunedModel(VitAdapter(tiny_vit(), PREPROCESS.image_size), PruningSchedule(name="dense", layers=()))
    return export_onnx(module, PREPROCESS, SPEC)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.short("[zero-tprune]", "[novelty-merge]")
def test_every_method_runs_with_the_same_counts_and_its_layers_untouched(method: str) -> None:
    single = trace_by(method)
    before = serialised(single)
    typed = specialise(single, INT8)
    assert serialised(single) == before
    assert serialised(specialise(single, INT8)) == serialised(typed), "the same bytes every time"
    onnx.checker.check_model(onnx.load_from_string(serialised(typed)), full_check=True)
    products = [node.name for node in typed.graph if node.op_type == "MatMulInteger"]
    wanted = [f"blocks.{block}/{layer}/MatMul_0/int8" for block in range(DEPTH) for layer in LINEAR]
    assert products == ["patch_embed/proj/Conv_0/product/int8", *wanted]
    assert pruning_nodes(typed) == pruning_nodes(single)
    assert pruning_nodes(single)
    gone = {str(node.name) for node in single.graph} - {node.name for node in typed.graph}
    ahead = {name for name in gone if name.startswith(("io/", "patch_embed/"))}
    assert gone - ahead == {name.removesuffix("/int8") for name in wanted}
    shapes = [{value.name: str(value.shape) for value in model.graph.outputs} for model in (single, typed)]
    assert shapes[0] == shapes[1]
    image = pixels(3).numpy()
    exact, given_ = run_graph(single, image=image), run_graph(typed, image=image)
    for name, values in given_.items():
        assert values.shape == exact[name].shape, name
        if name != "logits":  # what stays is a choice: ascending, without repetition
            assert name.endswith("into") or (np.diff(values, axis=-1) > 0).all()
    assert np.isfinite(given_["logits"]).all()


def test_logits_are_near_those_of_fp32_and_not_the_same() -> None:
    image = pixels(4).numpy()
    exact, rounded = (run_graph(model, image=image)["logits"] for model in (dense(), specialise(dense(), INT8)))
    apart = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-4 < apart < 5e-2


def test_onnx_runtimes_own_quantiser_makes_the_same_of_it(tmp_path: Path) -> None:
    """An independent implementation: the same integers, hence the same answers."""
    single = dense().clone()
    found = patch_product(single)
    assert found is not None
    product, patches = found
    values = Replacement(product)
    product.replace_input_with(0, values.cast("single", patches, ir.DataType.FLOAT))
    values.insert_before()
    (tmp_path / "single.onnx").write_bytes(serialised(single))
    ours = specialise(dense(), INT8)
    names = [str(node.name).removesuffix("/int8") for node in ours.graph if node.op_type == "MatMulInteger"]
    quantize_dynamic(
        tmp_path / "single.onnx",
        tmp_path / "theirs.onnx",
        nodes_to_quantize=names,
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    image = pixels(4).numpy()
    image[0, 0, 0] = 255  # so that a pixel's step is 1 for theirs, too
    theirs, found_by_ours = (
        run_graph(one, image=image)["logits"] for one in ((tmp_path / "theirs.onnx").read_bytes(), ours)
    )
    assert np.abs(found_by_ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@given(
    arrays.arrays(np.float32, (5, 3), elements=st.floats(-8, 8, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)),
    st.sampled_from([127, 63]),
)
def test_a_weight_is_off_by_half_a_step_of_its_column_at_most(weight: np.ndarray, largest: int) -> None:
    integers, scales = quantised(weight, largest)
    assert integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max() <= largest
    assert (np.abs(integers * scales - weight) <= 0.5001 * scales).all()
    assert (quantised(-weight, largest)[0] == -integers).all()
    assert (integers[weight == 0] == 0).all()


def one_product(weight: np.ndarray) -> ir.Model:
    """`[n, K]` times a weight, by the name of a block's linear layer."""
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="blocks.0/mlp/fc1/MatMul_0")
    value = onnx.helper.make_tensor_value_info
    rows, columns = weight.shape
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [value("x", 1, ["n", rows])],
        [value("y", 1, ["n", columns])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("extreme", [False, True])
def test_the_product_is_what_the_formula_says(bits: Any, extreme: bool) -> None:
    """s_x s_w (q_x - z_x) q_w in NumPy, in ONNX's reference, spelt out, and by ONNX Runtime's kernels.

    Extreme: the largest integers side by side, which do not fit 16 bits with 8-bit weights. A processor that adds them
    there takes other kernels.
    """
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(96, 33)).astype(np.float32)
    x = generator.normal(size=(7, 96)).astype(np.float32)
    if extreme:
        weight, x = np.sign(weight), np.abs(np.sign(x))
    typed = specialise(one_product(weight), replace(INT8, int8=Int8Options(weight_bits=bits)))
    step = np.float32((max(x.max(), 0) - min(x.min(), 0)) / 255)
    zero = np.rint(np.float32(-min(x.min(), 0)) / step)
    integers = np.clip(np.rint(x / step) + zero, 0, 255).astype(np.int64)
    scales = np.abs(weight).max(0) / {8: 127, 7: 63}[bits]
    wanted = step * scales * ((integers - int(zero)) @ np.rint(weight / scales).astype(np.int64))
    results = {
        "reference": ReferenceEvaluator(onnx.load_from_string(serialised(typed))).run(None, {"x": x})[0],
        "spelt out": run_graph(with_exact_products(typed), x=x)["y"],
        "kernels": run_graph(typed, x=x)["y"],
    }
    for name, result in results.items():
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max(), err_msg=name)


def test_exact_products_leave_no_integer_one_and_change_nothing_else() -> None:
    typed = specialise(trace_by("zero-tprune"), INT8)
    before = serialised(typed)
    exact = with_exact_products(typed)
    assert serialised(typed) == before
    assert "MatMulInteger" not in {node.op_type for node in exact.graph}
    assert pruning_nodes(exact) == pruning_nodes(typed)
    assert {node.name for node in typed.graph} - {node.name for node in exact.graph} == {
        node.name for node in typed.graph if node.op_type == "MatMulInteger"
    }


def test_blocks_ahead_stay_fp32_and_seven_bits_are_seven() -> None:
    options = Int8Options(from_block=2, weight_bits=7)
    typed = specialise(dense(), replace(INT8, int8=options))
    products = [node for node in typed.graph if node.op_type == "MatMulInteger"]
    assert {(node.name or "").split("/")[0] for node in products} == {"blocks.2", "blocks.3"}
    weights = [node.inputs[1].const_value.numpy() for node in products]
    assert {int(np.abs(weight.astype(int)).max()) for weight in weights} == {63}
    assert options.label == "from-2-w7"
    assert Int8Options().label == ""


def test_graphs_with_notes_and_of_blocks_alone_come_in_int8_too() -> None:
    noted = export_onnx(pruned(variant("class-token")), PREPROCESS, SPEC, noted=True)
    typed = specialise(noted, INT8)
    assert notes_of(typed) == notes_of(noted)
    image = pixels(2).numpy()
    with_notes, plain = (run_graph(model, image=image) for model in (typed, without_notes(typed)))
    assert all((with_notes[name] == values).all() for name, values in plain.items())
    blocks = blocks_graph(specialise(dense(), INT8), range(1, 3))
    assert blocks is not None
    tokens = np.random.default_rng(0).normal(size=(2, 9, 48)).astype(np.float32)
    assert run_graph(blocks, tokens=tokens)["tokens_out"].shape == (2, 9, 48)

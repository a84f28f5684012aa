"""Plugin nodes in place of scored subgraphs: what they say, leave alone and compute, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from helpers.errors import refused
from helpers.models import PREPROCESS, VARIANTS, pixels, tiny_vit
from helpers.plugin_ops import NUMPY, Implementation, operators, run_with_plugins
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator

from ztdeploy.core.errors import ModelError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.methods import METHODS
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions, known_values
from ztdeploy.core.plan import LayerPlan
from ztdeploy.core.preprocess_spec import ImageSize, PreprocessOptions
from ztdeploy.core.schedule import LayerSpec, PruningSchedule
from ztdeploy.host.export import export_onnx
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.host.graph.plugin_nodes import insert_plugin_nodes
from ztdeploy.host.graph.shared_weights import SharedWeights
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.plugins import (
    NAMESPACE,
    SIMILARITY_PRUNE,
    VERSION,
    WEIGHTED_PAGE_RANK,
    unknown_options,
)

SPEC = GraphSpec(20, "uint8", None)
BOTH = (LayerSpec(block=1, keep_ratio=0.7, iterations=3), LayerSpec(block=2, keep_ratio=0.6, iterations=1))


@dataclass(frozen=True)
class Case:
    """One small model and its schedule; two blocks, for an export takes seconds."""

    variant: str = "class-token"
    method: str = "zero-tprune"
    layers: tuple[LayerSpec, ...] = BOTH
    spec: GraphSpec = SPEC
    options: MethodOptions = DEFAULT_OPTIONS
    patch_size: int = 8
    image_size: int = 32


CASES = {
    "class token": Case(),
    "two prefix tokens, batch of 1": Case("distilled", spec=GraphSpec(18, "float32", 1)),
    "no prefix; only importance, only similarity": Case(
        "average-pool",
        layers=(
            LayerSpec(block=1, keep_ratio=0.7, similarity_share=0, iterations=2),
            LayerSpec(block=2, keep_ratio=0.8, similarity_share=1),
        ),
    ),
    "normalised keys, many iterations, batch of 3": Case(
        "qk-norm-layer-scale", layers=(LayerSpec(block=1, keep_ratio=0.6, iterations=30),), spec=replace(SPEC, batch=3)
    ),
    "wpr": Case(method="wpr", layers=(LayerSpec(block=1, keep_ratio=0.5, iterations=12),)),
    "merging": Case(method="zero-tprune-merge", layers=BOTH),
    "other options": Case(
        layers=BOTH[:1],
        options=MethodOptions(join="mean", start="uniform", feature="values"),
    ),
    "no head is filtered": Case(layers=BOTH[:1], options=MethodOptions(head_filter=False, feature="queries")),
    "no head is filtered, mean": Case(
        method="zero-tprune-merge", layers=BOTH[:1], options=MethodOptions(head_filter=False, join="mean")
    ),
    "novelty": Case(method="novelty-merge", layers=BOTH),
    "novelty, no class token": Case(
        "average-pool", method="novelty-merge", layers=BOTH[:1], spec=GraphSpec(18, "float32", 1)
    ),
    "1025 tokens": Case(layers=(LayerSpec(block=1, keep_ratio=0.7, iterations=11),), patch_size=2, image_size=64),
}
FP32_AND_FP16 = ("fp32", "fp16")


@cache
def traced(case: Case) -> tuple[ir.Model, tuple[LayerPlan, ...]]:
    arguments, _ = VARIANTS[case.variant]
    model = tiny_vit(depth=3, patch_size=case.patch_size, image_size=case.image_size, **arguments)
    schedule = PruningSchedule(name="test", method=case.method, layers=case.layers, options=case.options)
    with PrunedModel(VitAdapter(model, case.image_size), schedule) as module:
        preprocess = PREPROCESS.model_copy(update={"image_size": ImageSize.of(case.image_size)})
        return export_onnx(module, preprocess, case.spec), module.token_plan.layers


def write(model: ir.Model, folder: Path) -> Path:
    """A graph beside its weights, as a bundle has it."""
    weights = SharedWeights()
    weights.add(folder / "graph.onnx", model.clone())
    weights.write(folder / "weights.safetensors")
    return folder / "graph.onnx"


def plain_graph(case: Case, precision: Any, folder: Path) -> Path:
    return write(specialise(traced(case)[0], replace(case.spec, precision=precision)), folder)


def with_plugins(plain: Path) -> tuple[Path, list[str]]:
    out = plain.with_name("graph.plugins.onnx")
    return out, insert_plugin_nodes(plain, out)


def plugin_nodes(path: Path) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(path, load_external_data=False).graph.node if node.domain == NAMESPACE]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def expected_nodes(case: Case, plans: tuple[LayerPlan, ...]) -> dict[str, dict[str, Any]]:
    """Read off the plan: which nodes there are, and what each says."""
    boosted, novelty = VARIANTS[case.variant][0].get("class_token", True), case.method == "novelty-merge"
    page_rank = {
        "boost": (2 if novelty else 1) if boosted and case.options.start == "boosted" else 0,
        "filter_heads": int(case.options.head_filter and not novelty),
        "variance_min": pytest.approx(0.01),
        "variance_max": pytest.approx(0.7),
        "root_mean_square": int(case.options.join == "rms"),
    }
    labels = {"plugin_version": VERSION.encode(), "plugin_namespace": NAMESPACE.encode()}
    nodes: dict[str, dict[str, Any]] = {}
    for plan in plans:
        scope, drop = f"blocks.{plan.block}/prune", 0 if case.method == "wpr" else plan.similarity_drop
        if novelty:
            nodes[f"{scope}/novelty/importance/{WEIGHTED_PAGE_RANK}_0"] = {**page_rank, **labels, "iterations": 1}
            continue
        if drop:
            nodes[f"{scope}/rank/{WEIGHTED_PAGE_RANK}_0"] = {**page_rank, **labels, "iterations": 1}
            similarity = {"drop": drop, "prefix_tokens": plan.prefix_tokens}
            nodes[f"{scope}/similarity/{SIMILARITY_PRUNE}_0"] = {**similarity, **labels}
        if plan.tokens_in - drop > plan.tokens_out:
            nodes[f"{scope}/wpr/{WEIGHTED_PAGE_RANK}_0"] = {**page_rank, **labels, "iterations": plan.iterations}
    return nodes


@pytest.mark.parametrize("precision", FP32_AND_FP16)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.short("[class token", "[merging", "[novelty, no")
class TestEveryCase:
    def test_nodes_say_what_the_plan_says_and_compute_what_the_plain_graph_does(
        self, case: Case, precision: str, tmp_path: Path
    ) -> None:
        plain = plain_graph(case, precision, tmp_path)
        out, names = with_plugins(plain)
        nodes = {node.name: node for node in plugin_nodes(out)}
        expected = expected_nodes(case, traced(case)[1])
        assert sorted(names) == sorted(nodes) == sorted(expected)
        for name, node in nodes.items():
            assert attributes(node) == expected[name], name
        self.check_inputs(nodes, out, precision)
        self.check_file(plain, out)
        self.check_results(case, precision, plain, out)

    def check_inputs(self, nodes: dict[str, onnx.NodeProto], out: Path, precision: str) -> None:
        """Attention and keys uncast, and survivors where there are any; the types are as declared."""
        model = onnx.load(out, load_external_data=False)
        types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
        producers = {name: node for node in model.graph.node for name in node.output}
        wide = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
        for name, node in nodes.items():
            scope, kind = name.rsplit("/", 1)[0], node.op_type
            block = scope.split("/")[0]
            similar = f"{block}/prune/similarity/{SIMILARITY_PRUNE}_0" in nodes
            assert types[node.output[0]] == onnx.TensorProto.FLOAT
            if kind == WEIGHTED_PAGE_RANK:
                assert producers[node.input[0]].op_type == "Softmax"
                assert types[node.input[0]] == wide
                assert len(node.input) == (2 if scope.endswith("/wpr") and similar else 1)
                if len(node.input) == 2:
                    assert producers[node.input[1]].op_type == SIMILARITY_PRUNE
            else:
                assert producers[node.input[0]].name == f"{block}/prune/rank/{WEIGHTED_PAGE_RANK}_0"
                normalised = producers[node.input[1]].op_type == "LayerNormalization"
                assert types[node.input[1]] == (onnx.TensorProto.FLOAT if normalised else wide)
        ranked = ("rank/", "wpr/", "novelty/importance/Zt")
        left = [node.name for node in model.graph.node if node.name.split("/prune/")[-1].startswith(ranked)]
        assert sorted(left) == sorted(name for name in nodes if "/similarity/" not in name), "nothing is left of them"

    def check_file(self, plain: Path, out: Path) -> None:
        """A graph beside the same weights: nothing copied, nothing lost, in topological order, signature kept."""
        model, original = (onnx.load(path, load_external_data=False) for path in (out, plain))
        assert out.stat().st_size < plain.stat().st_size
        assert list(model.graph.input) == list(original.graph.input)
        assert [value.name for value in model.graph.output] == [value.name for value in original.graph.output]
        assert {(one.domain, one.version) for one in model.opset_import} == {
            *((one.domain, one.version) for one in original.opset_import),
            (NAMESPACE, 1),
        }
        tensors = {tensor.name: tensor for tensor in original.graph.initializer}
        added = [one for one in model.graph.initializer if one.name not in tensors]
        assert all(one.name.endswith("/novelty/importance/factor") and list(one.dims) == [1] for one in added)
        for tensor in model.graph.initializer:
            assert tensor in added or tensor == tensors[tensor.name], tensor.name
        wanted = {name for node in model.graph.node for name in node.input}
        assert {tensor.name for tensor in model.graph.initializer} <= wanted
        seen = {value.name for value in (*model.graph.input, *model.graph.initializer)}
        for node in model.graph.node:
            assert set(node.input) - {""} <= seen, node.name
            seen.update(node.output)

    def check_results(self, case: Case, precision: str, plain: Path, out: Path) -> None:
        batch = case.spec.batch or (1 if case.image_size > 32 else 3)
        generator = np.random.default_rng(1)
        image = generator.integers(0, 256, (batch, case.image_size, case.image_size, 3), dtype=np.uint8)
        if case.spec.image_input == "float32":
            feed = generator.normal(size=(batch, 3, case.image_size, case.image_size)).astype(np.float32)
        else:
            feed = image
        result = run_with_plugins(out, {"image": feed}, NUMPY)
        check_equal(run_with_plugins(out, {"image": feed}, plain), result, precision)
        if precision == "fp32":
            check_equal(run_plain(plain, image=feed), result, precision)


def run_plain(path: Path, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def check_equal(plain: dict[str, np.ndarray], other: dict[str, np.ndarray], precision: str) -> None:
    """The same tokens kept, and logits apart by rounding only."""
    assert plain.keys() == other.keys()
    for name, wanted in plain.items():
        if name.endswith("/kept"):
            np.testing.assert_array_equal(other[name], wanted, err_msg=name)
    scale = max(1.0, float(np.abs(plain["logits"]).max()))
    difference = float(np.abs(plain["logits"] - other["logits"]).max())
    assert difference <= (1e-5 if precision == "fp32" else 1e-2) * scale


class TestReferenceEvaluator:
    def test_the_operators_are_onnx_operators_by_name_and_domain(self, tmp_path: Path) -> None:
        out, _ = with_plugins(plain_graph(CASES["class token"], "fp32", tmp_path))
        evaluator = ReferenceEvaluator(str(out), new_ops=operators(NUMPY))
        image = pixels(2).numpy()
        names = [value.name for value in onnx.load(out, load_external_data=False).graph.output]
        result = dict(zip(names, evaluator.run(None, {"image": image}), strict=True))
        check_equal(run_plain(tmp_path / "graph.onnx", image=image), result, "fp32")


class TestOthers:
    @pytest.mark.parametrize("method", ["random", "slice"])
    def test_a_method_that_scores_nothing_gets_none_and_no_file(self, method: str, tmp_path: Path) -> None:
        case = Case(method=method, layers=BOTH[:1])
        out, names = with_plugins(plain_graph(case, "fp32", tmp_path))
        assert names == []
        assert not out.exists()

    @pytest.mark.parametrize(
        "options",
        [
            {"metric": "dot"},
            {"feature": "all-keys"},
            {"partition": "full"},
            {"partition": "important"},
            {"partition": "random"},
            {"order": "importance-first"},
        ],
        ids=str,
    )
    def test_what_no_kernel_computes_is_refused_and_known_beforehand(
        self, options: dict[str, Any], tmp_path: Path
    ) -> None:
        case = Case(layers=BOTH[:1], options=MethodOptions.model_validate(options))
        plain = plain_graph(case, "fp32", tmp_path)
        assert unknown_options(case.method, case.options) == tuple(options)
        refused(lambda: with_plugins(plain), "'blocks.0/prune/", kind=ModelError)
        assert not (tmp_path / "graph.plugins.onnx").exists()

    @pytest.mark.parametrize("method", METHODS)
    def test_every_option_that_keeps_plugins_out_is_the_methods(self, method: str) -> None:
        for name in METHODS[method].options & MethodOptions.model_fields.keys():
            for value in known_values(name):
                assert set(unknown_options(method, MethodOptions(**{name: value}))) <= {name}
        assert unknown_options("tome", MethodOptions(metric="dot")) == (), "it has no plugins that could be missed"

    def test_bf16_leaves_the_inputs_fp32(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """No kernel takes bf16."""
        capfd.readouterr()
        out, names = with_plugins(plain_graph(CASES["class token"], "bf16", tmp_path))
        assert len(names) == 6
        types = {
            v.name: v.type.tensor_type.elem_type for v in onnx.load(out, load_external_data=False).graph.value_info
        }
        assert {types[name] for node in plugin_nodes(out) for name in node.input} == {onnx.TensorProto.FLOAT}
        assert capfd.readouterr().out == "", "standard output belongs to --json"

    def test_the_same_bytes_every_time(self, tmp_path: Path) -> None:
        plain = plain_graph(CASES["class token"], "fp16", tmp_path)
        first = with_plugins(plain)[0].read_bytes()
        assert with_plugins(plain)[0].read_bytes() == first

    def test_the_plain_graph_and_the_weights_are_not_touched(self, tmp_path: Path) -> None:
        plain = plain_graph(CASES["class token"], "fp16", tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with_plugins(plain)
        assert {name: (tmp_path / name).read_bytes() for name in before} == before

    def test_constants_of_many_tokens_lie_outside_and_are_read_there(self, tmp_path: Path) -> None:
        """Else the large case would prove less than it seems to."""
        plain = plain_graph(CASES["1025 tokens"], "fp32", tmp_path)
        tensors = onnx.load(plain, load_external_data=False).graph.initializer
        outside = {to_array(one, str(tmp_path)).size for one in tensors if one.external_data}
        assert 1025 in outside


# Tampering: each changes one thing in the first pruning layer of the graph.


def node_of(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.name == name)


def constant(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == name)


def other_operator(name: str, operator: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        node_of(graph, name).op_type = operator

    return change


def swapped(name: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        node = node_of(graph, name)
        node.input[:2] = node.input[1::-1]

    return change


def first_entry(name: str, position: int, value: float) -> Callable[[onnx.GraphProto], None]:
    """A constant input of a node with its last entry replaced."""

    def change(graph: onnx.GraphProto) -> None:
        node = node_of(graph, name)
        old = constant(graph, node.input[position])
        values = to_array(old).copy()
        values.reshape(-1)[-1] = value
        node.input[position] = f"{old.name}/changed"
        graph.initializer.append(from_array(values, node.input[position]))

    return change


def another_mask(graph: onnx.GraphProto) -> None:
    node = node_of(graph, "blocks.0/prune/wpr/Mul_2")
    extra = onnx.helper.make_node("Abs", [node.input[1]], ["blocks.0/prune/wpr/extra"], "blocks.0/prune/wpr/Abs_0")
    graph.node.insert(list(graph.node).index(node), extra)
    node.input[1] = extra.output[0]


def other_attention(graph: onnx.GraphProto) -> None:
    node = node_of(graph, "blocks.0/prune/wpr/MatMul_1")
    extra = onnx.helper.make_node("Abs", [node.input[1]], ["blocks.0/prune/wpr/extra"], "blocks.0/prune/wpr/Abs_0")
    graph.node.insert(list(graph.node).index(node), extra)
    node.input[1] = extra.output[0]


WPR, RANK, SIMILARITY = (f"blocks.0/prune/{stage}" for stage in ("wpr", "rank", "similarity"))
TAMPERED: dict[str, tuple[Callable[[onnx.GraphProto], None], str]] = {
    "another operator in the walk": (other_operator(f"{WPR}/Mul_1", "Add"), WPR),
    "another operator in the filter": (other_operator(f"{RANK}/Equal_0", "Greater"), RANK),
    "another join": (other_operator(f"{WPR}/ReduceSum_2", "ReduceMax"), WPR),
    "A s instead of A^T s": (swapped(f"{RANK}/MatMul_0"), RANK),
    "shares divided the other way round": (swapped(f"{WPR}/Div_0"), WPR),
    "another start vector": (first_entry(f"{RANK}/MatMul_0", 0, 2.0), RANK),
    "another start vector with a mask": (first_entry(f"{WPR}/Mul_0", 0, 2.0), WPR),
    "another mask in one step": (another_mask, WPR),
    "another attention in one step": (other_attention, WPR),
    "another norm of the features": (other_operator(f"{SIMILARITY}/ReduceL2_0", "ReduceL1"), SIMILARITY),
    "the mean instead of the largest similarity": (
        other_operator(f"{SIMILARITY}/ReduceMax_0", "ReduceMean"),
        SIMILARITY,
    ),
    "another size of group A": (first_entry(f"{SIMILARITY}/Slice_2", 1, 7), SIMILARITY),
    "dropped by the smallest similarity": (other_operator(f"{SIMILARITY}/TopK_1", "Other"), SIMILARITY),
}


@pytest.mark.parametrize(("change", "scope"), TAMPERED.values(), ids=TAMPERED)
def test_a_subgraph_that_computes_something_else_is_refused_by_name(
    change: Callable[[onnx.GraphProto], None], scope: str, tmp_path: Path
) -> None:
    plain = plain_graph(CASES["class token"], "fp32", tmp_path)
    model = onnx.load(plain, load_external_data=False)
    change(model.graph)
    plain.write_bytes(model.SerializeToString())
    refused(lambda: with_plugins(plain), f"'{scope}' of the graph has ", kind=ModelError)
    assert not (tmp_path / "graph.plugins.onnx").exists()


# Trained models on real images, with the operators in NumPy and with the kernels themselves.


def cpu_kernels() -> Implementation:
    """The CUDA kernels, compiled by g++."""
    module = pytest.importorskip("helpers.cpu_kernels", reason="no tests/helpers/cpu_kernels.py")
    if not module.have_compiler():
        pytest.skip("no g++ to compile the kernels with")

    kernels = module.cpu_kernels()

    def page_rank(attention: np.ndarray, survivors: np.ndarray | None = None, **settings: Any) -> np.ndarray:
        flags = {name: bool(settings.pop(name)) for name in ("filter_heads", "root_mean_square")}
        return np.asarray(kernels.weighted_page_rank(attention, survivors, **flags, **settings))

    return Implementation(page_rank, kernels.similarity_prune)


IMPLEMENTATIONS: dict[str, Callable[[], Implementation]] = {"numpy": lambda: NUMPY, "kernels": cpu_kernels}


@dataclass(frozen=True)
class Trained:
    """Graphs of a trained model at keep ratio 0.7, and images."""

    folders: dict[str, Path]
    images: np.ndarray


def trained(model: Any, images: np.ndarray, folder: Path, method: str) -> Trained:
    with PrunedModel(model.adapter, default_schedule(0.7, model.adapter.architecture, method=method)) as module:
        trace = export_onnx(module, model.preprocess, SPEC)
    folders = {}
    for precision in FP32_AND_FP16:
        folders[precision] = folder / precision
        folders[precision].mkdir()
        with_plugins(write(specialise(trace, replace(SPEC, precision=precision)), folders[precision]))  # type: ignore[arg-type]
    return Trained(folders, images)


METHODS_WITH_PLUGINS = pytest.mark.parametrize("method", ["zero-tprune", "novelty-merge"], scope="module")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, digit_images: list[Path], method: str) -> Trained:
    from ztdeploy.host.models.loading import load_model
    from ztdeploy.target.runtime.preprocess import load_pixels

    model = load_model(ModelSource(name="vit_digits"))
    return trained(model, load_pixels(digit_images[:6], model.preprocess), tmp_path_factory.mktemp("digits"), method)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, realdata: Path, method: str) -> Trained:
    from ztdeploy.host.models.loading import load_model
    from ztdeploy.target.runtime.preprocess import load_pixels

    model = load_model(
        ModelSource(
            name="deit_t",
            checkpoint=realdata / "deit_tiny_patch16_224.fp16.safetensors",
            preprocess=PreprocessOptions(crop_pct=0.875),
        )
    )
    paths = sorted((realdata / "images").glob("*.jpg"))
    images = load_pixels(paths[:: len(paths) // 6][:6], model.preprocess)
    return trained(model, images, tmp_path_factory.mktemp("photographs"), method)


@pytest.mark.parametrize("precision", FP32_AND_FP16)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("which", ["digits", pytest.param("photographs", marks=pytest.mark.realdata)])
@METHODS_WITH_PLUGINS
@pytest.mark.short("novelty-merge-digits")
def test_trained_models_keep_the_same_tokens(
    which: str, implementation: str, precision: str, method: str, request: pytest.FixtureRequest
) -> None:
    backed = IMPLEMENTATIONS[implementation]()
    model: Trained = request.getfixturevalue(which)
    folder = model.folders[precision]
    plain = run_plain(folder / "graph.onnx", image=model.images)
    other = run_with_plugins(folder / "graph.plugins.onnx", {"image": model.images}, backed)
    if precision == "fp32":
        check_equal(plain, other, precision)
    twin = run_with_plugins(folder / "graph.plugins.onnx", {"image": model.images}, folder / "graph.onnx")
    check_equal(twin, other, precision)
    assert np.ptp(plain["logits"].argmax(-1)) > 0, "images of several classes"

"""OpenVINO's engines: what they name, what they refuse, and that they compute in the types of their graph."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.errors import refused
from helpers.processors import needs_bf16

from ztdeploy.cli.app import run
from ztdeploy.core.bundle import WEIGHTS_FILE, read_bundle, sha256_of
from ztdeploy.core.errors import (
    BundleError,
    EngineMismatchError,
    EnvironmentLacksError,
    MissingExtraError,
    ProfileError,
)
from ztdeploy.core.processor import REPORT
from ztdeploy.core.profile import HardwareProfile, read_profile
from ztdeploy.host.graph import GraphSpec, specialise
from ztdeploy.target.adaptive.opening import load
from ztdeploy.target.backends import base, get_backend, openvino
from ztdeploy.target.backends.openvino import (
    PART,
    Cut,
    OpenVinoBackend,
    OpenVinoRunner,
    compile_graph,
    cut_for,
    row_group,
)
from ztdeploy.target.evaluate.explain import explain_bundle
from ztdeploy.target.verify import verify_bundle

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")


def profile(precision: str = "fp32") -> HardwareProfile:
    return read_profile("cpu-openvino").model_copy(update={"precision": precision})


def pruned_graph(bundle: Path) -> Path:
    opened = read_bundle(bundle)
    return opened.path(opened.variant(name="keep-0.70").graphs["cpu"].file)


class Built:
    """An engine of a bundle's graph, beside it."""

    def __init__(self, bundle: Path, precision: str = "fp32") -> None:
        self.backend = OpenVinoBackend()
        self.graph, self.weights = pruned_graph(bundle), bundle / WEIGHTS_FILE
        record = SimpleNamespace(precision=precision)
        self.file = bundle / "graphs" / f"mine{self.backend.suffix}"
        self.fingerprint = self.backend.build(self.graph, record, profile(precision), self.file).fingerprint  # type: ignore[arg-type]

    def load(self, graph_sha256: str | None = None):
        digest = graph_sha256 or self.fingerprint.graph_sha256
        stored = base.StoredEngine(self.file, self.fingerprint, digest, self.weights)
        return self.backend.load(stored, threads=1, memory="speed")


# -------------------- what is refused before anything runs


def test_without_openvino_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda _name: None)
    backend = get_backend("openvino")
    for check in (backend.check_can_build, backend.check_can_run):
        words = ("the backend openvino", "pip install 'ztdeploy[openvino]'")
        refused(lambda check=check: check(profile()), *words, kind=MissingExtraError)


def test_a_broken_installation_is_to_be_installed_again(monkeypatch):
    def broken(_name):
        raise ImportError("libopenvino.so: cannot open shared object file")

    monkeypatch.setattr(base, "find_spec", lambda name: name)
    monkeypatch.setattr(base, "import_module", broken)
    refused(openvino.load_openvino, "libopenvino.so", "--force-reinstall", kind=EnvironmentLacksError)


def test_fp16_has_no_engines():
    refused(lambda: OpenVinoBackend().check_profile(profile("fp16")), "fp16", "fp32 or bf16", kind=ProfileError)


def test_int8_takes_ranges_from_images_here_and_none_in_onnxruntime():
    dynamic, static = (read_profile(name) for name in ("cpu-int8", "cpu-openvino-int8"))
    get_backend("openvino").check_profile(read_profile("cpu-openvino-int8-rows"))
    for one, other in ((dynamic, static), (static, dynamic)):
        get_backend(one.backend).check_profile(one)
        swapped = one.model_copy(update={"int8": other.int8})
        words = ("other int8 activations", one.backend, "'activations' under [int8]")
        refused(
            lambda one=one, swapped=swapped: get_backend(one.backend).check_profile(swapped), *words, kind=ProfileError
        )


@needs_openvino
def test_bf16_is_never_computed_in_fp32_instead(bundle_copy, monkeypatch):
    built = Built(bundle_copy, precision="bf16")
    monkeypatch.setenv(REPORT, "avx2")
    words = ("does not compute in bf16", "avx512_bf16 or amx_bf16", "cpu-openvino")
    refused(lambda: built.backend.check_can_run(profile("bf16")), *words, kind=EnvironmentLacksError)
    refused(built.load, *words, kind=EnvironmentLacksError)
    built.backend.check_can_run(profile("fp32"))
    built.backend.check_can_build(profile("bf16"))  # for another machine


@needs_openvino
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"[]",
        b'{"graph": "keep-0.70.onnx"}',
        b'{"graph": "keep-0.70.onnx", "precision": "fp64"}',
        b'{"graph": "keep-0.70.onnx", "precision": "fp32", "more": 1}',
        b'{"graph": "../graphs/keep-0.70.onnx", "precision": "fp32"}',
        b'{"graph": "/etc/keep-0.70.onnx", "precision": "fp32"}',
        b'{"graph": "keep-0.70.onnx", "precision": "fp32"' + b" " * 5000 + b"}",
        None,
    ],
)
def test_a_corrupt_engine_is_the_bundles_error(bundle_copy, content):
    built = Built(bundle_copy)
    built.file.unlink() if content is None else built.file.write_bytes(content)
    refused(built.load, built.file.name, "not an OpenVINO engine", "ztdeploy finalize")


@needs_openvino
@pytest.mark.parametrize("other", ["dense.onnx", "gone.onnx"])
def test_an_engine_that_names_another_graph_is_refused(bundle_copy, other):
    built = Built(bundle_copy)
    built.file.write_text(json.dumps({"graph": other, "precision": "fp32"}))
    refused(built.load, f"names '{other}'", f"finalize {bundle_copy}", kind=EngineMismatchError)


@needs_openvino
@pytest.mark.parametrize("location", ["../../secret.bin", "absolute"])
def test_a_graph_cannot_read_weights_outside_the_bundle(bundle_copy, tmp_path, location):
    secret = tmp_path / "secret.bin"
    shutil.copy(bundle_copy / WEIGHTS_FILE, secret)
    path = pruned_graph(bundle_copy)
    model = onnx.load(path, load_external_data=False)
    for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data):
        if entry.key == "location":
            entry.value = str(secret) if location == "absolute" else location
    path.write_bytes(model.SerializeToString())
    refused(Built(bundle_copy).load, "OpenVINO", path.name, "resolves to")


@needs_openvino
def test_a_graph_that_is_none_is_the_bundles_error(bundle_copy):
    path = pruned_graph(bundle_copy)
    built = Built(bundle_copy)
    path.write_bytes(b"not a graph")
    refused(lambda: built.load(sha256_of(path)), "another graph", kind=EngineMismatchError)
    refused(Built(bundle_copy).load, "OpenVINO", path.name, "ztdeploy verify")


# -------------------- what runs


def saved_graph(folder: Path, nodes: list[onnx.NodeProto], sides: tuple[tuple[str, list[Any]], ...]) -> Path:
    """A graph of fp32, with an input and an output of such names and shapes."""
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)] for name, shape in sides
    )
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs)
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "g.onnx")
    return folder / "g.onnx"


@pytest.mark.parametrize(
    ("images", "threads", "cut"),
    [
        (2, 1, (2, 1)),
        (2, 2, (1, 2)),
        (3, 2, (2, 2)),
        (8, 2, (2, 2)),
        (8, 4, (2, 4)),
        (8, 6, (2, 3)),
        (8, 16, (1, 8)),
        (64, 7, (2, 7)),
        (5, 7, (2, 1)),
    ],
)
def test_every_share_of_the_threads_has_a_part_of_the_batch(images: int, threads: int, cut: tuple[int, int]) -> None:
    assert cut_for(images, threads) == Cut(*cut)


@needs_openvino
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_batch_gives_what_its_images_give_in_their_order(tmp_path: Path, threads: int) -> None:
    """An even or odd number of images, with and without a part for each thread; a refused call changes nothing."""
    nodes = [onnx.helper.make_node("Mul", ["x", "x"], ["y"])]
    compiled = partial(compile_graph, saved_graph(tmp_path, nodes, (("x", ["b", 3]), ("y", ["b", 3]))), threads)
    alone, signature = compiled(images=1)
    runner = OpenVinoRunner(alone, signature, threads, lambda cut: compiled(images=cut.images, streams=cut.streams)[0])
    for images in (*range(1, 10), 2, 33):
        x = np.random.default_rng(images).standard_normal((images, 3)).astype(np.float32)
        np.testing.assert_array_equal(runner.infer({"x": x})["y"], x * x)
        with pytest.raises(BundleError, match="OpenVINO"):
            runner.infer({"x": np.zeros((images, 4), np.float32)})
    runner.close()


@needs_openvino
def test_outputs_bear_the_names_that_the_graph_gives_them(tmp_path):
    """Behind a Cast that does nothing one value has two names, once OpenVINO has compiled it."""
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a/inner"]),
        onnx.helper.make_node("Cast", ["a/inner"], ["kept"], to=onnx.TensorProto.FLOAT),
    ]
    graph = saved_graph(tmp_path, nodes, (("x", [2, 3]), ("kept", [2, 3])))
    x = np.array([[-1, 2, -3], [4, -5, 6]], np.float32)
    found = OpenVinoRunner(*compile_graph(graph, 1)).infer({"x": x})
    assert list(found) == ["kept"]
    np.testing.assert_array_equal(found["kept"], np.maximum(x, 0))


@needs_openvino
def test_results_stay_when_the_next_call_comes(bundle_copy):
    pixels = np.load(bundle_copy / "golden" / "pixels.npy")
    runner = Built(bundle_copy).load()
    first = runner.infer({"image": pixels})
    copies = {name: values.copy() for name, values in first.items()}
    runner.infer({"image": 255 - pixels})
    for name, values in copies.items():
        np.testing.assert_array_equal(first[name], values)
    runner.close()


@pytest.fixture
def typed(bundle_copy):
    """The pruned graph in bf16, its weights beside it."""
    path = bundle_copy / "graphs" / "typed.onnx"
    graph = specialise(ir.load(pruned_graph(bundle_copy)), GraphSpec(20, "uint8", None, "bf16"))
    ir.save(graph, path, external_data="typed.weights")
    return path


@needs_openvino
@needs_bf16
def test_blocks_compute_in_bf16_and_pruning_layers_in_fp32(typed):
    """By OpenVINO's own account; of itself it would rank tokens in bf16."""
    pruning, blocks = Counter[str](), Counter[str]()
    for node in compile_graph(typed, 1)[0].get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        kind, precision = (facts[name].astype(str) for name in ("layerType", "runtimePrecision"))
        if kind in ("MatMul", "FullyConnected"):
            (pruning if "/prune/" in facts["originalLayersNames"].astype(str) else blocks)[precision] += 1
    assert set(pruning) == {"f32"}
    assert set(blocks) == {"bf16"}
    assert blocks["bf16"] >= 4 * 12


@needs_openvino
@pytest.mark.parametrize("images", [1, None])
def test_a_processor_without_bf16_computes_in_fp32_what_a_graph_has_in_bf16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int | None
) -> None:
    """As attention of int8 graphs, which OpenVINO would emulate in several times the time."""
    node, kinds = onnx.helper.make_node, onnx.TensorProto
    nodes = [
        node("Cast", ["x"], ["low"], to=kinds.BFLOAT16),
        node("Mul", ["low", "low"], ["square"]),
        node("Cast", ["square"], ["y"], to=kinds.FLOAT),
    ]
    graph = saved_graph(tmp_path, nodes, (("x", ["b", 64]), ("y", ["b", 64])))
    x = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    monkeypatch.setenv(REPORT, "ssse3 avx2 fma avx_vnni")
    found = OpenVinoRunner(*compile_graph(graph, 1, images=images)).infer({"x": x})["y"]
    np.testing.assert_allclose(found, x * x, rtol=1e-6)


def integer_layers(compiled):
    """How many products take integers, by OpenVINO's own account."""
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    linear = [one for one in facts if one["layerType"].astype(str).startswith("FullyConnected")]
    return sum(one["runtimePrecision"].astype(str) in ("u8", "i8") for one in linear)


@needs_openvino
def test_linear_layers_are_computed_in_integers(tmp_path: Path, digit_images: list[Path]):
    """Whatever stands around them; a batch gives what its images give alone."""
    bundle = tmp_path / "bundle"
    profiles = ["-p", "cpu-openvino-int8", "-p", "cpu-openvino-int8-rows"]
    assert run(["build", "-m", "vit_digits", *profiles, "-k", "0.7", "-o", str(bundle)]) == 0
    opened = read_bundle(bundle)
    variant = opened.variant(name="keep-0.70")
    graph, engine = variant.graphs["cpu-openvino-int8"], variant.engines["cpu-openvino-int8"]
    assert graph.calibration == "4 built-in images"
    assert any(one.kind == "ranges" for one in opened.manifest.missing)
    assert graph.parity is not None
    assert graph.drift is not None
    assert engine.parity is not None
    assert engine.parity.replayed
    for images in (1, PART, None):
        compiled, _ = compile_graph(opened.path(graph.file), 1, images=images)
        assert integer_layers(compiled) >= 4 * opened.manifest.model.architecture.depth
    pixels = np.load(bundle / "golden" / "pixels.npy")
    with load(opened, variant=variant.name, profile="cpu-openvino-int8", threads=1) as runner:
        together = runner.infer(pixels).logits
        each = np.concatenate([runner.infer(pixels[i : i + 1]).logits for i in range(len(pixels))])
    assert np.abs(together - each).max() < 0.05 * np.abs(together).max()
    verified = verify_bundle(bundle, None, lambda *_: None)
    assert len(verified.variants) == 4
    for name in opened.manifest.profiles:
        (explained,) = explain_bundle(opened, digit_images[:1], profile=name)
        assert explained.variants[0].doubt is None, "what explains the engine chooses as it does, in OpenVINO as well"
        assert all(reasons is not None for reasons in explained.variants[0].reasons)
    rows = variant.graphs["cpu-openvino-int8-rows"]
    assert rows.calibration is None
    assert json.loads(opened.path(variant.engines["cpu-openvino-int8-rows"].file).read_text())["row_group"] == 64
    compiled, _ = compile_graph(opened.path(rows.file), 1, images=1, row_group=128)
    assert integer_layers(compiled) >= 4 * opened.manifest.model.architecture.depth


@needs_openvino
@pytest.mark.parametrize(
    ("widths", "group"), [((192, 768), 192), ((1024, 4096), 128), ((320, 1280), 64), ((72, 288), 64)]
)
def test_a_scale_is_shared_by_as_many_values_as_divide_all_widths(
    tmp_path: Path, widths: tuple[int, ...], group: int
) -> None:
    nodes, weights, value, file = [], [], "x", tmp_path / "g.onnx"
    for width, after in zip(widths, (*widths[1:], 10), strict=True):
        name = f"w{width}"
        weights += [
            onnx.numpy_helper.from_array(np.ones((width, after), np.int8), name),
            onnx.numpy_helper.from_array(np.ones(after, np.float32), f"{name}.scale"),
        ]
        nodes += [
            onnx.helper.make_node("DequantizeLinear", [name, f"{name}.scale"], [f"{name}.held"], axis=1),
            onnx.helper.make_node("MatMul", [value, f"{name}.held"], [f"y{width}"]),
        ]
        value = f"y{width}"
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [tensor("x", 1, ["n", widths[0]])], [tensor(value, 1, ["n", 10])], weights
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), file)
    assert row_group(file) == group

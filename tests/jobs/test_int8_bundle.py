"""Bundles with int8 engines: what proves them, what their weights take, and what the gate holds them against."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.processes import result_in
from helpers.processors import ARM, WITH_DOT_PRODUCTS, WITHOUT_DOT_PRODUCTS

import ztdeploy.target.finalize
from ztdeploy.cli.app import run
from ztdeploy.core.bundle import WEIGHTS_FILE, Bundle, read_bundle
from ztdeploy.core.errors import ParityError
from ztdeploy.core.manifest import ParityRecord, VariantRecord
from ztdeploy.core.processor import ONEDNN_LIMIT, REPORT
from ztdeploy.core.profile import profile_names, read_profile
from ztdeploy.host.graph.emulation import with_exact_products
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.host.parity import prove_products
from ztdeploy.jobs.export import export_bundle
from ztdeploy.jobs.export.parts import MODEL
from ztdeploy.target.adaptive.opening import load
from ztdeploy.target.backends.int8 import exact_here, int8_note
from ztdeploy.target.backends.onnxruntime import load_graph
from ztdeploy.target.backends.weights_file import map_weights
from ztdeploy.target.finalize import finalize_bundle
from ztdeploy.target.runtime.interface import Outputs
from ztdeploy.target.runtime.parity import golden_pixels
from ztdeploy.target.runtime.runner import BundleRunner
from ztdeploy.target.verify import verify_bundle

DIGITS = ASSETS / "digits"


def built(out: Path, *arguments: str) -> Bundle:
    assert run(["build", "-m", "vit_digits", "-o", str(out), *arguments]) == 0
    return read_bundle(out)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """fp32, and int8 for two profiles with the same graph, judged on images."""
    folder = tmp_path_factory.mktemp("int8") / "both"
    twin = folder.with_name("twin.toml")
    twin.write_text('title = "T"\nbackend = "onnxruntime"\nprecision = "int8"\nthreads = 1\n[batch]\nsizes = [1, 8]\n')
    gate = ("--calib", str(DIGITS), "--min-agreement", "0.9")
    return built(folder, "-p", "cpu", "-p", "cpu-int8", "-p", str(twin), "-k", "0.7", *gate)


def test_integers_are_exported_as_they_are(both: Bundle, tmp_path: Path) -> None:
    fp32, int8 = (export_bundle(both.root, tmp_path / name, "onnx", profile=name) for name in ("cpu", "cpu-int8"))
    assert int8.files[MODEL] < 0.4 * fp32.files[MODEL]
    assert int8.models[0].difference < 1e-3, "it is the graph of the engine, and not one near to fp32"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("int8") / "alone"
    return built(folder, "-p", "cpu-int8", "-k", "0.7", "-k", "0.8", "--calib", str(DIGITS))


def test_engines_are_proved_against_their_graphs_and_graphs_against_pytorch(both: Bundle) -> None:
    for variant in both.manifest.variants:
        engine, graph = variant.engines["cpu-int8"], variant.graphs["cpu-int8"]
        assert engine.parity is not None
        assert (engine.parity.against, engine.parity.images) == ("graph", 5)
        assert all(layer.identical == 5 for layer in engine.parity.layers)
        assert engine.parity.max_logit_difference <= (engine.parity.logit_tolerance or 0) < 1e-2
        assert graph.parity is not None
        assert (graph.parity.against, graph.parity.emulated, graph.parity.replayed) == ("pytorch", True, True)
        drift = graph.drift
        assert drift is not None
        assert [layer.block for layer in drift.layers] == [layer.block for layer in variant.plan.layers]
        assert all(0.5 < layer.overlap <= 1 for layer in drift.layers)
        assert drift.agreement == 1
        assert drift.kl is not None
        assert 0 < drift.kl < 0.1
        assert variant.graphs["twin"] == graph, "proved once for both"
        assert variant.engines["twin"].parity is not None
        assert variant.engines["cpu"].parity is not None
        assert variant.engines["cpu"].parity.against == "pytorch"
        assert variant.graphs["cpu"].drift is None
    verify_bundle(both.root, None, lambda *_: None)


def test_what_is_recorded_of_drift_is_what_the_engines_show(both: Bundle) -> None:
    """Both engines on the golden images: tokens of the first layer that both keep, and how far the answers are."""
    variant, pixels = both.manifest.variants[0], golden_pixels(both)
    pixels = np.concatenate([pixels, pixels[:1]])
    outputs = {}
    for profile in ("cpu", "cpu-int8"):
        with load(both, variant=variant.name, profile=profile, threads=1) as runner:
            outputs[profile] = Outputs.joined([runner.infer(pixels[:4]), runner.infer(pixels[4:])])
    single, integers = outputs["cpu"], outputs["cpu-int8"]
    drift = variant.graphs["cpu-int8"].drift
    assert drift is not None
    shared = [
        len(set(one.tolist()) & set(other.tolist())) / len(one)
        for one, other in zip(single.kept[0], integers.kept[0], strict=True)
    ]
    assert drift.layers[0].overlap == pytest.approx(np.mean(shared))
    p, q = (np.exp(one.logits) / np.exp(one.logits).sum(-1, keepdims=True) for one in (single, integers))
    assert drift.kl == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=0.05)


def test_weights_of_linear_layers_are_stored_once_and_in_int8_alone(alone: Bundle) -> None:
    tensors = map_weights(alone.root / WEIGHTS_FILE)
    architecture = alone.manifest.model.architecture
    integers = {name: tensor for name, tensor in tensors.items() if tensor.dtype == np.int8}
    assert len(integers) == 4 * architecture.depth + 1, "those of blocks, and of patches"
    width = architecture.embed_dim
    patches = architecture.patch_dim * width
    assert sum(map(np.size, integers.values())) == 12 * architecture.depth * width**2 + patches
    assert max(np.size(tensor) for tensor in tensors.values() if tensor.dtype != np.int8) < width**2
    assert {variant.name for variant in alone.manifest.variants} == {"keep-0.70", "keep-0.80", "dense"}
    for variant in alone.manifest.variants:
        assert variant.graphs["cpu-int8"].weights_bytes < 0.4 * 4 * 12 * architecture.depth * width**2


def test_engines_use_fused_kernels_and_share_one_copy_of_the_weights(alone: Bundle) -> None:
    import onnx

    engine = alone.manifest.variants[0].engines["cpu-int8"]
    operators = [node.op_type for node in onnx.load(alone.path(engine.file), load_external_data=False).graph.node]
    depth = alone.manifest.model.architecture.depth
    assert operators.count("DynamicQuantizeMatMul") + operators.count("MatMulIntegerToFloat") == 4 * depth
    assert operators.count("MatMulInteger") == 1, "of patches, whose pixels have no scale"
    pixels = golden_pixels(alone)
    logits = {}
    for memory in ("speed", "shared"):
        with load(alone, keep_ratio=0.7, memory=memory, threads=1) as runner:
            logits[memory] = runner.infer(pixels).logits
    np.testing.assert_array_equal(logits["speed"], logits["shared"])


def test_the_graph_with_notes_chooses_as_the_engine_does(alone: Bundle) -> None:
    variant, pixels = alone.manifest.variants[0], golden_pixels(alone)
    notes = variant.graphs["cpu-int8"].notes_file
    assert notes is not None
    noted = load_graph(alone.path(notes), 1).infer({"image": pixels})
    with load(alone, variant=variant.name, threads=1) as runner:
        kept = runner.infer(pixels).kept
    for layer, values in zip(variant.plan.layers, kept, strict=True):
        np.testing.assert_array_equal(noted[f"blocks.{layer.block}/prune/kept"], values)


def test_the_gate_holds_int8_against_dense_in_fp32_where_there_is_one(both: Bundle) -> None:
    gates = {gate.profile: gate for gate in both.manifest.gates}
    assert {name: gate.dense_profile for name, gate in gates.items()} == {"cpu": None, "cpu-int8": "cpu", "twin": "cpu"}
    assert [row.variant for row in gates["cpu-int8"].rows] == ["keep-0.70"]
    fp32_dense = both.engine_digest(both.manifest.dense.engines["cpu"])
    for variant in both.manifest.variants:
        record = both.fidelity(variant, "cpu-int8")
        assert record is not None
        assert (record.dense_profile, record.dense_sha256) == ("cpu", fp32_dense)
        assert record.engine_sha256 == both.engine_digest(variant.engines["cpu-int8"])
    own = both.fidelity(both.manifest.dense, "cpu-int8")
    assert own is not None
    assert own.kl > 0, "what int8 costs by itself"


def test_alone_it_is_held_against_its_own_dense(alone: Bundle) -> None:
    (gate,) = alone.manifest.gates
    assert (gate.dense_profile, [row.variant for row in gate.rows]) == (None, ["keep-0.70", "keep-0.80"])
    own = alone.fidelity(alone.manifest.dense, "cpu-int8")
    assert own is not None
    assert (own.kl, own.dense_profile) == (0, None)


def test_inspect_and_eval_say_against_what(both: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(both.root)]) == 0
    said = capsys.readouterr().out
    assert "Drift by precision" in said
    assert "cpu-int8 (baseline: cpu)" in said
    data = ["--data", str(DIGITS), "--limit", "20", "--no-record"]
    assert run(["eval", str(both.root), *data, "--profile", "cpu-int8", "--against", "cpu"]) == 0
    assert "dense (cpu)" in capsys.readouterr().out
    assert run(["eval", str(both.root), *data, "--against", "cpux"]) != 0
    assert "did you mean 'cpu'?" in capsys.readouterr().err


def test_finalizing_goes_on_without_a_profile_that_fails(
    both: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its old engines stay, and the others are new."""
    copy = Path(shutil.copytree(both.root, tmp_path / "copy"))
    original = ztdeploy.target.finalize.check_golden

    def check(bundle: Bundle, runner: BundleRunner, variant: VariantRecord) -> ParityRecord:
        if runner.profile == "twin" and variant.name == "dense":
            raise ParityError("no luck", "luck", "wait")
        return original(bundle, runner, variant)

    monkeypatch.setattr("ztdeploy.target.finalize.check_golden", check)
    for path in (copy / "graphs").glob("*.twin.onnx"):
        os.utime(path, (0, 0))
    assert run(["finalize", str(copy), "--json"]) == 9
    report = result_in(capsys.readouterr().out)
    assert [(one["profile"], one["exit_code"]) for one in report["failed"]] == [("twin", 5)]
    assert sorted(report["rebuilt"]) == sorted(
        f"{v} ({p})" for v in ("keep-0.70", "dense") for p in ("cpu", "cpu-int8")
    )
    assert {path.stat().st_mtime for path in (copy / "graphs").glob("*.twin.onnx")} == {0}, "untouched"
    verify_bundle(copy, None, lambda *_: None)
    monkeypatch.setattr(
        ztdeploy.target.finalize, "check_golden", lambda *_: (_ for _ in ()).throw(ParityError("a", "b", "c"))
    )
    assert run(["finalize", str(copy)]) == 5


class _Stub:
    """As much of a BundleRunner as the proof takes: an engine, and then what it is held against."""

    profile = "cpu-int8"

    def __init__(self, engine: Outputs, exact: Outputs) -> None:
        self._outputs = {None: engine, "exact": exact}
        self._adopted: str | None = None

    def switch(self, *, variant: str) -> None:
        pass

    def adopt(self, _variant: str, _runner: Any) -> None:
        self._adopted = "exact"

    def infer(self, pixels: np.ndarray) -> Outputs:
        out = self._outputs[self._adopted]
        count = len(pixels)
        return Outputs(out.logits[:count], tuple(k[:count] for k in out.kept), tuple(i[:count] for i in out.into))


@pytest.mark.parametrize("wrong", ["logits", "kept"])
def test_sums_that_are_not_exact_are_refused(both: Bundle, wrong: str) -> None:
    variant, pixels = both.manifest.variants[0], golden_pixels(both)
    with load(both, variant=variant.name, profile="cpu-int8", threads=1) as runner:
        right = runner.infer(pixels)
    logits, kept = right.logits.copy(), [layer.copy() for layer in right.kept]
    if wrong == "logits":
        logits[1, 0] += 0.01 * math.ceil(np.abs(logits).max())
    else:
        kept[1][2, -1] += 1
    engine = Outputs(logits, tuple(kept), right.into)
    parity = prove_products(_Stub(right, right), variant, None, pixels)  # type: ignore[arg-type]
    assert parity.max_logit_difference == 0
    with pytest.raises(ParityError, match="integer products on this CPU are not exact") as caught:
        prove_products(_Stub(engine, right), variant, None, pixels)  # type: ignore[arg-type]
    assert "weight_bits = 7" in caught.value.fix
    if wrong == "kept":
        assert "for 1 of 5 images (no gap was measured: an engine must choose exactly as its own graph)" in str(
            caught.value
        )


# -------------------- processors of either kind: the report is faked, the kernels are this one's


def test_without_dot_products_weights_take_seven_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the engine is proved, the bundle says so, and whoever has dot products runs it as it is."""
    monkeypatch.setenv(REPORT, WITHOUT_DOT_PRODUCTS)
    profiles = ("-p", "cpu-int8", "-p", "raspberry-pi5-int8")
    bundle = built(tmp_path / "out", *profiles, "-k", "0.7")
    manifest, said = bundle.manifest, capsys.readouterr().err
    bits = {name: profile.int8.weight_bits for name, profile in manifest.profiles.items() if profile.int8 is not None}
    assert bits == {"cpu-int8": 7, "raspberry-pi5-int8": 8}, "the other is for Arm"
    (adapted,) = manifest.adapted
    assert adapted.profile == "cpu-int8"
    assert said.count("warning:") == 1
    for text in (said, (bundle.root / "README.md").read_text()):
        assert "profile 'cpu-int8' has weights of 7 bits instead of 8: the processor here has no 8-bit dot" in text
    for variant in manifest.variants:
        for name in bits:
            parity = variant.engines[name].parity
            assert parity is not None
            assert parity.max_logit_difference <= 1e-5
    assert len({variant.graphs["cpu-int8"].file for variant in manifest.variants}) == 2
    pixels, outputs = golden_pixels(bundle), {}
    for report in (WITHOUT_DOT_PRODUCTS, WITH_DOT_PRODUCTS):
        monkeypatch.setenv(REPORT, report)
        with load(bundle, keep_ratio=0.7, profile="cpu-int8", threads=1) as runner:
            outputs[report] = runner.infer(pixels).logits
    np.testing.assert_array_equal(*outputs.values())


@pytest.mark.parametrize("memory", [pytest.param("speed", marks=pytest.mark.long), "shared"])
def test_weights_of_eight_bits_are_exact_on_every_processor(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle with such weights, carried to a processor without dot products: other kernels, the same sums."""
    monkeypatch.setenv(REPORT, WITHOUT_DOT_PRODUCTS)
    bundle = built(tmp_path / "out", "-p", "raspberry-pi5-int8", "-k", "0.7")
    pixels = golden_pixels(bundle)
    with load(bundle, threads=1, memory=memory) as runner:
        there = runner.infer(pixels)
    exact = with_exact_products(ir.load(bundle.path(bundle.manifest.variants[0].graphs["raspberry-pi5-int8"].file)))
    ir.save(exact, tmp_path / "exact.onnx", external_data="exact.weights")
    with load(bundle, threads=1) as runner:
        runner.adopt(runner.variant.name, load_graph(tmp_path / "exact.onnx", 1))
        wanted = runner.infer(pixels)
    np.testing.assert_allclose(there.logits, wanted.logits, atol=1e-4 * np.abs(wanted.logits).max())
    report = verify_bundle(bundle.root, None, lambda *_: None)
    (line,) = report.notes
    assert "slower kernels here, which lose no sum" in line
    assert finalize_bundle(bundle.root, lambda *_: None).notes == report.notes


@pytest.mark.parametrize(
    ("name", "report", "limit", "bits"),
    [
        ("cpu-int8", WITHOUT_DOT_PRODUCTS, "", 7),
        ("cpu-int8", WITH_DOT_PRODUCTS, "", 8),
        ("cpu-int8", ARM, "", 8),
        ("cpu-int8", WITH_DOT_PRODUCTS, "AVX2", 8),  # which ONNX Runtime does not obey
        ("cpu-openvino-int8", WITH_DOT_PRODUCTS, "AVX2", 7),
        ("cpu-openvino-int8", WITH_DOT_PRODUCTS, "", 8),
        ("cpu-openvino-int8", WITHOUT_DOT_PRODUCTS, "", 7),
        ("cpu-openvino-int8-rows", WITHOUT_DOT_PRODUCTS, "", 8),  # computed in fp32 there
        ("raspberry-pi5-int8", WITHOUT_DOT_PRODUCTS, "", 8),
    ],
)
def test_the_form_that_is_exact(name: str, report: str, limit: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64" if report == ARM else "x86_64")
    monkeypatch.setenv(REPORT, report)
    monkeypatch.setenv(ONEDNN_LIMIT, limit)
    asked = read_profile(name)
    profile = exact_here(asked)
    assert profile.int8 is not None
    assert profile.int8.weight_bits == bits
    assert (profile == asked) == (bits == 8)
    assert exact_here(profile) == profile


def test_profiles_of_other_precisions_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REPORT, WITHOUT_DOT_PRODUCTS)
    for name in profile_names():
        profile = read_profile(name)
        if profile.precision != "int8":
            assert exact_here(profile) == profile
            assert int8_note(profile) is None

"""Runtimes behind one protocol: what they build they load and run, and nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from helpers.errors import refused as refused_as

import ztdeploy
from ztdeploy.core import kernel_files
from ztdeploy.core.bundle import WEIGHTS_FILE, read_bundle
from ztdeploy.core.errors import BundleError, EngineMismatchError, EnvironmentLacksError
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.profile import HardwareProfile, profile_names, read_profile
from ztdeploy.target.backends import BACKENDS, get_backend, why_not_build, why_not_run
from ztdeploy.target.backends.base import StoredEngine
from ztdeploy.target.runtime.runner import stored_engine

VARIANTS = ("keep-0.70", "keep-0.50", "dense")


def engine_of(folder, variant="keep-0.70"):
    """The bundle, the variant's record and its CPU engine."""
    bundle = read_bundle(folder)
    record = bundle.variant(name=variant)
    return bundle, record, record.engines["cpu"]


def open_engine(folder, variant="keep-0.70", memory="speed", **changes):
    """Load a CPU engine past all hashes."""
    bundle, record, _ = engine_of(folder, variant)
    stored = replace(stored_engine(bundle, record, "cpu"), **changes)
    return get_backend("onnxruntime").load(stored, threads=1, memory=memory)


@pytest.fixture(scope="module")
def pixels(digits_bundle):
    return np.load(digits_bundle / "golden" / "pixels.npy")


# -------------------- threads


def refused(call, kind, *fragments):
    return refused_as(call, *fragments, kind=kind)


@pytest.mark.parametrize(
    ("affinity", "quota", "limit", "expected"),
    [
        (8, None, 0, 8),
        (8, 2, 0, 2),
        (2, 8, 0, 2),
        (8, None, 4, 4),
        (8, 2, 4, 2),
        (2, None, 4, 2),
        (1, 1, 1, 1),
        (8, None, -1, 1),
    ],
)
def test_usable_threads_are_the_smallest_bound(monkeypatch, affinity, quota, limit, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(affinity)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # the host's, which a container sees
    monkeypatch.setattr(kernel_files, "cpu_quota_cores", lambda: quota)
    assert usable_threads(limit) == expected


def test_without_an_affinity_set_all_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(kernel_files, "cpu_quota_cores", lambda: None)
    assert usable_threads() == 6


def test_the_session_gets_the_threads(digits_bundle):
    for count in (1, 2):
        with ztdeploy.load(digits_bundle, threads=count) as runner:
            assert runner.threads == count
            session = runner._open["keep-0.70"].runner._session
            assert session.get_session_options().intra_op_num_threads == count


# -------------------- the contract, for every backend of the table


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def built(request, digits_bundle, tmp_path_factory):
    """A backend, a fresh engine of the pruned graph in fp32, and what is loaded of it."""
    backend = get_backend(request.param)
    own = HardwareProfile(name="own", title="A backend that no shipped profile asks for", backend=request.param)
    profile = next((one for one in map(read_profile, profile_names()) if one.backend == request.param), own)
    if profile.tensorrt is not None:  # Turing has no fp32 products
        wanted = tuple(one for one in profile.tensorrt.compute_capabilities if one != "7.5")
        options = profile.tensorrt.model_copy(update={"compute_capabilities": wanted})
        profile = profile.model_copy(update={"tensorrt": options, "precision": "fp32"})
    if reason := why_not_build(profile):
        pytest.skip(reason)
    bundle, record, _ = engine_of(digits_bundle)
    graph = record.graphs["cpu"]
    out = tmp_path_factory.mktemp("engine") / "fresh.onnx"
    engine = backend.build(bundle.path(graph.file), graph, profile, out)
    digest = bundle.manifest.files[graph.file].sha256
    stored = StoredEngine(engine.file, engine.fingerprint, digest, bundle.path(WEIGHTS_FILE))
    return backend, engine, stored, why_not_run(profile)


@pytest.fixture
def runnable(built):
    """The same, where the engine runs on this machine."""
    if built[3]:
        pytest.skip(built[3])
    return built[:3]


def test_a_backend_bears_the_name_of_its_line(built, request):
    assert built[0].name in BACKENDS
    assert get_backend(built[0].name).name == built[0].name


def test_an_engine_lies_where_it_was_asked_for_and_is_bound_to_its_graph(built):
    _, engine, stored, _ = built
    assert engine.file.is_file()
    assert engine.weights is None or engine.weights.parent == engine.file.parent
    assert engine.fingerprint.graph_sha256 == stored.graph_sha256
    assert engine.fingerprint.runtime_version


@pytest.mark.parametrize("memory", ["speed", "shared"])
def test_a_fresh_engine_gives_the_golden_outputs(runnable, digits_bundle, pixels, memory):
    backend, _, stored = runnable
    runner = backend.load(stored, threads=1, memory=memory)
    golden = np.load(digits_bundle / "golden" / "keep-0.70.npz")
    outputs = runner.infer({"image": pixels})
    assert set(outputs) == {"logits", *(f"blocks.{block}/prune/kept" for block in (2, 5, 8))}
    np.testing.assert_allclose(outputs["logits"], golden["logits"], atol=1e-4)
    for block in (2, 5, 8):
        assert outputs[f"blocks.{block}/prune/kept"].dtype == np.int32
        np.testing.assert_array_equal(outputs[f"blocks.{block}/prune/kept"], golden[f"kept.{block}"])
    runner.close()


def test_inference_does_not_change_its_input_and_repeats_itself(runnable, pixels):
    backend, _, stored = runnable
    runner = backend.load(stored, threads=1, memory="speed")
    feed = pixels.copy()
    first = runner.infer({"image": feed})["logits"].copy()
    runner.infer({"image": 255 - feed})
    np.testing.assert_array_equal(feed, pixels)
    np.testing.assert_array_equal(runner.infer({"image": feed})["logits"], first)
    runner.close()


def test_a_runner_can_be_closed_twice(runnable):
    backend, _, stored = runnable
    runner = backend.load(stored, threads=1, memory="shared")
    runner.close()
    runner.close()


@pytest.mark.parametrize("field", ["runtime_version", "runtime", "graph_sha256"])
def test_a_foreign_engine_is_refused(built, field):
    backend, engine, stored, _ = built
    foreign = replace(stored, fingerprint=engine.fingerprint.model_copy(update={field: "0" * 64}))
    refused(
        lambda: backend.load(foreign, threads=1, memory="speed"),
        EngineMismatchError,
        engine.file.name,
        "ztdeploy finalize",
    )


# -------------------- the table


@pytest.mark.parametrize("name", ["tpu", ""])
def test_an_engine_of_an_unknown_backend_is_the_bundles_error(name):
    """A bundle of a newer ztdeploy may hold one."""
    refused(lambda: get_backend(name), BundleError, f"'{name}'", "onnxruntime")


# -------------------- ONNX Runtime


def test_a_mismatch_is_found_before_the_engine_is_opened(digits_bundle, monkeypatch):
    _, _, engine = engine_of(digits_bundle)
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: pytest.fail("the engine was opened"))
    other = engine.fingerprint.model_copy(update={"runtime_version": "1.15.0"})
    refused(
        lambda: open_engine(digits_bundle, fingerprint=other),
        EngineMismatchError,
        "onnxruntime 1.15.0",
        ort.__version__,
        "ztdeploy finalize",
    )


def test_an_engine_of_another_graph_is_refused(digits_bundle):
    refused(
        lambda: open_engine(digits_bundle, graph_sha256="1" * 64),
        EngineMismatchError,
        "another graph",
        "ztdeploy finalize",
    )


def test_another_cpu_is_no_mismatch(digits_bundle):
    """What ONNX Runtime's extended optimisations write holds on every CPU: host and target may differ."""
    _, _, engine = engine_of(digits_bundle)
    open_engine(digits_bundle, fingerprint=engine.fingerprint.model_copy(update={"device": "cpu-riscv128"})).close()


class Elsewhere:
    """A session that ONNX Runtime has put somewhere else than it was told to."""

    providers: tuple[str, ...] = ()

    def __init__(self, *_, **__):
        pass

    def get_providers(self):
        return list(self.providers)


@pytest.mark.parametrize("providers", [(), ("CUDAExecutionProvider", "CPUExecutionProvider"), ("Azure",)])
def test_a_session_that_runs_elsewhere_is_refused(digits_bundle, monkeypatch, providers):
    monkeypatch.setattr(Elsewhere, "providers", providers)
    monkeypatch.setattr(ort, "InferenceSession", Elsewhere)
    refused(lambda: open_engine(digits_bundle), EnvironmentLacksError, *providers, "CPUExecutionProvider")


def test_a_session_runs_where_it_was_told_to(digits_bundle):
    runner = open_engine(digits_bundle)
    assert runner._session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    "content",
    [b"", b"not a graph", bytes(1000), os.urandom(1000), None],
    ids=["empty", "text", "zeros", "random", "truncated"],
)
def test_a_corrupt_engine_is_the_bundles_error(bundle_copy, content):
    path = bundle_copy / "graphs" / "keep-0.70.cpu.onnx"
    path.write_bytes(path.read_bytes()[:100_000] if content is None else content)
    refused(lambda: open_engine(bundle_copy), BundleError, "ONNX Runtime", path.name, "ztdeploy verify")


def test_an_engine_whose_weights_are_gone_is_the_bundles_error(bundle_copy):
    (bundle_copy / WEIGHTS_FILE).write_bytes(b"")
    refused(lambda: open_engine(bundle_copy), BundleError)
    refused(lambda: open_engine(bundle_copy, memory="shared"), BundleError, "damaged")


@pytest.mark.parametrize("location", ["../../secret.bin", "absolute"])
def test_an_engine_cannot_read_weights_outside_the_bundle(bundle_copy, tmp_path, location):
    import onnx

    secret = tmp_path / "secret.bin"
    secret.write_bytes((bundle_copy / WEIGHTS_FILE).read_bytes())
    path = bundle_copy / "graphs" / "keep-0.70.cpu.onnx"
    model = onnx.load(path, load_external_data=False)
    for entry in (entry for tensor in model.graph.initializer for entry in tensor.external_data):
        if entry.key == "location":
            entry.value = str(secret) if location == "absolute" else location
    path.write_bytes(model.SerializeToString())
    assert Path(bundle_copy, "graphs", location).exists() or location == "absolute"
    refused(lambda: open_engine(bundle_copy), BundleError, path.name)


# -------------------- memory="shared"


def outputs_of(folder, memory, pixels):
    results = {}
    with ztdeploy.load(folder, memory=memory, threads=1, verify=False) as runner:
        for name in VARIANTS:
            runner.switch(variant=name)
            results[name] = runner.infer(pixels)
    return results


def test_shared_memory_gives_the_same_outputs(digits_bundle, pixels):
    fast, shared = (outputs_of(digits_bundle, memory, pixels) for memory in ("speed", "shared"))
    for name in VARIANTS:
        np.testing.assert_allclose(shared[name].logits, fast[name].logits, atol=1e-4)
        for ours, theirs in zip(shared[name].kept, fast[name].kept, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("memory", "loads"), [("shared", 3), ("speed", 6)])
def test_shared_memory_keeps_every_variant_open(digits_bundle, pixels, monkeypatch, memory, loads):
    opened = []
    session = ort.InferenceSession

    def counting(path, *arguments, **options):
        opened.append(Path(path).name)
        return session(path, *arguments, **options)

    monkeypatch.setattr(ort, "InferenceSession", counting)
    with ztdeploy.load(digits_bundle, memory=memory, threads=1, verify=False) as runner:
        for name in VARIANTS * 2:
            runner.switch(variant=name)
            runner.infer(pixels[:1])
    assert len(opened) == loads
    assert set(opened) == {f"{name}.cpu.onnx" for name in VARIANTS}


def test_shared_engines_read_one_mapping(digits_bundle):
    """The point of it: opening a second engine maps nothing again."""
    from ztdeploy.target.backends.onnxruntime import _shared_values

    with ztdeploy.load(digits_bundle, memory="shared", threads=1, verify=False) as runner:
        misses = _shared_values.cache_info().misses
        runner.switch(1)
        runner.switch(0.5)
        assert _shared_values.cache_info().misses == misses
        first, second = (runner._open[name].runner._shared[0] for name in ("dense", "keep-0.50"))
        assert first is second

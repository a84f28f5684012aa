"""Engines of TensorRT and TensorRT-RTX: what a profile may ask for, and builds that survive the builder's death."""

from __future__ import annotations

import builtins
import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.errors import refused
from helpers.options import case_name, diagonal, values_of

from ztdeploy.core.bundle import sha256_of
from ztdeploy.core.errors import BundleError, EnvironmentLacksError, MissingExtraError, ProfileError, ZtdeployError
from ztdeploy.core.manifest import GraphRecord
from ztdeploy.core.methods import METHODS
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.profile import BatchSizes, HardwareProfile, Int8Options, TensorRtOptions, read_profile
from ztdeploy.target.backends import base, get_backend, why_not_build, why_not_run
from ztdeploy.target.backends.tensorrt import build as building
from ztdeploy.target.backends.tensorrt.cuda import KNOWN_CAPABILITIES
from ztdeploy.target.backends.tensorrt.rtx import TensorRtRtxBackend
from ztdeploy.target.backends.tensorrt.worker import BuildAnswer, BuildOrder

RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0")


def profile(backend: str = "tensorrt-rtx", **changes: Any) -> HardwareProfile:
    capabilities = changes.pop("capabilities", ("8.6",))
    values = {
        "name": "mine",
        "title": "Mine",
        "backend": backend,
        "precision": "fp16",
        "batch": BatchSizes(sizes=(1, 4)),
    }
    options = TensorRtOptions(workspace_mib=256, compute_capabilities=capabilities)
    return HardwareProfile(**{**values, "tensorrt": options, **changes})


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if they had never been installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(base, "find_spec", lambda name, *rest: None if name in modules else real(name, *rest))
    imported = builtins.__import__

    def refuse(name: str, *arguments: Any, **more: Any) -> Any:
        if name.split(".")[0] in modules:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return imported(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for module in modules:
        monkeypatch.delitem(sys.modules, module, raising=False)


# -------------------- what a profile may ask for


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_an_unknown_capability_is_refused_with_the_nearest_known(backend: str) -> None:
    check = get_backend(backend).check_profile
    refused(
        lambda: check(profile(backend, capabilities=("8.6", "8.77"))),
        "'8.77'",
        "did you mean '8.7'?",
        kind=ProfileError,
    )
    refused(lambda: check(profile(backend, capabilities=("sm_86",))), "'sm_86'", "'mine'", kind=ProfileError)


@pytest.mark.parametrize("capability", sorted(set(KNOWN_CAPABILITIES) - set(TensorRtRtxBackend.buildable)))
def test_rtx_builds_for_desktop_gpus_only(capability: str) -> None:
    wanted = profile(capabilities=("8.6", capability))
    words = (f"compute capability {capability}", "7.5, 8.0, 8.6, 8.9, 12.0, 12.1", "the backend tensorrt")
    refused(lambda: get_backend("tensorrt-rtx").check_profile(wanted), *words, kind=ProfileError)
    get_backend("tensorrt").check_profile(profile("tensorrt", capabilities=(capability,)))


def test_rtx_must_be_told_what_to_build_for() -> None:
    refused(
        lambda: get_backend("tensorrt-rtx").check_profile(profile(capabilities=())),
        "compute capability none",
        kind=ProfileError,
    )
    get_backend("tensorrt").check_profile(profile("tensorrt", capabilities=()))
    get_backend("tensorrt").check_profile(profile("tensorrt", tensorrt=None))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_turing_takes_fp16_only(precision: str) -> None:
    wanted = profile(capabilities=("7.5", "8.6"), precision=precision)
    words = (f"{precision} on compute capability 7.5", "fp16", "leave 7.5 out")
    refused(lambda: get_backend("tensorrt-rtx").check_profile(wanted), *words, kind=ProfileError)
    get_backend("tensorrt-rtx").check_profile(profile(capabilities=("8.6",), precision=precision))


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_int8_is_for_onnxruntime_alone(backend: str) -> None:
    wanted = profile(backend, precision="int8")
    words = (f"'mine' asks for int8 with the backend {backend}", "precision fp32 or fp16 or bf16")
    refused(lambda: get_backend(backend).check_profile(wanted), *words, kind=ProfileError)
    assert "int8" in (why_not_build(wanted) or "")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_onnxruntime_takes_no_half_precision(precision: str) -> None:
    wanted = profile("onnxruntime", precision=precision)
    words = (f"asks for {precision} with the backend onnxruntime", "precision fp32 or int8", "another backend")
    refused(lambda: get_backend("onnxruntime").check_can_build(wanted), *words, kind=ProfileError)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_runtime_that_is_not_installed_says_which_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, wanted = get_backend(name), profile(name)
    hide(monkeypatch, backend.module)
    words = (f"'{backend.module}'", f"pip install 'ztdeploy[{backend.extra}]'")
    refused(lambda: backend.check_can_build(wanted), *words, kind=MissingExtraError)
    refused(lambda: backend.check_can_run(wanted), *words, kind=MissingExtraError)
    assert backend.module in (why_not_build(wanted) or "")
    assert backend.module in (why_not_run(wanted) or "")


def test_a_runtime_whose_libraries_do_not_load_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(TensorRtRtxBackend):
        module = "json"

        def importing(self) -> AbstractContextManager[object]:
            raise OSError("libsomething.so: cannot open shared object file")

    refused(Broken().runtime, "libsomething.so", "--force-reinstall", kind=EnvironmentLacksError)


# -------------------- how much memory there is


def meminfo(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    real = Path.read_text

    def read(path: Path, *arguments: Any, **more: Any) -> str:
        if str(path) != "/proc/meminfo":
            return real(path, *arguments, **more)
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read)


def available(mib: int) -> str:
    return f"MemTotal:       99999999 kB\nMemFree:          1000 kB\nMemAvailable:   {mib * 1024} kB\n"


def test_the_workspace_is_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = 100 * 2**20
    meminfo(monkeypatch, available(8000))
    assert building.check_memory(weights, 1024) == 1024
    meminfo(monkeypatch, available(1500))
    assert building.check_memory(weights, 1024) == 1500 - 512 - 400
    meminfo(monkeypatch, available(976))
    assert building.check_memory(weights, 1024) == 64
    meminfo(monkeypatch, available(975))
    words = ("975 MiB of memory are free", "about 976 MiB", "swap")
    refused(lambda: building.check_memory(weights, 1024), *words, kind=EnvironmentLacksError)


@pytest.mark.parametrize("text", [None, "", "MemTotal: 1 kB\n", "MemAvailable: many kB\n", "MemAvailable:\n"])
def test_a_system_that_does_not_say_is_trusted(text: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo(monkeypatch, text)
    assert building.available_memory_mib() is None
    assert building.check_memory(2**40, 777) == 777


# -------------------- a builder that dies, lies or runs out


ORDER = BuildOrder(
    backend="tensorrt-rtx", graph="/nowhere/keep-0.70.onnx", engine="/nowhere/e.engine", batches=(), workspace_mib=1024
)


def worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Run other code in the builder's place."""
    monkeypatch.setattr(building, "module_command", lambda _module: [sys.executable, "-S", "-c", code])


def answers(monkeypatch: pytest.MonkeyPatch, *given: BuildAnswer) -> list[int]:
    """A builder that gives these answers in turn; the list collects the workspaces."""
    queue, workspaces = list(given), list[int]()

    def run(order: BuildOrder) -> BuildAnswer:
        workspaces.append(order.workspace_mib)
        return queue.pop(0) if len(queue) > 1 else queue[0]

    monkeypatch.setattr(building, "_run", run)
    return workspaces


def test_a_builder_that_aborts_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, sys; print('terminate called without an active exception', file=sys.stderr, flush=True); os.abort()"
    )
    worker(monkeypatch, code)
    words = ("'keep-0.70.onnx'", "tensorrt-rtx", "SIGABRT", "terminate called without", "ztdeploy doctor")
    refused(lambda: building.build_engine(ORDER), *words, kind=EnvironmentLacksError)


def test_a_builder_that_is_killed_may_have_run_out_of_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As Linux does it. Each try has half the workspace of the one before."""
    log = tmp_path / "workspaces"
    code = f"import json, os, sys; open({str(log)!r}, 'a').write(str(json.load(sys.stdin)['workspace_mib']) + ' ')\n"
    worker(monkeypatch, code + "os.kill(os.getpid(), 9)")
    words = ("memory ran out", "'keep-0.70.onnx'", "64 MiB", "swap")
    refused(lambda: building.build_engine(ORDER), *words, kind=EnvironmentLacksError)
    assert log.read_text().split() == ["1024", "512", "256", "128", "64"]


def test_memory_that_suffices_for_half_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    short, good = BuildAnswer(failure="memory", messages=("out of memory",)), BuildAnswer(runtime_version="1.7")
    workspaces = answers(monkeypatch, short, short, good)
    assert building.build_engine(ORDER) == good
    assert workspaces == [1024, 512, 256]


@pytest.mark.parametrize(("start", "tried"), [(100, [100, 64]), (64, [64]), (16, [16])])
def test_there_is_an_end_to_trying(start: int, tried: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    workspaces = answers(monkeypatch, BuildAnswer(failure="memory"))
    order = ORDER.model_copy(update={"workspace_mib": start})
    refused(lambda: building.build_engine(order), "memory ran out", kind=EnvironmentLacksError)
    assert workspaces == tried


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (
            BuildAnswer(failure="parse", messages=("In node 3: no importer\nmore",)),
            BundleError,
            ["cannot read", "In node 3"],
        ),
        (BuildAnswer(failure="build", messages=("No kernel",)), BundleError, ["cannot build", "No kernel"]),
        (BuildAnswer(failure="build"), BundleError, ["cannot build", "no message"]),
        (BuildAnswer(failure="parse", messages=("", "")), BundleError, ["cannot read"]),
        (BuildAnswer(failure="parse", messages=("\nIn node 3",)), BundleError, ["cannot read", "In node 3"]),
        (BuildAnswer(failure="capability", messages=("8.7",)), ProfileError, ["8.7", "compute_capabilities"]),
        (
            BuildAnswer(failure="plugin", messages=("'x.so' registers nothing",)),
            EnvironmentLacksError,
            ["x.so", "finalize"],
        ),
    ],
)
def test_failures_become_errors(
    answer: BuildAnswer, kind: type[ZtdeployError], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspaces = answers(monkeypatch, answer.model_copy(update={"runtime_version": "1.7.1"}))
    refused(lambda: building.build_engine(ORDER), *words, kind=kind)
    assert workspaces == [1024], "only memory is worth another try"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('hello')", ["exited with code 0", "without a word"]),
        ('print(\'{"failure": "unheard of"}\')', ["exited with code 0"]),
        ("import sys; sys.stdout.buffer.write(bytes(range(256)))", ["exited with code 0"]),
        ("import sys; sys.exit(3)", ["exited with code 3"]),
        ("raise RuntimeError('the reason')", ["exited with code 1", "RuntimeError: the reason"]),
        ("import os; os.kill(os.getpid(), 11)", ["SIGSEGV"]),
    ],
)
def test_a_builder_that_says_nothing_sensible(code: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, code)
    refused(lambda: building.build_engine(ORDER), *words, "ztdeploy doctor", kind=EnvironmentLacksError)


def test_a_builder_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(building, "_TIMEOUT_S", 0.3)
    words = ("'keep-0.70.onnx' took longer than", "workspace_mib")
    refused(lambda: building.build_engine(ORDER), *words, kind=EnvironmentLacksError)


def test_the_real_builder_without_its_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard TensorRT is on the device only."""
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    order = ORDER.model_copy(update={"backend": "tensorrt"})
    refused(lambda: building.build_engine(order), "tensorrt", "exited with code 1", kind=EnvironmentLacksError)


# -------------------- engines


@pytest.fixture(scope="module")
def rtx() -> Any:
    """TensorRT-RTX, which builds without a GPU."""
    if importlib.util.find_spec(TensorRtRtxBackend.module) is None:
        pytest.skip("TensorRT-RTX is not installed: pip install 'ztdeploy[tensorrt-rtx]'")
    return get_backend("tensorrt-rtx")


def record(model: onnx.ModelProto, *, batch: int | None, precision: str) -> GraphRecord:
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    return GraphRecord.model_validate(
        {
            "file": "graphs/graph.onnx",
            "opset": model.opset_import[0].version,
            "image_input": "uint8",
            "batch": batch,
            "precision": precision,
            "weights_bytes": size,
            "operators": {},
            "nodes": (),
        }
    )


@pytest.fixture(scope="module")
def digits(rtx: Any) -> Callable[..., tuple[onnx.ModelProto, str]]:
    """Graphs of the shipped model cut to three blocks, whatever the method and the types."""
    import onnx_ir as ir
    from helpers.models import adapted

    from ztdeploy.core.schedule import LayerSpec, PruningSchedule
    from ztdeploy.host.export import export_onnx
    from ztdeploy.host.graph import GraphSpec, specialise
    from ztdeploy.host.graph.ranges import measure_ranges
    from ztdeploy.host.models.loading import load_model
    from ztdeploy.host.pruning.pruned_model import PrunedModel

    model = load_model(ModelSource(name="vit_digits"))
    inner: Any = model.adapter.model
    inner.blocks = inner.blocks[:3]
    adapter, traces = adapted(inner, model.preprocess.image_size), dict[Any, ir.Model]()

    def make(
        method: str = "zero-tprune",
        *,
        batch: int | None = None,
        precision: Any = "fp32",
        turing: bool = False,
        options: MethodOptions = DEFAULT_OPTIONS,
        int8: Int8Options | None = None,
    ) -> Any:
        spec = GraphSpec(20, "uint8", batch, precision, turing, int8=int8)
        key = (method, batch, options)
        layers = (LayerSpec(block=1, keep_ratio=0.7), LayerSpec(block=2, keep_ratio=0.7))
        if key not in traces:
            schedule = PruningSchedule(name="test", method=method, options=options, layers=layers)
            with PrunedModel(adapter, schedule) as module:
                traces[key] = export_onnx(module, model.preprocess, spec.traced)
        noise = np.random.default_rng(0).integers(0, 256, (2, *model.preprocess.shape), dtype=np.uint8)
        ranges = measure_ranges(traces[key], [noise], "min-max", threads=1) if int8 is not None else None
        return ir.serde.serialize_model(specialise(traces[key], spec, ranges))

    return make


def build(rtx: Any, model: onnx.ModelProto, folder: Path, wanted: HardwareProfile, batch: int | None = None) -> Any:
    graph = folder / "graph.onnx"
    onnx.save(model, graph)
    described = record(model, batch=batch, precision=wanted.precision)
    return rtx.build(graph, described, wanted, folder / "out.engine"), graph


@pytest.mark.parametrize(
    ("precision", "batch", "capabilities"),
    [
        ("fp32", None, ("8.6",)),
        ("fp16", None, ("7.5", "8.0", "8.6", "8.9", "12.0")),
        ("fp16", 2, ("8.6", "12.1")),
        ("bf16", None, ("8.9",)),
    ],
)
def test_an_engine_is_built_without_a_gpu(
    rtx: Any, digits: Any, precision: str, batch: int | None, capabilities: tuple[str, ...], tmp_path: Path
) -> None:
    model = digits(batch=batch, precision=precision, turing="7.5" in capabilities)
    wanted = profile(capabilities=capabilities, precision=precision)
    built, graph = build(rtx, model, tmp_path, wanted, batch)
    assert built.file == tmp_path / "out.engine"
    assert built.weights is None
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert built.file.stat().st_size > weights / 2
    fingerprint = built.fingerprint
    assert fingerprint.graph_sha256 == sha256_of(graph)
    assert fingerprint.runtime == "tensorrt-rtx"
    assert fingerprint.runtime_version == TensorRtRtxBackend().version()
    assert fingerprint.device.split() == [f"sm_{capability.replace('.', '')}" for capability in capabilities]
    assert fingerprint.plugins is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.short("[zero-tprune]", "[novelty-merge]")
def test_the_graph_of_every_method_builds_for_all_gpus_of_the_shipped_profile(
    rtx: Any, digits: Any, method: str, tmp_path: Path
) -> None:
    """SM 7.5 refuses fp32 products: the graph's form for Turing has none."""
    shipped = read_profile("desktop-gpu")
    assert shipped.tensorrt is not None
    assert shipped.tensorrt.compute_capabilities == RTX_CAPABILITIES
    built, _ = build(rtx, digits(method, precision="fp16", turing=True), tmp_path, shipped)
    assert built.file.stat().st_size > 0


def test_the_graph_of_a_pruned_model_builds_in_int8(rtx: Any, digits: Any, tmp_path: Path) -> None:
    """Pairs of QuantizeLinear and DequantizeLinear, symmetric as TensorRT wants them."""
    model = digits(precision="int8", int8=Int8Options(activations="int8"))
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    built, _ = build(rtx, model, tmp_path, profile(precision="fp32"))
    assert built.file.stat().st_size > 0


#: Some that know all options between them. Those of all but the first have two values each, so that two cases have all.
ABLE = {
    "zero-tprune-merge": diagonal("zero-tprune-merge"),
    "novelty-merge": diagonal("novelty-merge")[:2],
    "a-vit": diagonal("a-vit")[:2],
}


@pytest.mark.parametrize(
    ("method", "options"), [(method, options) for method, some in ABLE.items() for options in some], ids=case_name
)
@pytest.mark.long
def test_the_graph_of_every_value_of_every_option_builds(
    rtx: Any, digits: Any, method: str, options: MethodOptions, tmp_path: Path
) -> None:
    """For the GPU that takes least."""
    for name in MethodOptions.model_fields:
        assert {getattr(one, name) for some in ABLE.values() for one in some} == set(values_of(name))
    graph = digits(method, precision="fp16", turing=True, options=options)
    built, _ = build(rtx, graph, tmp_path, profile(capabilities=("7.5",)))
    assert built.file.stat().st_size > 0


def test_turing_refuses_the_plain_graph(rtx: Any, digits: Any, tmp_path: Path) -> None:
    """A graph that can be read and not be built; and the form for Turing is there for a reason."""
    wanted, words = profile(capabilities=("7.5",)), ("tensorrt-rtx", "cannot build 'graph.onnx'")
    refused(lambda: build(rtx, digits(precision="fp16"), tmp_path, wanted), *words, kind=BundleError)
    assert not (tmp_path / "out.engine").exists()


def small(body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]>\n{body}')


def test_a_graph_that_cannot_be_read_is_refused_in_the_parsers_words(rtx: Any, tmp_path: Path) -> None:
    model = small("g (float[1, 4] x) => (float[1, 4] y)\n{ y = Relu (x) }")
    model.graph.node[0].op_type, model.graph.node[0].name = "Nonsense", "the_culprit"
    words = ("tensorrt-rtx", "cannot read 'graph.onnx'", "Nonsense")
    refused(lambda: build(rtx, model, tmp_path, profile(precision="fp32"), 1), *words, kind=BundleError)
    assert not (tmp_path / "out.engine").exists()


def test_a_file_that_is_no_graph(rtx: Any, tmp_path: Path) -> None:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"not a graph" * 100)
    described = record(small("g (float[1] x) => (float[1] y)\n{ y = Relu (x) }"), batch=1, precision="fp32")
    call = lambda: rtx.build(graph, described, profile(precision="fp32"), tmp_path / "out.engine")  # noqa: E731
    refused(call, "cannot read 'graph.onnx'", kind=BundleError)


def test_batches_become_ranges(digits: Any) -> None:
    dynamic = record(digits(), batch=None, precision="fp32")
    fixed = dynamic.model_copy(update={"batch": 2})
    wanted = profile(batch=BatchSizes(sizes=(1, 4, 16)))
    assert get_backend("tensorrt-rtx").batch_ranges(dynamic, wanted) == ((1, 16, 16),)
    assert get_backend("tensorrt").batch_ranges(dynamic, wanted) == ((1, 1, 1), (2, 4, 4), (5, 16, 16))
    for name in ("tensorrt", "tensorrt-rtx"):
        assert get_backend(name).batch_ranges(fixed, wanted) == ()


def test_an_engine_cannot_be_run_without_a_gpu_and_says_so(rtx: Any) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    reason = why_not_run(profile())
    assert reason
    assert "\n" not in reason
    assert why_not_build(profile()) is None

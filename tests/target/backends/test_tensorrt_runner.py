"""Building and running TensorRT engines, against doubles of TensorRT and the driver in child processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.errors import refused
from helpers.fake_device import DEVICE, VERSION, Done, FakeDevice
from onnx import TensorProto, helper

from ztdeploy.core.errors import BundleError, EnvironmentLacksError, ProfileError
from ztdeploy.target.backends.tensorrt import build as build_module
from ztdeploy.target.backends.tensorrt.build import build_engine, check_memory
from ztdeploy.target.backends.tensorrt.worker import BuildAnswer, BuildOrder

BATCHES = ((1, 1, 1), (2, 4, 4))
START = """
import ctypes, json, os, sys, threading
import numpy as np
from pathlib import Path
from ztdeploy.target.backends.base import StoredEngine
from ztdeploy.target.backends.tensorrt.backend import TensorRtBackend
from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.manifest import Fingerprint
double = ctypes.CDLL("libcuda.so.1")
double.fake_cuda_bytes_in_use.restype = ctypes.c_size_t

def load(path, **changes):
    known = {"graph_sha256": "g", "runtime": "tensorrt", "runtime_version": "10.3.0", "device": "sm_87 Orin", **changes}
    stored = StoredEngine(Path(path), Fingerprint(**known), "g", Path("none"))
    return TensorRtBackend().load(stored, threads=1, memory="speed")

def image(batch, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, 3, 4), dtype=np.uint8)

def right(outputs, image):
    total = image.astype(np.float32).sum((1, 2), keepdims=True)[:, :, 0]
    wanted = {"logits": np.concatenate([total, image[:, 0, :1] * np.float32(2)], 1), "first/kept": image[:, :2, 0]}
    return all(outputs[name].dtype == dtype and np.array_equal(outputs[name], wanted[name])
               for name, dtype in (("logits", np.float32), ("first/kept", np.int32))) and len(outputs) == 2

def error_of(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error), isinstance(error, ZtdeployError)]

def answer(value):
    json.dump(value, sys.stdout)

runner = load(sys.argv[1]) if len(sys.argv) > 1 else None
"""


def graph(batch: int | str = "batch") -> onnx.ModelProto:
    """uint8 `[batch, 3, 4]` to logits fp32 `[batch, 2]` (its sum, twice its first value), and int32 `[batch, 2]`."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats", "axes"], ["sum"], keepdims=1),
        helper.make_node("Squeeze", ["sum", "last"], ["total"]),
        helper.make_node("Gather", ["floats", "zero"], ["row"], axis=1),
        helper.make_node("Slice", ["row", "starts", "ends", "last_axis"], ["corner"]),
        helper.make_node("Mul", ["corner", "two"], ["doubled"]),
        helper.make_node("Concat", ["total", "doubled"], ["logits"], axis=1),
        helper.make_node("Slice", ["floats", "starts", "two_rows", "middle_axis"], ["rows"]),
        helper.make_node("Gather", ["rows", "zero"], ["column"], axis=2),
        helper.make_node("Cast", ["column"], ["first/kept"], to=TensorProto.INT32),
    ]
    lists = {"axes": [1, 2], "last": [2], "starts": [0], "ends": [1], "last_axis": [1], "two_rows": [2]}
    weights = [
        helper.make_tensor(name, TensorProto.INT64, [len(v)], v) for name, v in {**lists, "middle_axis": [1]}.items()
    ]
    weights.append(helper.make_tensor("zero", TensorProto.INT64, [], [0]))
    weights.append(helper.make_tensor("two", TensorProto.FLOAT, [], [2.0]))
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, 3, 4])]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2]),
        helper.make_tensor_value_info("first/kept", TensorProto.INT32, [batch, 2]),
    ]
    made = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "tiny.onnx"
    onnx.save(model, path)
    return path


def ask_worker(device: FakeDevice, graph: Path, **changes: Any) -> tuple[Done, BuildAnswer | None]:
    """The process that builds, and its answer if it gave one."""
    settings = {name: changes.pop(name) for name in list(changes) if name.startswith("FAKE_")}
    known = {"backend": "tensorrt", "batches": BATCHES, "workspace_mib": 512}
    order = BuildOrder(graph=str(graph), engine=str(graph.with_suffix(".engine")), **{**known, **changes})
    done = device.python("-m", "ztdeploy.target.backends.tensorrt.worker", given=order.model_dump_json(), **settings)
    return done, BuildAnswer.model_validate_json(done.out) if done.out else None


@pytest.fixture(scope="module")
def engine(fake_device: FakeDevice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two optimization profiles: batch 1, and batches 2 to 4."""
    path = save(graph(), tmp_path_factory.mktemp("engine"))
    done, answer = ask_worker(fake_device, path)
    assert answer is not None, done.err
    assert answer.failure is None
    return path.with_suffix(".engine")


def on_device(device: FakeDevice, engine: Path | None, code: str, **settings: str) -> Any:
    done = device.python("-c", START + code, *([engine] if engine else []), **settings)
    assert done.code == 0, done.err
    return json.loads(done.out)


# -------------------- running


def test_outputs_are_right_at_every_batch_in_any_order(fake_device: FakeDevice, engine: Path) -> None:
    code = """
results = []
for seed, batch in enumerate((4, 1, 3, 2, 1, 4, 2)):
    results.append(right(runner.infer({"image": image(batch, seed)}), image(batch, seed)))
answer([results, sorted(runner._contexts)])
"""
    assert on_device(fake_device, engine, code) == [[True] * 7, [0, 1]]


def test_inputs_of_any_layout_and_type(fake_device: FakeDevice, engine: Path) -> None:
    code = """
plain = image(3)
layouts = (plain, np.asfortranarray(plain), plain[::-1], np.repeat(plain, 2, axis=0)[::2], plain.astype(np.int64))
answer([right(runner.infer({"image": one}), np.ascontiguousarray(one).astype(np.uint8)) for one in layouts])
"""
    assert on_device(fake_device, engine, code) == [True] * 5


def test_outputs_are_the_callers_own(fake_device: FakeDevice, engine: Path) -> None:
    code = """
given = image(2)
first = runner.infer({"image": given})
kept = {name: array.copy() for name, array in first.items()}
runner.infer({"image": 255 - given})
answer([all(np.array_equal(first[name], kept[name]) for name in kept), np.array_equal(given, image(2)),
        all(array.flags.owndata and array.flags.writeable for array in first.values())])
"""
    assert on_device(fake_device, engine, code) == [True, True, True]


def test_a_batch_that_no_profile_takes_is_refused(fake_device: FakeDevice, engine: Path) -> None:
    code = """
errors = [error_of(lambda: runner.infer({"image": one})) for one in (image(5), image(0), image(2)[:, :2])]
answer([errors, right(runner.infer({"image": image(4)}), image(4))])
"""
    errors, works = on_device(fake_device, engine, code)
    for (kind, message, _), shape in zip(errors, ("[5, 3, 4]", "[0, 3, 4]", "[2, 2, 4]"), strict=True):
        assert kind == "ImageError"
        assert shape in message
    assert works


def test_closing_gives_all_memory_back_and_can_be_repeated(fake_device: FakeDevice, engine: Path) -> None:
    code = """
runner.infer({"image": image(4)})
runner.infer({"image": image(1)})
during = [double.fake_cuda_bytes_in_use() > 0, double.fake_cuda_streams_in_use()]
runner.close()
after = [double.fake_cuda_bytes_in_use(), double.fake_cuda_streams_in_use()]
runner.close()
answer([during, after, runner._engine is None])
"""
    assert on_device(fake_device, engine, code) == [[True, 1], [0, 0], True]


def test_several_engines_side_by_side(fake_device: FakeDevice, engine: Path) -> None:
    """As when candidates are measured, or all variants are open."""
    code = """
other = load(sys.argv[1])
results = [right(one.infer({"image": image(n)}), image(n)) for n in (1, 4, 2) for one in (runner, other)]
runner.close()
results.append(right(other.infer({"image": image(3)}), image(3)))
answer(results)
"""
    assert on_device(fake_device, engine, code) == [True] * 7


def test_another_thread_can_run_an_engine(fake_device: FakeDevice, engine: Path) -> None:
    code = """
found = [right(runner.infer({"image": image(2)}), image(2))]
def work():
    found.append(error_of(lambda: found.append(right(runner.infer({"image": image(4)}), image(4)))))
thread = threading.Thread(target=work)
thread.start()
thread.join()
answer(found)
"""
    assert on_device(fake_device, engine, code) == [True, True, None]


def test_an_engine_that_refuses_to_run_says_so_and_can_be_asked_again(fake_device: FakeDevice, engine: Path) -> None:
    code = """
errors = []
for how in ("1", "context"):
    os.environ["FAKE_TRT_REFUSE"] = how
    errors.append(error_of(lambda: runner.infer({"image": image(1 if how == "1" else 2)})))
os.environ["FAKE_TRT_REFUSE"] = ""
answer([errors, right(runner.infer({"image": image(3)}), image(3))])
"""
    errors, works = on_device(fake_device, engine, code)
    assert all(ours for _, _, ours in errors), errors
    assert "refuse" in errors[0][1]
    assert "memory" in errors[1][1]
    assert works


def test_memory_that_runs_out_is_an_error_with_a_remedy(fake_device: FakeDevice, engine: Path) -> None:
    code = """
small = right(runner.infer({"image": image(1)}), image(1))
failed = error_of(lambda: runner.infer({"image": image(4)}))
again = right(runner.infer({"image": image(1)}), image(1))
runner.close()
answer([small, failed, again, double.fake_cuda_bytes_in_use()])
"""
    small, failed, again, left = on_device(fake_device, engine, code, FAKE_CUDA_MEMORY="60")
    assert small
    assert "out of memory" in failed[1]
    assert failed[2], "an error of ztdeploy's own"
    assert again, "a smaller batch still fits"
    assert left == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"graph_sha256": "other"}, "another graph"),
        ({"runtime_version": "10.4.0"}, "tensorrt 10.4.0"),
        ({"runtime": "tensorrt-rtx"}, "tensorrt-rtx"),
        ({"device": "sm_87 Orin (other)"}, "for sm_87 Orin (other)"),
    ],
)
def test_an_engine_with_another_fingerprint_is_never_opened(
    fake_device: FakeDevice, tmp_path: Path, change: dict[str, str], words: str
) -> None:
    """The file isn't there at all."""
    code = f"answer(error_of(lambda: load({str(tmp_path / 'graphs' / 'x.engine')!r}, **{change})))"
    kind, message, _ = on_device(fake_device, None, code)
    assert kind == "EngineMismatchError"
    assert words in message
    assert f"ztdeploy finalize {tmp_path}" in message


def test_a_file_that_is_no_engine_is_the_bundles_error(fake_device: FakeDevice, engine: Path, tmp_path: Path) -> None:
    content = engine.read_bytes()
    kinds = []
    for broken in (b"", b"no engine", content[: len(content) // 2], content.replace(b"10.3.0", b"10.2.0")):
        (tmp_path / "broken.engine").write_bytes(broken)
        code = f"answer(error_of(lambda: load({str(tmp_path / 'broken.engine')!r})))"
        kinds.append(on_device(fake_device, None, code)[0])
    assert kinds == ["BundleError"] * 4


def test_a_graph_with_a_fixed_batch(fake_device: FakeDevice, tmp_path: Path) -> None:
    path = save(graph(batch=3), tmp_path)
    done, answer = ask_worker(fake_device, path, batches=())
    assert answer is not None, done.err
    assert answer.failure is None
    code = """
refusal = error_of(lambda: runner.infer({"image": image(2)}))
answer([right(runner.infer({"image": image(3)}), image(3)), refusal[0]])
"""
    assert on_device(fake_device, path.with_suffix(".engine"), code) == [True, "ImageError"]


# -------------------- versions


def half_graph() -> onnx.ModelProto:
    """The same, a part of it in fp16, as a typed graph is."""
    model = graph()
    nodes = {node.output[0]: node for node in model.graph.node}
    nodes["doubled"].input[:] = ["half", "half two"]
    nodes["doubled"].output[:] = ["half doubled"]
    casts = {"half": ("corner", TensorProto.FLOAT16), "half two": ("two", TensorProto.FLOAT16)}
    for made, (source, kind) in {**casts, "doubled": ("half doubled", TensorProto.FLOAT)}.items():
        place = 6 if made != "doubled" else 8
        model.graph.node.insert(place - 1, helper.make_node("Cast", [source], [made], to=kind))
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3", "10.16.0", "11.0.0"])
def test_every_version_takes_a_typed_graph_as_it_is(fake_device: FakeDevice, tmp_path: Path, version: str) -> None:
    path = save(half_graph(), tmp_path)
    done, answer = ask_worker(fake_device, path, FAKE_TRT_VERSION=version)
    assert answer is not None, done.err
    assert (answer.failure, answer.runtime_version) == (None, version), answer.messages
    code = f"""
runner = load({str(path.with_suffix(".engine"))!r}, runtime_version={version!r})
answer([right(runner.infer({{"image": image(batch)}}), image(batch)) for batch in (1, 3)])
"""
    assert on_device(fake_device, None, code, FAKE_TRT_VERSION=version) == [True, True]


@pytest.mark.parametrize(
    ("version", "typed", "weak"), [("10.3.0", False, True), ("10.13.3", False, True), ("11.0.0", True, False)]
)
def test_the_double_has_the_flags_of_its_version(
    fake_device: FakeDevice, version: str, typed: bool, weak: bool
) -> None:
    code = """
import tensorrt as trt
log = trt.Logger(); network = trt.Builder(log).create_network(0)
answer([network.strongly_typed, hasattr(trt.BuilderFlag, "FP16"), hasattr(trt.NetworkDefinitionCreationFlag,
    "EXPLICIT_BATCH"), hasattr(trt.BuilderFlag, "TF32")])
"""
    assert on_device(fake_device, None, code, FAKE_TRT_VERSION=version) == [typed, weak, weak, True]


# -------------------- the process that builds


def test_the_answer_names_what_the_engine_is_bound_to(fake_device: FakeDevice, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"not a timing cache")
    done, answer = ask_worker(fake_device, save(graph(), tmp_path), timing_cache=str(cache))
    assert answer is not None, done.err
    assert (answer.failure, answer.runtime_version, answer.device) == (None, VERSION, DEVICE)
    assert answer.seconds > 0
    assert answer.peak_rss_mb > 1
    assert "a line that TensorRT prints by itself" in done.err, "out of the answer's way"
    assert json.loads(cache.read_bytes())["tactics"], "an unusable cache is replaced"


def unknown_operator() -> onnx.ModelProto:
    model = graph()
    model.graph.node[5].op_type = "Frobnicate"
    return model


def plugin_node() -> onnx.ModelProto:
    model = graph()
    model.graph.node[5].op_type, model.graph.node[5].domain = "ZtWeightedPageRank", "ztdeploy"
    return model


@pytest.mark.parametrize(
    ("model", "changes", "failure", "words"),
    [
        (unknown_operator, {}, "parse", "No importer registered for op: Frobnicate"),
        (plugin_node, {}, "parse", "Plugin not found"),
        (graph, {"plugin_library": "/nowhere/plugins.so"}, "plugin", "/nowhere/plugins.so"),
        (graph, {"FAKE_TRT_OOM_ABOVE_MIB": "100"}, "memory", "out of memory"),
        (graph, {"FAKE_TRT_UNBUILDABLE": "1"}, "build", "Error Code 10"),
        (graph, {"batches": ()}, "build", "no optimization profile"),
    ],
    ids=["operator", "plugin", "library", "memory", "build", "no-profile"],
)
def test_failures_come_back_as_answers(
    fake_device: FakeDevice, tmp_path: Path, model: Any, changes: dict[str, Any], failure: str, words: str
) -> None:
    done, answer = ask_worker(fake_device, save(model(), tmp_path), **changes)
    assert answer is not None, done.err
    assert answer.failure == failure
    assert words in " ".join(answer.messages)
    assert not (tmp_path / "tiny.engine").exists()


# -------------------- what is made of the answer

ORDER = BuildOrder(backend="tensorrt", graph="/b/graphs/dense.onnx", engine="/b/e", batches=(), workspace_mib=1000)


def answers(monkeypatch: pytest.MonkeyPatch, *given: BuildAnswer) -> list[int]:
    """Let the build's processes answer like this, one after another; the last for ever. Returns their workspaces."""
    asked: list[int] = []

    def run(order: BuildOrder) -> BuildAnswer:
        asked.append(order.workspace_mib)
        return given[min(len(asked), len(given)) - 1]

    monkeypatch.setattr(build_module, "_run", run)
    return asked


def test_workspace_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, good = BuildAnswer(failure="memory"), BuildAnswer(runtime_version="10.3.0")
    asked = answers(monkeypatch, memory, memory, good)
    assert build_engine(ORDER) is good
    assert asked == [1000, 500, 250]


@pytest.mark.parametrize(("first", "tries"), [(1000, [1000, 500, 250, 125, 64]), (64, [64]), (16, [16])])
def test_workspace_has_an_end(monkeypatch: pytest.MonkeyPatch, first: int, tries: list[int]) -> None:
    asked = answers(monkeypatch, BuildAnswer(failure="memory", messages=("out of memory",)))
    order = ORDER.model_copy(update={"workspace_mib": first})
    refused(lambda: build_engine(order), "memory ran out", "dense.onnx", kind=EnvironmentLacksError)
    assert asked == tries


@pytest.mark.parametrize("messages", [(), ("",), ("\n",), ("first\nsecond", "third")])
@pytest.mark.parametrize(
    ("failure", "kind"), [("parse", BundleError), ("build", BundleError), ("plugin", EnvironmentLacksError)]
)
def test_other_failures_are_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, failure: Any, kind: Any, messages: tuple[str, ...]
) -> None:
    asked = answers(monkeypatch, BuildAnswer(failure=failure, messages=messages, runtime_version="10.3.0"))
    message = refused(lambda: build_engine(ORDER), "tensorrt 10.3.0", kind=kind)
    assert "second" not in message
    assert len(asked) == 1


def test_a_capability_that_the_runtime_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, BuildAnswer(failure="capability", messages=("9.9",)))
    refused(lambda: build_engine(ORDER), "compute capability 9.9", "8.7", kind=ProfileError)


@pytest.mark.parametrize(
    ("available", "asked", "given"), [(None, 4096, 4096), (8000, 4096, 4096), (2552, 4096, 2000), (616, 4096, 64)]
)
def test_the_workspace_fits_into_free_memory(
    monkeypatch: pytest.MonkeyPatch, available: int | None, asked: int, given: int
) -> None:
    """512 MiB are the runtime's, and 4 times 10 MiB the weights'."""
    monkeypatch.setattr(build_module, "available_memory_mib", lambda: available)
    assert check_memory(10 * 2**20, asked) == given


def test_too_little_memory_is_said_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "available_memory_mib", lambda: 615)
    refused(lambda: check_memory(10 * 2**20, 4096), "615 MiB", "616 MiB", "swap", kind=EnvironmentLacksError)


def test_the_tiny_graph_is_what_the_tests_take_it_for(tmp_path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(save(graph(), tmp_path), providers=["CPUExecutionProvider"])
    image = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    logits, kept = session.run(None, {"image": image})
    np.testing.assert_array_equal(logits, [[66, 0], [210, 24]])
    np.testing.assert_array_equal(kept, [[0, 4], [12, 16]])

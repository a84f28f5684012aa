"""CPU engines of ONNX Runtime: its optimised graph is saved, and its actual providers are checked."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ztdeploy.core.bundle import WEIGHTS_FILE, sha256_of
from ztdeploy.core.errors import BundleError, EnvironmentLacksError, InputError
from ztdeploy.core.files import path_in_utf8, remove
from ztdeploy.core.manifest import GraphRecord
from ztdeploy.core.onnx_file import read_graph
from ztdeploy.core.processor import processor
from ztdeploy.core.profile import HardwareProfile, Int8Options
from ztdeploy.core.telemetry import stop_events
from ztdeploy.core.text import first_line
from ztdeploy.target.backends.base import (
    Array,
    Backend,
    BuiltEngine,
    GraphForm,
    InTriton,
    MemoryMode,
    ProfiledCall,
    Signature,
    StoredEngine,
    TensorFacts,
    refused,
)
from ztdeploy.target.backends.onnxruntime_profile import read_profile
from ztdeploy.target.backends.weights_file import map_weights

stop_events(ort)

PROVIDERS = ["CPUExecutionProvider"]
#: One operator for a sum and a LayerNormalization, whose kernel takes about twice as long as the two it replaces.
SLOW_FUSIONS = ["SkipLayerNormFusion"]
#: Initialisers at least this large are read from the shared weights file instead of from the graph.
EXTERNAL_BYTES = 4096
_OF_BATCH = "int8 ranges are measured over a whole batch: what Triton joins with an image changes its answer a little"


class OnnxRuntimeBackend(Backend):
    """Engines are graphs that ONNX Runtime has optimised for any CPU; they are bound to its version."""

    name = module = "onnxruntime"
    distributions = ("onnxruntime",)
    suffix = ".onnx"
    precisions = ("fp32", "int8")
    activations = ("dynamic",)
    shares_weights = concurrent = spins = fused_attention = True

    def describe(self) -> str:
        return f"{self.version()} with {', '.join(ort.get_available_providers())}"

    def graph_form(self, profile: HardwareProfile) -> GraphForm:
        return "rows"

    def in_triton(self, profile: HardwareProfile) -> InTriton | None:
        dynamic = profile.precision == "int8" and (profile.int8 or Int8Options()).activations == "dynamic"
        several = profile.batch.dynamic and max(profile.batch.sizes) > 1
        return InTriton(threads="intra_op_thread_count", notes=(_OF_BATCH,) if dynamic and several else ())

    def build(self, graph: Path, graph_record: GraphRecord, profile: HardwareProfile, out: Path) -> BuiltEngine:
        weights = out.with_suffix(".weights")
        options = session_options(threads=1, exact=False)  # the engine's weights stay what they are in the graph
        # "Extended" fusions hold on every CPU; layouts that suit only the building machine are left to load time.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights.name)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(EXTERNAL_BYTES)
        )
        with path_in_utf8(out) as written:
            options.optimized_model_filepath = written
            open_session(graph, options)
        return BuiltEngine(out, weights if weights.exists() else None, self.fingerprint(sha256_of(graph)))

    def load(self, engine: StoredEngine, *, threads: int, memory: MemoryMode) -> OnnxRuntimeRunner:
        self.check_fingerprint(engine)
        options = session_options(threads)
        shared: list[Any] = []
        if memory == "shared":
            options.add_session_config_entry("session.disable_prepacking", "1")
            shared = share_initializers(options, engine.weights, engine.file)
        return OnnxRuntimeRunner(open_session(engine.file, options), shared)

    def load_profiled(self, engine: StoredEngine, *, threads: int, folder: Path) -> ProfiledSession:
        self.check_fingerprint(engine)
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        return ProfiledSession(open_session(engine.file, options), [])

    def load_graph(self, graph: Path, *, threads: int) -> OnnxRuntimeRunner:
        return load_graph(graph, threads)


def load_graph(graph: Path, threads: int) -> OnnxRuntimeRunner:
    """Run a graph without an engine.

    Raises:
        BundleError: ONNX Runtime refuses it.
    """
    return OnnxRuntimeRunner(open_session(graph, session_options(threads)), [])


class OnnxRuntimeRunner:
    """A session, with the shared weights that it reads."""

    def __init__(self, session: ort.InferenceSession, shared: list[Any]) -> None:
        self._session: ort.InferenceSession | None = session
        self._shared = shared  # the session does not own them
        self._outputs = [output.name for output in session.get_outputs()]

    @property
    def signature(self) -> Signature:
        assert self._session is not None, "the runner is closed"
        return Signature(
            *(tuple(map(_facts, side)) for side in (self._session.get_inputs(), self._session.get_outputs()))
        )

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert self._session is not None, "the runner is closed"
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(feeds)), strict=True))
        except Exception as error:  # ONNX Runtime raises its own classes, with no common base that it documents
            raise refused(f"ONNX Runtime {ort.__version__}", error) from error

    def close(self) -> None:
        self._session = None
        self._shared = []


class ProfiledSession(OnnxRuntimeRunner):
    """A session that records the time of its nodes."""

    def finish(self) -> tuple[ProfiledCall, ...]:
        assert self._session is not None, "the runner is closed"
        path = Path(self._session.end_profiling())
        self.close()
        try:
            return read_profile(path)
        finally:
            with suppress(InputError):
                remove(path)


def _facts(value: Any) -> TensorFacts:
    lengths = (length if isinstance(length, int) and length >= 0 else None for length in value.shape or ())
    return TensorFacts(value.name, _dtype(value.type), tuple(lengths))


def _dtype(kind: str) -> str:
    """NumPy's name of a type such as ONNX Runtime's "tensor(float)"."""
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


def session_options(threads: int, *, exact: bool = True) -> ort.SessionOptions:
    """
    Args:
        exact: take exact kernels on a processor whose fast ones lose sums with 8-bit weights: weights become unsigned,
            and products take up to twice as long. 7-bit weights are not affected, as their sums fit.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # a block for all values of a call, beside the arena: megabytes, and no faster
    options.log_severity_level = 4  # errors are raised as well; its own lines would show names as a file has them
    if exact and processor().loses_sums:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def open_session(model: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """Open a session, and check that it runs on the requested providers.

    Raises:
        BundleError: ONNX Runtime refuses the graph.
        EnvironmentLacksError: the session runs on other providers than asked for.
    """
    lent = _lend_weights(model, options)
    try:
        with path_in_utf8(model) as path:
            session = ort.InferenceSession(path, options, providers=PROVIDERS, disabled_optimizers=SLOW_FUSIONS)
    except Exception as error:  # ONNX Runtime raises its own classes, with no common base that it documents
        raise BundleError(
            f"ONNX Runtime {ort.__version__} refuses '{model}': {first_line(error)}",
            "a graph that it can load",
            "run 'ztdeploy verify' on the bundle, or build it again",
        ) from error
    del lent  # what it needs of them it has copied
    if session.get_providers() != PROVIDERS:
        raise EnvironmentLacksError(
            f"ONNX Runtime runs '{model.name}' on {session.get_providers()}",
            f"{PROVIDERS}",
            "install the plain 'onnxruntime' package",
        )
    return session


def _lend_weights(model: Path, options: ort.SessionOptions) -> list[Any]:
    """Give a session the weights that it would refuse to read: ONNX Runtime follows no link out of a graph's folder,
    and clients of hubs make a bundle of links. The targets were checked against the manifest before."""
    home = model.resolve().parent
    files = [
        file for file in (model.with_name(Path(WEIGHTS_FILE).name), model.with_suffix(".weights")) if file.is_file()
    ]
    linked = [file for file in files if not file.resolve().is_relative_to(home)]
    mapped = [np.memmap(file, np.uint8, "r") for file in linked]
    if linked:
        sizes = [one.size for one in mapped]
        options.add_external_initializers_from_files_in_memory([file.name for file in linked], mapped, sizes)
    return mapped


def share_initializers(options: ort.SessionOptions, weights: Path, engine: Path) -> list[Any]:
    """Let sessions read their weights from one mapping of the weights file per process.

    Initialisers of a bundle's graphs have the names of their tensors in the weights file.

    Returns:
        Objects that must outlive the session.

    Raises:
        BundleError: a tensor has another type or shape than in the graph, which ONNX Runtime does not check.
    """
    values, graph = _shared_values(weights, weights.stat().st_mtime_ns), read_graph(engine)
    constants, shared = graph.tensors, Path(WEIGHTS_FILE).name
    for name, (file, _) in graph.outside.items():
        if file == shared and name not in values:
            raise BundleError(
                f"'{weights}' has no '{name}' of a type that ONNX Runtime takes",
                f"the tensors that '{engine.name}' reads",
                "copy or build the bundle again",
            )
    for name in values.keys() & constants.keys():
        value = values[name]
        kind = _dtype(value.data_type())
        file, begin = graph.outside.get(name, ("", 0))
        if file != shared and not _holds(engine.with_name(file or engine.name), begin, value):
            continue  # its own: a runtime keeps the name of a tensor that it transposes
        if (kind, tuple(value.shape())) != constants[name]:
            raise BundleError(
                f"'{weights}' has '{name}' as {kind} {value.shape()}",
                f"{constants[name][0]} {list(constants[name][1])}, as '{engine.name}' says",
                "copy or build the bundle again",
            )
        options.add_initializer(name, value)
    return [values]


def _holds(file: Path, begin: int, value: Any) -> bool:
    """Whether the bytes of a tensor lie at a place in a file."""
    wanted = value.numpy().reshape(-1).view(np.uint8)
    found = np.memmap(file, np.uint8, "r")[begin : begin + wanted.size]
    return bool(np.array_equal(found, wanted))


@lru_cache(maxsize=8)
def _shared_values(weights: Path, _changed_ns: int) -> dict[str, Any]:
    return {name: ort.OrtValue.ortvalue_from_numpy(tensor) for name, tensor in map_weights(weights).items()}

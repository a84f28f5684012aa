"""CPU engines of OpenVINO, which compiles the bundle's graph each time an engine is opened.

An engine is a short file that names its graph; the weights file serves all graphs, so nothing is stored twice. Compiled
models are not cached: on two cores opening a DeiT-S takes 0.3 s, against 0.1 s from a cache with another copy of the
weights for each engine.

The types of the graph are its precision. OpenVINO is set to compute in fp32, which keeps these types; by default it
would compute everything in bf16 where it can, including the ranking of tokens. A bf16 graph is refused on a processor
without bf16, where OpenVINO would silently use fp32 kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from ztdeploy.core.bundle import sha256_of
from ztdeploy.core.errors import BundleError, EngineMismatchError, EnvironmentLacksError, ZtdeployError
from ztdeploy.core.files import path_in_utf8, write
from ztdeploy.core.manifest import GraphRecord
from ztdeploy.core.processor import BF16_PRODUCTS, Processor, onednn_processor
from ztdeploy.core.profile import HardwareProfile, Int8Options, Precision
from ztdeploy.core.records import Record, from_json, to_json
from ztdeploy.core.telemetry import without_openvino_telemetry
from ztdeploy.target.backends.base import (
    Array,
    Backend,
    BuiltEngine,
    InTriton,
    MemoryMode,
    Signature,
    StoredEngine,
    TensorFacts,
    refused,
    widest_group,
)
from ztdeploy.target.backends.openvino_rows import early_bf16, early_scales, even_rows, in_fp32

#: Images of a batch that are computed together: they use weights twice, and their values still fit a core's cache.
PART = 2
_ENGINE_LIMIT = 4096
_THREADS = "INFERENCE_NUM_THREADS"
#: Triton's back end has no parameter for the type that OpenVINO computes in.
_IN_BF16 = (
    "on a processor with bf16, OpenVINO in Triton computes in bf16 whatever the graph says, also what ranks tokens: "
    "its answers differ from the bundle's, which --to openvino keeps, and a profile for ONNX Runtime"
)
_DTYPES = {"f32": "float32", "u8": "uint8", "i32": "int32", "i64": "int64"}


class OpenVinoEngine(Record):
    """The content of an engine's file."""

    graph: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*\.onnx$", max_length=255)  #: beside the weights file
    precision: Precision
    row_group: int = Field(default=0, ge=0)  #: 0: activations are as the graph says
    weight_bits: int = Field(default=8, ge=2, le=8)  #: of int8 weights


class OpenVinoBackend(Backend):
    """Engines run on any CPU that has their precision; they are bound to OpenVINO's version."""

    name = module = extra = "openvino"
    distributions = ("openvino",)
    suffix = ".openvino.json"
    precisions = ("fp32", "bf16", "int8")
    activations = ("row", "uint8", "int8")
    row_groups = (192, 128, 64)
    shares_weights = True

    def importing(self) -> AbstractContextManager[object]:
        return without_openvino_telemetry()

    def processor(self) -> Processor:
        return onednn_processor()

    def describe(self) -> str:
        bf16 = self.processor().computes_bf16
        return f"{self.version()}; {'fp32 and bf16' if bf16 else 'fp32; this processor does not compute in bf16'}"

    def check_can_run(self, profile: HardwareProfile) -> None:
        super().check_can_run(profile)
        check_processor(profile.precision)

    def build(self, graph: Path, graph_record: GraphRecord, profile: HardwareProfile, out: Path) -> BuiltEngine:
        by_row = profile.int8 is not None and profile.int8.activations == "row"
        group = row_group(graph) if by_row else 0
        bits = (profile.int8 or Int8Options()).weight_bits
        engine = OpenVinoEngine(graph=graph.name, precision=graph_record.precision, row_group=group, weight_bits=bits)
        write(out, to_json(engine) + "\n")
        return BuiltEngine(out, None, self.fingerprint(sha256_of(graph)))

    def load(self, engine: StoredEngine, *, threads: int, memory: MemoryMode) -> OpenVinoRunner:
        """See `base.Backend`. OpenVINO packs the weights for its kernels in either memory mode."""
        self.check_fingerprint(engine)
        content = read_engine(engine.file)
        check_processor(content.precision)
        graph = engine.weights.parent / content.graph
        if not graph.is_file() or sha256_of(graph) != engine.graph_sha256:
            raise EngineMismatchError(
                f"engine '{engine.file.name}' names '{content.graph}', which is not the graph that it was built from",
                "an engine of this bundle's graph",
                f"run: ztdeploy finalize {engine.weights.parent.parent}",
            )
        return _runner(graph, content, threads)

    def in_triton(self, profile: HardwareProfile) -> InTriton | None:
        """See `base.Backend`. Triton cannot set the option by which int8 activations get a scale for each row."""
        if profile.int8 is not None and profile.int8.activations == "row":
            return None
        return InTriton(
            joins=False,
            threads=_THREADS,
            parameters=(("NUM_STREAMS", "1"), ("PERFORMANCE_HINT", "LATENCY")),
            notes=(_IN_BF16,),
        )

    def server_options(self, engine: Path, threads: int) -> dict[str, str | int]:
        """See `base.RunsInServers`."""
        content = read_engine(engine)
        options = _options(threads, content.row_group, content.weight_bits)
        return {name: value for name, value in options.items() if threads or name != _THREADS}

    def load_as_served(self, graph: Path, *, engine: Path, threads: int) -> OpenVinoRunner:
        content = read_engine(engine)
        return OpenVinoRunner(
            *compile_graph(graph, threads, row_group=content.row_group, weight_bits=content.weight_bits)
        )

    def load_noted(self, noted: Path, *, engine: Path, threads: int) -> OpenVinoRunner:
        return _runner(noted, read_engine(engine), threads)


def _runner(graph: Path, engine: OpenVinoEngine, threads: int) -> OpenVinoRunner:
    compiled = partial(compile_graph, graph, threads, row_group=engine.row_group, weight_bits=engine.weight_bits)
    alone, signature = compiled(images=1)
    return OpenVinoRunner(alone, signature, threads, lambda cut: compiled(images=cut.images, streams=cut.streams)[0])


@dataclass(frozen=True)
class Cut:
    """How a batch is computed: in parts of so many images, so many parts at a time."""

    images: int
    streams: int


def cut_for(images: int, threads: int) -> Cut:
    """Parts of two images, or of one where each can have a thread of its own; as many of them at a time as there are
    equal shares of the threads, and none of the shares without a part."""
    size = 1 if images <= threads else PART
    parts = -(-images // size)
    streams = max(count for count in range(1, min(parts, threads) + 1) if threads % count == 0)
    return Cut(PART if streams == 1 else size, streams)


class OpenVinoRunner:
    """A compiled graph; one call at a time.

    A batch is cut into parts, which are computed side by side. Threads that share the work of every operator wait for
    each other hundreds of times in a call, and operators that work on a large batch read from main memory what the last
    one wrote.
    """

    def __init__(
        self, compiled: Any, signature: Signature, threads: int = 1, cut: Callable[[Cut], Any] | None = None
    ) -> None:
        """
        Args:
            compiled: as the graph is, or for one image alone where there is `cut` and the graph takes any batch.
            signature: of the graph.
            threads: of all parts together.
            cut: compiles the graph for parts.
        """
        self._request: Any = compiled.create_infer_request()
        self.signature, self._threads, self._cut = signature, threads, cut
        takes_any = all(one.shape[:1] == (None,) for one in (*signature.inputs, *signature.outputs))
        self._alone = cut is not None and takes_any
        self._requests: dict[Cut, Sequence[Any]] = {}
        self._turn = Lock()

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert self._request is not None, "the runner is closed"
        try:
            with self._turn:
                images = len(next(iter(feeds.values())))
                if images == 1 or not self._alone:
                    return self._named(self._request.infer(dict(feeds), share_inputs=True))  # results are copies
                return self._in_parts(feeds, images, cut_for(images, self._threads))
        except ZtdeployError:
            raise
        except Exception as error:  # of its own, and NumPy's of inputs that it cannot take
            raise refused("OpenVINO", error) from error

    def _in_parts(self, feeds: Mapping[str, Array], images: int, cut: Cut) -> dict[str, Array]:
        """Start a part wherever the one before is ready. An image that is left over runs by itself, in all threads,
        where no other part would run beside it."""
        requests = self._requests_for(cut)
        alone = images % cut.images == 1 and images // cut.images % cut.streams == 0
        parts = [slice(at, at + cut.images) for at in range(0, images - alone, cut.images)]
        found: list[dict[str, Array]] = []
        try:
            for at, part in enumerate([*parts, *[None] * cut.streams]):
                request = requests[at % cut.streams]
                if at >= cut.streams:
                    request.wait()
                    found.append({name: values.copy() for name, values in self._named(request.results).items()})
                if part is not None:
                    own = {name: _filled(values[part], cut.images) for name, values in feeds.items()}
                    request.start_async(own, share_inputs=True)
        finally:
            for request in requests:
                with suppress(Exception):  # it was raised above
                    request.wait()
        if alone:
            last = {name: values[-1:] for name, values in feeds.items()}
            found.append(self._named(self._request.infer(last, share_inputs=True)))
        whole = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
        repeated = len(parts) * cut.images + alone - images
        return {name: values[: len(values) - repeated] for name, values in whole.items()}

    def _requests_for(self, cut: Cut) -> Sequence[Any]:
        assert self._cut is not None, "a graph for one batch alone"
        if cut not in self._requests:
            compiled = self._cut(cut)
            self._requests[cut] = [compiled.create_infer_request() for _ in range(cut.streams)]
        return self._requests[cut]

    def _named(self, found: Any) -> dict[str, Array]:
        return {output.name: found[position] for position, output in enumerate(self.signature.outputs)}

    def close(self) -> None:
        self._request = None
        self._requests = {}


def _filled(values: Array, images: int) -> Array:
    """A part of a batch, whose last image is repeated where there are too few."""
    return np.concatenate([values, *[values[-1:]] * (images - len(values))]) if len(values) < images else values


def load_openvino() -> Any:
    """Import OpenVINO; raises as `Backend.runtime`."""
    return OpenVinoBackend().runtime()


def check_processor(precision: Precision) -> None:
    """
    Raises:
        EnvironmentLacksError: bf16 on a processor without it.
    """
    if precision == "bf16" and not onednn_processor().computes_bf16:
        raise EnvironmentLacksError(
            "this processor does not compute in bf16",
            f"one with {' or '.join(BF16_PRODUCTS)}",
            "use a profile of precision fp32, such as cpu-openvino",
        )


def exact_kernels(row_group: int, weight_bits: int) -> dict[str, str | int]:
    """Options for exact integer products on a processor whose integer kernels would lose sums.

    Integers are then multiplied in fp32, at the speed of fp32. Without 8-bit dot products there are no integer kernels
    for activations by row; where oneDNN's limit on instructions forbids them, an option must say so.
    """
    here = onednn_processor()
    if row_group:
        return {} if here.dot_products else {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    return {"LP_TRANSFORMS_MODE": "NO"} if here.loses_sums and weight_bits > 7 else {}


def _options(threads: int, row_group: int, weight_bits: int, *, streams: int = 1) -> dict[str, str | int]:
    """The options that a graph is compiled with. A precision of fp32 leaves the types of the graph alone."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": streams,
        _THREADS: threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": row_group,
        **exact_kernels(row_group, weight_bits),
    }


def read_engine(path: Path) -> OpenVinoEngine:
    """
    Raises:
        BundleError: the file is not an engine of this backend.
    """
    try:
        with path.open("rb") as file:
            return from_json(OpenVinoEngine, file.read(_ENGINE_LIMIT))
    except (OSError, ValidationError) as error:
        raise BundleError(
            f"'{path}' is not an OpenVINO engine", "a file as built", f"run: ztdeploy finalize {path.parent.parent}"
        ) from error


def row_group(graph: Path) -> int:
    """The number of values that share a scale in a graph with int8 weights and other activations."""
    constants = [node for node in _read_model(graph).get_ops() if node.get_type_name() == "Constant"]
    integers = [node for node in constants if node.get_element_type().get_type_name() == "i8"]
    return widest_group([node.shape[0] for node in integers if len(node.shape) == 2], OpenVinoBackend.row_groups)


def compile_graph(
    graph: Path,
    threads: int,
    *,
    images: int | None = None,
    streams: int = 1,
    row_group: int = 0,
    weight_bits: int = 8,
) -> tuple[Any, Signature]:
    """Compile a graph.

    Args:
        threads: of all calls together.
        images: for batches of this size where the graph takes any: with all shapes known, OpenVINO fuses more, and a
            call of DeiT-S in int8 takes a tenth less.
        streams: calls at a time.
        row_group: values of a token that share a scale where a graph's weights are int8 and its activations are not.
        weight_bits: of int8 weights.

    Returns:
        With it what the graph takes and gives: compiling adds the names of other values to the one that each output
        has there, and may be for one image alone.

    Raises:
        BundleError: OpenVINO refuses the graph.
    """
    openvino = load_openvino()
    options = _options(threads, row_group, weight_bits, streams=streams)
    try:
        model = _read_model(graph)
        signature = Signature(*(tuple(map(_facts, side)) for side in (model.inputs, model.outputs)))
        if not onednn_processor().computes_bf16:
            in_fp32(model, openvino.opset13)
        if images is not None:
            for source in model.inputs:
                shape = source.partial_shape
                if shape[0].is_dynamic:
                    shape[0] = images
                    model.reshape({source.get_any_name(): shape})
            early_scales(model, openvino.opset13)
            even_rows(model, openvino.opset13, by_row=row_group > 0)
            early_bf16(model, openvino.opset13)
        return _core().compile_model(model, "CPU", options), signature
    except Exception as error:  # RuntimeError, and whatever our own rewrites meet in a graph that nobody checked
        reasons = [line for line in str(error).splitlines() if line and not line.startswith("Exception from")]
        raise BundleError(
            f"OpenVINO {openvino.__version__} refuses '{graph}': {' '.join(reasons)[:200]}",
            "a graph that it can load",
            "run 'ztdeploy verify' on the bundle, or build it again",
        ) from error


def _facts(port: Any) -> TensorFacts:
    shape, kind = port.partial_shape, port.element_type.get_type_name()
    lengths = () if shape.rank.is_dynamic else tuple(one.get_length() if one.is_static else None for one in shape)
    return TensorFacts(port.get_any_name(), _DTYPES.get(kind, kind), lengths)


@lru_cache(maxsize=1)
def _core() -> Any:
    return load_openvino().Core()


def _read_model(graph: Path) -> Any:
    with path_in_utf8(graph) as path:
        return _core().read_model(path)

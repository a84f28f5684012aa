"""The process in which one engine is built: `python -m ztdeploy.target.backends.tensorrt.worker`.

Reads a `BuildOrder` on standard input, answers with a `BuildAnswer` on standard output. The runtime may end the
process at any point; that is why there is one.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Literal

from ztdeploy.core.files import write
from ztdeploy.core.processes import own_standard_output, peak_rss_mb
from ztdeploy.core.records import Record, from_json, to_json
from ztdeploy.target.backends import get_backend

MIB = 2**20
#: Why no engine came out. "memory" is worth another try with less workspace.
Failure = Literal["parse", "plugin", "capability", "memory", "build"]


class BuildOrder(Record):
    """One engine to build. Paths are absolute."""

    backend: str
    graph: str
    engine: str
    batches: tuple[tuple[int, int, int], ...]  #: smallest, best and largest batch per optimization profile; () if fixed
    workspace_mib: int
    compute_capabilities: tuple[str, ...] = ()  #: empty: the GPU at hand
    plugin_library: str | None = None
    timing_cache: str | None = None  #: read where it exists, and written


class BuildAnswer(Record):
    """What the process has to say, if it lives to say it."""

    failure: Failure | None = None
    messages: tuple[str, ...] = ()  #: the runtime's errors, in its order
    runtime_version: str = ""
    device: str = ""
    seconds: float = 0.0
    peak_rss_mb: float = 0.0


class BuildFailedError(Exception):
    def __init__(self, failure: Failure, *messages: str) -> None:
        self.failure, self.messages = failure, messages
        super().__init__(failure)


def main() -> None:
    answers = own_standard_output()  # the runtime prints, too
    order = from_json(BuildOrder, sys.stdin.read())
    started = time.perf_counter()
    trt = get_backend(order.backend).runtime()
    log = make_log(trt)
    try:
        device = build(trt, log, order)
        answer = BuildAnswer(device=device)
    except BuildFailedError as failed:
        answer = BuildAnswer(failure=failed.failure, messages=(*failed.messages, *log.errors))
    figures = {
        "runtime_version": trt.__version__,
        "seconds": time.perf_counter() - started,
        "peak_rss_mb": peak_rss_mb(),
    }
    answers.write(to_json(answer.model_copy(update=figures)))
    answers.close()


def make_log(trt: Any) -> Any:
    """A logger that keeps the runtime's errors to itself until they are asked for."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def build(trt: Any, log: Any, order: BuildOrder) -> str:
    """Parse, configure, build, write.

    Returns:
        What the engine is bound to.

    Raises:
        BuildFailedError: with the step at which it failed.
    """
    builder = trt.Builder(log)
    if order.plugin_library is not None and not builder.get_plugin_registry().load_library(order.plugin_library):
        raise BuildFailedError("plugin", f"'{order.plugin_library}' registers nothing")
    network = parse(trt, log, builder, order.graph)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order.workspace_mib * MIB)
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
    add_batches(builder, config, network, order)
    device = set_capabilities(trt, config, order)
    cache = load_timing_cache(config, order)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildFailedError("memory" if ran_out_of_memory(log.errors) else "build")
    write(Path(order.engine), memoryview(engine))
    if cache is not None and order.timing_cache is not None:
        write(Path(order.timing_cache), bytes(config.get_timing_cache().serialize()))
    return device


def parse(trt: Any, log: Any, builder: Any, graph: str) -> Any:
    # TensorRT 11 knows nothing but strong typing. It still has the flag that asks for it, which later ones may drop.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(graph):
        raise BuildFailedError("parse", *(str(parser.get_error(i)) for i in range(parser.num_errors)))
    return network


def add_batches(builder: Any, config: Any, network: Any, order: BuildOrder) -> None:
    """One optimization profile per range of batches; none where the graph fixes the batch."""
    image = network.get_input(0)
    rest = tuple(image.shape)[1:]
    for smallest, best, largest in order.batches:
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, (smallest, *rest), (best, *rest), (largest, *rest))
        config.add_optimization_profile(profile)


def set_capabilities(trt: Any, config: Any, order: BuildOrder) -> str:
    """Name the GPUs to build for, where the runtime can build for others than the one at hand."""
    if not order.compute_capabilities:
        from ztdeploy.target.backends.tensorrt.cuda import device_label, open_device

        return device_label(open_device())
    config.num_compute_capabilities = len(order.compute_capabilities)
    for index, capability in enumerate(order.compute_capabilities):
        member = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}", None)
        if member is None or not config.set_compute_capability(member, index):
            raise BuildFailedError("capability", capability)
    return " ".join(f"sm_{capability.replace('.', '')}" for capability in order.compute_capabilities)


def load_timing_cache(config: Any, order: BuildOrder) -> Any:
    """What earlier builds on this device measured; an unusable cache counts as none."""
    if order.timing_cache is None:
        return None
    path = Path(order.timing_cache)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if not cache or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def ran_out_of_memory(errors: list[str]) -> bool:
    text = " ".join(errors).lower()
    return any(phrase in text for phrase in ("out of memory", "outofmemory", "bad_alloc", "insufficient memory"))


if __name__ == "__main__":
    main()

"""How near engines come to what the processor could do: products, memory, and the time of each part of a call.

    python -m benchmarks.limits [--model deit_s] [--keep-ratio 0.7] [--batch 1] [--threads 2] [--bundle DIR]

First the peaks are measured: multiply-adds per second of large matrix products in the runtimes and in NumPy, and bytes
per second of copies far beyond the last-level cache and within it. Then ONNX Runtime's engines are taken apart by its
profiler, and each part is held against a roofline: the larger of its products at the peak of their type, and its bytes
at the bandwidth of the memory (weights) and of the cache (activations, as fp32). What the profiler itself takes counts
as time between operators. Of OpenVINO's engines only the whole call is timed. Random weights: with static shapes the
time does not depend on them.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine
from ztdeploy.core.bundle import Bundle, read_bundle
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.manifest import VariantRecord
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.names import IMAGE
from ztdeploy.core.processor import processor
from ztdeploy.jobs.build import BuildRequest, build
from ztdeploy.target.backends.base import NodeRun
from ztdeploy.target.measure.details_worker import insight_of
from ztdeploy.target.measure.operators import FUSED_ATTENTION, PRODUCTS, PlacedNode, place
from ztdeploy.target.runtime.runner import load_engine, stored_engine

PROFILED, WHOLE = ("cpu", "cpu-int8"), ("cpu-openvino", "cpu-openvino-int8")
#: Products with 8-bit weights.
INTEGER = frozenset(("DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul"))
#: They give another view of the same bytes, or read a shape.
_FREE = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Shape", "Constant"))
_SIDE, _REPEATS, _CALLS = 2048, 12, 30
_BEYOND, _WITHIN = 128 * 2**20, 2**21  #: bytes per thread of what is copied


@dataclass(frozen=True)
class Peaks:
    """What the processor reaches at best."""

    fp32: float  #: multiply-adds per second
    int8: float  #: multiply-adds per second
    memory: float  #: bytes per second, read and written
    cache: float  #: bytes per second, read and written


@dataclass(frozen=True)
class Cost:
    """What a part of a call does at least."""

    macs: float = 0.0
    integer_macs: float = 0.0
    weights: float = 0.0  #: bytes
    activations: float = 0.0  #: bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def bound_ms(self, peaks: Peaks) -> float:
        """The roofline: no part can be faster than its products, or than its bytes."""
        computing = self.macs / peaks.fp32 + self.integer_macs / peaks.int8
        return 1000 * max(computing, self.weights / peaks.memory + self.activations / peaks.cache)


def cost_of(run: NodeRun) -> Cost:
    """What a node computes and moves, from its shapes; weights that a runtime has packed away are not among them."""
    out = math.prod(run.outputs[0]) if run.outputs else 0
    activations = 0.0 if run.operator in _FREE else 4.0 * sum(map(math.prod, (*run.inputs, *run.outputs)))
    if run.operator in FUSED_ATTENTION:
        batch, tokens, width = run.outputs[0][0], run.outputs[0][-2], run.outputs[0][-1]
        return Cost(macs=2.0 * batch * tokens * tokens * width, activations=activations)
    if "Conv" in run.operator:
        kernel = run.inputs[1]
        return Cost(out * math.prod(kernel[1:]), 0.0, 4.0 * math.prod(kernel), activations - 4.0 * math.prod(kernel))
    if run.operator not in PRODUCTS | INTEGER | {"Gemm", "FusedGemm"}:
        return Cost(activations=activations)
    inner, integer = run.inputs[0][-1], run.operator in INTEGER
    packed = sum(len(shape) > 1 for shape in run.inputs) < 2
    weights = float(inner * run.outputs[0][-1] * (1 if integer else 4)) if packed else 0.0
    products = float(out * inner)
    return Cost(0.0 if integer else products, products if integer else 0.0, weights, activations)


def main() -> None:
    arguments = _arguments()
    print(f"{describe_machine()}; {', '.join(processor().dot_products) or 'no 8-bit dot products'}\n")
    with tempfile.TemporaryDirectory() as folder:
        products = product_peaks(Path(folder), arguments.threads)
        memory, cache = (bandwidth(size, arguments.threads) for size in (_BEYOND, _WITHIN))
        rows = [(f"{name}, GMAC/s", rate) for name, rate in products.items()]
        rows += [("copies beyond the cache, GB/s", memory), ("copies within it, GB/s", cache)]
        print("| peak | |\n| --- | ---: |\n" + "\n".join(f"| {name} | {rate / 1e9:.1f} |" for name, rate in rows))
        peaks = Peaks(
            max(rate for name, rate in products.items() if "fp32" in name),
            max(rate for name, rate in products.items() if "int8" in name),
            memory,
            cache,
        )
        bundle = read_bundle(arguments.bundle) if arguments.bundle else _build(arguments, Path(folder) / "bundle")
        pixels = np.zeros((arguments.batch, *bundle.manifest.preprocess.shape), np.uint8)
        for variant in (bundle.manifest.dense, bundle.variant()):
            for profile in (name for name in PROFILED if name in variant.engines):
                print(f"\n{variant.name}, {profile}, batch {arguments.batch}\n")
                nodes, call_ms = profiled(bundle, variant, profile, pixels, arguments.threads)
                print(table(nodes, call_ms, variant.plan.tokens_per_block, peaks))
            for profile in (name for name in WHOLE if name in variant.engines and importlib.util.find_spec("openvino")):
                print(f"\n{_whole(bundle, variant, profile, pixels, arguments.threads, peaks)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_s")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=usable_threads())
    parser.add_argument("--bundle", type=Path, help="one with some of these profiles, instead of a fresh one")
    return parser.parse_args()


def _build(asked: argparse.Namespace, out: Path) -> Bundle:
    source = ModelSource(name=asked.model, weights="random")
    profiles = PROFILED + (WHOLE if importlib.util.find_spec("openvino") else ())
    return build(BuildRequest(source, profiles, out, keep_ratios=(asked.keep_ratio,)))


# -------------------- peaks


def product_peaks(folder: Path, threads: int, side: int = _SIDE) -> dict[str, float]:
    """Multiply-adds per second of a square product: the best of some calls, by runtime and type."""
    left = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    calls: dict[str, Callable[[], object]] = {
        f"ONNX Runtime, {kind}": _onnxruntime_product(folder / f"{kind}.onnx", kind, side, threads)
        for kind in ("fp32", "int8")
    }
    calls["NumPy, fp32"] = lambda: left @ left
    if importlib.util.find_spec("openvino"):
        kinds = ("fp32", "bf16") if processor().computes_bf16 else ("fp32",)
        calls |= {f"OpenVINO, {kind}": _openvino_product(folder / "fp32.onnx", kind, left, threads) for kind in kinds}
    return {name: side**3 / _best(call) for name, call in calls.items()}


def _onnxruntime_product(path: Path, kind: str, side: int, threads: int) -> Callable[[], object]:
    """A product with a constant matrix, which the runtime packs as it does the weights of an engine."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from ztdeploy.target.backends.onnxruntime import open_session, session_options

    integer, random = kind == "int8", np.random.default_rng(0)
    weights = random.integers(-64, 64, (side, side), np.int8) if integer else random.standard_normal((side, side))
    constant = numpy_helper.from_array(weights.astype(np.int8 if integer else np.float32), "w")
    given, made = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if integer else "MatMul", ["x", "w"], ["y"])],
        kind,
        [helper.make_tensor_value_info("x", given, [side, side])],
        [helper.make_tensor_value_info("y", made, [side, side])],
        [constant],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    session = open_session(path, session_options(threads))
    feeds = {"x": np.ones((side, side), np.uint8 if integer else np.float32)}
    return lambda: session.run(None, feeds)


def _openvino_product(path: Path, kind: str, left: Any, threads: int) -> Callable[[], object]:
    from ztdeploy.target.backends.openvino import load_openvino

    hint = {"INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32", "INFERENCE_NUM_THREADS": threads}
    request = load_openvino().Core().compile_model(path, "CPU", {"PERFORMANCE_HINT": "LATENCY", **hint})
    request = request.create_infer_request()
    return lambda: request.infer({0: left}, share_inputs=True, share_outputs=True)


def bandwidth(size: int, threads: int) -> float:
    """Bytes read and written per second by a copy of `size` bytes in each of some threads; the best of some rounds."""
    pairs = [(np.ones(size, np.uint8), np.zeros(size, np.uint8)) for _ in range(threads)]
    rounds = max(1, _BEYOND // size)

    def copy(pair: tuple[Any, Any]) -> None:
        for _ in range(rounds):
            np.copyto(pair[1], pair[0])

    with ThreadPoolExecutor(threads) as pool:
        return 2.0 * size * rounds * threads / _best(lambda: list(pool.map(copy, pairs)))


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest call; the first one, which may still allocate, does not count."""
    seconds = []
    for _ in range(_REPEATS + 1):
        before = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - before)
    return min(seconds[1:])


# -------------------- engines


def profiled(
    bundle: Bundle, variant: VariantRecord, profile: str, pixels: Any, threads: int
) -> tuple[tuple[PlacedNode, ...], float]:
    """The nodes of an engine with the medians of their times, and that of whole calls, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        engine = stored_engine(bundle, variant, profile)
        runner = insight_of(bundle, profile).load_profiled(engine, threads=threads, folder=Path(folder))
        for _ in range(_CALLS + 3):
            runner.infer({IMAGE: pixels})
        calls = runner.finish()[3:]
    columns = list(zip(*(call.nodes for call in calls), strict=True))
    times = [median(node.ms for node in column) for column in columns]
    return place([column[0] for column in columns], times), median(call.ms for call in calls)


def table(nodes: Sequence[PlacedNode], call_ms: float, tokens: Sequence[int], peaks: Peaks) -> str:
    """Markdown: kinds of operators over the whole call, then the first, the middle and the last block."""
    lines = [
        "| part | ms | share | GMACs | of the peak | roofline, ms | times the roofline |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    kinds = sorted({node.kind for node in nodes}, key=lambda kind: -sum(one.ms for one in nodes if one.kind == kind))
    for kind in kinds:
        lines.append(_row(kind, [node for node in nodes if node.kind == kind], call_ms, peaks))
    for block in sorted({0, len(tokens) // 2, len(tokens) - 1}):
        own = [node for node in nodes if node.block == block]
        lines.append(_row(f"block {block + 1}, {tokens[block]} tokens", own, call_ms, peaks))
    between = max(0.0, call_ms - sum(node.ms for node in nodes))
    lines.append(f"| between operators | {between:.2f} | {100 * between / call_ms:.1f} % | | | | |")
    lines.append(_row("**whole call**", nodes, call_ms, peaks, call_ms))
    return "\n".join(lines)


def _row(name: str, nodes: Iterable[PlacedNode], call_ms: float, peaks: Peaks, whole_ms: float | None = None) -> str:
    """
    Args:
        whole_ms: what the part took, where that is more than its nodes.
    """
    own = list(nodes)
    costs, ms = [cost_of(node.run) for node in own], sum(node.ms for node in own) if whole_ms is None else whole_ms
    total, bound = sum(costs, Cost()), sum(cost.bound_ms(peaks) for cost in costs)
    computing = 1000 * (total.macs / peaks.fp32 + total.integer_macs / peaks.int8)
    gmacs = (total.macs + total.integer_macs) / 1e9
    reached = f"{100 * computing / ms:.0f} %" if gmacs > 0.001 and ms else "-"
    times = f"{ms / bound:.1f}" if bound else "-"
    return f"| {name} | {ms:.2f} | {100 * ms / call_ms:.1f} % | {gmacs:.3f} | {reached} | {bound:.2f} | {times} |"


def _whole(bundle: Bundle, variant: VariantRecord, profile: str, pixels: Any, threads: int, peaks: Peaks) -> str:
    """A line on an engine whose runtime says nothing of its parts."""
    with load_engine(bundle, variant=variant.name, profile=profile, threads=threads, verify=False) as runner:
        seconds = []
        for _ in range(_CALLS + 3):
            before = time.perf_counter()
            runner.infer(pixels)
            seconds.append(time.perf_counter() - before)
    ms, macs = 1000 * median(seconds[3:]), variant.gmacs * 1e9 * len(pixels)
    peak = peaks.int8 if variant.graphs[profile].precision == "int8" else peaks.fp32
    bound = 1000 * macs / peak
    return f"{variant.name}, {profile}: {ms:.2f} ms; all its products at the peak would take {bound:.2f} ms"


if __name__ == "__main__":
    main()

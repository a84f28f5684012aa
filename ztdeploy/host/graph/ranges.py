"""Between which numbers the inputs of linear layers lie, on calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.profile import Calibration
from ztdeploy.host.graph.entropy_range import Magnitudes
from ztdeploy.host.graph.int8 import linear_layers
from ztdeploy.target.backends.onnxruntime import OnnxRuntimeRunner, open_session, session_options

#: Of percentile ranges: the share of an image's values that lie above, and below.
TAIL = 1e-4


def measure_ranges(
    traced: ir.Model, batches: Iterable[NDArray[np.generic]], method: Calibration, *, threads: int
) -> dict[str, tuple[float, float]]:
    """Run an fp32 graph and watch; batches are taken one by one, and nothing of them is kept.

    Args:
        traced: with one input, the image. It is not changed.
        batches: as that input takes them; at least one.
        method: "min-max": the smallest and largest value of all. "percentile": where `TAIL` of an image's values lie
            outside, mean over the images. "entropy": those, cut off at the magnitude that `Magnitudes` finds.

    Returns:
        By the name of the value.
    """
    watched = traced.clone()
    del watched.graph.outputs[:]
    values = {str(node.inputs[0].name): node.inputs[0] for node in linear_layers(watched.graph, 0) if node.inputs[0]}
    watched.graph.outputs.extend(values.values())
    found = {name: _WATCHES[method]() for name in values}
    with scratch_folder() as folder:
        file = folder / "watched.onnx"
        ir.save(watched, file, external_data="watched.weights")
        runner = OnnxRuntimeRunner(open_session(file, session_options(threads)), [])
        for batch in batches:
            for name, held in runner.infer({str(watched.graph.inputs[0].name): batch}).items():
                for image in held:
                    found[name].add(image)
        runner.close()
    return {name: watch.range() for name, watch in found.items()}


class _Watch(Protocol):
    """Sees the values of one image after the other."""

    def add(self, values: NDArray[Any]) -> None: ...

    def range(self) -> tuple[float, float]: ...


class _MinMax:
    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")

    def add(self, values: NDArray[Any]) -> None:
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def range(self) -> tuple[float, float]:
        return self.low, self.high


class _Percentile:
    def __init__(self) -> None:
        self.seen: list[NDArray[Any]] = []

    def add(self, values: NDArray[Any]) -> None:
        self.seen.append(np.quantile(values, [TAIL, 1 - TAIL]))

    def range(self) -> tuple[float, float]:
        low, high = np.mean(self.seen, axis=0)
        return float(low), float(high)


class _Entropy(_MinMax):
    def __init__(self) -> None:
        super().__init__()
        self.magnitudes = Magnitudes()

    def add(self, values: NDArray[Any]) -> None:
        super().add(values)
        self.magnitudes.add(values)

    def range(self) -> tuple[float, float]:
        most = self.magnitudes.threshold()
        return max(self.low, -most), min(self.high, most)


_WATCHES: dict[Calibration, Callable[[], _Watch]] = {
    "min-max": _MinMax,
    "percentile": _Percentile,
    "entropy": _Entropy,
}

"""Between which numbers the inputs of linear layers lie, on calibration images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ztdeploy.backends.onnxruntime import OnnxRuntimeRunner, open_session, session_options
from ztdeploy.graph.int8 import linear_layers
from ztdeploy.profile import Calibration

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
            outside, mean over the images.

    Returns:
        By the name of the value.
    """
    watched = traced.clone()
    del watched.graph.outputs[:]
    values = {str(node.inputs[0].name): node.inputs[0] for node in linear_layers(watched.graph, 0) if node.inputs[0]}
    watched.graph.outputs.extend(values.values())
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in values}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "watched.onnx"
        ir.save(watched, file, external_data="watched.weights")
        runner = OnnxRuntimeRunner(open_session(file, session_options(threads)), [])
        for batch in batches:
            for name, held in runner.infer({str(watched.graph.inputs[0].name): batch}).items():
                found[name] += [_range(image, method) for image in held]
        runner.close()
    return {name: _joined(ranges, method) for name, ranges in found.items()}


def _joined(ranges: list[tuple[float, float]], method: Calibration) -> tuple[float, float]:
    lows, highs = zip(*ranges, strict=True)
    if method == "min-max":
        return min(lows), max(highs)
    return float(np.mean(lows)), float(np.mean(highs))


def _range(values: NDArray[Any], method: Calibration) -> tuple[float, float]:
    if method == "min-max":
        return float(values.min()), float(values.max())
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    return float(low), float(high)

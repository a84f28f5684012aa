"""Measure the ranges of linear layers' inputs on calibration images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.profile import Calibration
from ztdeploy.host.graph.int8 import linear_layers
from ztdeploy.target.backends import load_graph

#: Share of an image's values above, and share below, a percentile range.
TAIL = 1e-4
LEVELS = 128  #: levels of a magnitude in int8
BINS = 2048
_STRIDE = 16  #: step between the thresholds that are tried, in bins


def measure_ranges(
    traced: ir.Model, batches: Iterable[NDArray[np.generic]], method: Calibration, *, threads: int
) -> dict[str, tuple[float, float]]:
    """Run an fp32 graph and record ranges; batches are taken one by one, and no values are kept.

    Args:
        traced: a graph with one input, the image. It is not changed.
        batches: inputs of the graph; at least one.
        method: "min-max": the smallest and largest value of all images. "percentile": the values that `TAIL` of an
            image's values lie beyond, mean over the images. "entropy": min-max, clipped at the magnitude that
            `Magnitudes` finds.

    Returns:
        Ranges by the name of the value.
    """
    watched = traced.clone()
    del watched.graph.outputs[:]
    values = {str(node.inputs[0].name): node.inputs[0] for node in linear_layers(watched.graph, 0) if node.inputs[0]}
    watched.graph.outputs.extend(values.values())
    found = {name: _WATCHES[method]() for name in values}
    with scratch_folder() as folder:
        file = folder / "watched.onnx"
        ir.save(watched, file, external_data="watched.weights")
        runner = load_graph(file, threads)
        for batch in batches:
            for name, held in runner.infer({str(watched.graph.inputs[0].name): batch}).items():
                for image in held:
                    found[name].add(image)
        runner.close()
    return {name: watch.range() for name, watch in found.items()}


class _MinMax:
    """Takes the values of one image after the other."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")

    def add(self, values: NDArray[Any]) -> None:
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def range(self) -> tuple[float, float]:
        return self.low, self.high


class _Percentile(_MinMax):
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


_WATCHES: dict[Calibration, type[_MinMax]] = {"min-max": _MinMax, "percentile": _Percentile, "entropy": _Entropy}


class Magnitudes:
    """The range that loses the least information when it is cut into few levels.

    From S. Migacz, "8-bit Inference with TensorRT", GTC 2017: of all thresholds on magnitudes, the one whose quantised
    distribution diverges least (Kullback-Leibler) from the true one, with what lies beyond counted at its edge.

    A histogram takes values in parts and holds none of them. Its bins start at 0; where a value lies beyond the last
    one, pairs of bins become one and the range doubles.
    """

    def __init__(self) -> None:
        self.counts, self.top = np.zeros(BINS), 0.0

    def add(self, values: NDArray[Any]) -> None:
        magnitudes = np.abs(values, dtype=np.float64).ravel()
        most = float(magnitudes.max())
        if self.top == 0:
            self.top = most
        while 0 < self.top < most:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2)])
            self.top *= 2
        if self.top > 0:
            self.counts += np.histogram(magnitudes, BINS, (0, self.top))[0]
        else:
            self.counts[0] += magnitudes.size

    def threshold(self) -> float:
        """The magnitude beyond which values are best cut off."""
        used = int(np.flatnonzero(self.counts)[-1]) + 1
        tried = [*range(LEVELS, used, _STRIDE), max(used, LEVELS)]
        best = min(tried, key=lambda bins: divergence(self.counts, bins))
        return float(self.top * best / BINS)


def divergence(counts: NDArray[np.float64], bins: int) -> float:
    """Kullback-Leibler divergence, in nats, of a distribution whose first bins alone are kept, in `LEVELS` levels.

    Args:
        counts: counts of all bins.
        bins: number of bins to keep, at least `LEVELS`; values beyond are counted in the last one.
    """
    kept = counts[:bins]
    true = kept.copy()
    true[-1] += counts[bins:].sum()
    level = np.arange(bins) * LEVELS // bins
    filled = kept > 0  # the count of a level spreads over those of its bins that are not empty
    share = np.bincount(level, kept, LEVELS) / np.maximum(np.bincount(level, filled, LEVELS), 1)
    coarse = np.where(filled, share[level], 0.0)
    p, q = true / true.sum(), coarse / max(coarse.sum(), 1.0)
    held = p > 0
    # The last bin may hold clipped values only, and then no level has a share of it.
    return float((p[held] * np.log(p[held] / np.maximum(q[held], 1e-12))).sum())

"""Trace a model's variants, each once: fp32 graphs, and PyTorch's outputs for the golden input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ztdeploy.core.cache import key_of
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.names import GAP, INTO, KEPT, LOGITS, golden_array
from ztdeploy.core.plan import Variant
from ztdeploy.core.profile import Calibration
from ztdeploy.host.calibration import CalibrationImages
from ztdeploy.host.confidence import confidence_of
from ztdeploy.host.export import Deployable, export_onnx
from ztdeploy.host.graph import GraphSpec, Ranges
from ztdeploy.host.graph.ranges import measure_ranges
from ztdeploy.host.models.checkpoint import tensors_sha256
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.host.parity import reference_outputs
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.host.traces import Trace, TraceStore
from ztdeploy.target.backends import runtime_versions


class TraceMemory:
    """Keeps traces in memory, where there is no `TraceStore` on disk."""

    def __init__(self, *, keep: bool) -> None:
        """
        Args:
            keep: whether another build of the same model may follow; otherwise traces are not kept.
        """
        self._keep, self._traces, self._ranges = keep, dict[str, Trace](), dict[str, Ranges]()

    def read(self, key: str) -> Trace | None:
        held = self._traces.get(key)
        return None if held is None else Trace(held.graph.clone(), held.reference)

    def write(self, key: str, trace: Trace) -> None:
        """Keep a copy that shares the weights, because writing a bundle renames values inside a trace."""
        if self._keep:
            self._traces[key] = Trace(trace.graph.clone(), trace.reference)

    def ranges(self, key: str, measure: Callable[[], Ranges]) -> Ranges:
        if key not in self._ranges:
            self._ranges[key] = measure()
        return self._ranges[key]


@dataclass(frozen=True)
class Tracer:
    """Traces the variants of one model."""

    model: LoadedModel
    pixels: NDArray[np.uint8]  #: the golden input, `[n, H, W, C]`
    store: TraceStore | TraceMemory  #: traces are read from it and added to it

    def traces(self, variant: Variant, specs: Sequence[GraphSpec]) -> dict[GraphSpec, Trace]:
        """One trace for each spec; traces in the store are not made again."""
        keys = {spec: self._key(variant, spec) for spec in specs}
        known = {spec: trace for spec, key in keys.items() if (trace := self.store.read(key)) is not None}
        missing = [spec for spec in specs if spec not in known]
        made = self._traced(variant, missing) if missing else {}
        for spec, trace in made.items():
            self.store.write(keys[spec], trace)
        return made | known

    def ranges(
        self, variant: Variant, spec: GraphSpec, trace: Trace, method: Calibration, images: CalibrationImages
    ) -> Ranges:
        """The ranges of int8 activations in a trace on given images; ranges in the store are not measured again."""
        batches = images.batches(spec, self.model.preprocess)
        measure = partial(measure_ranges, trace.graph, batches, method, threads=usable_threads(0))
        trace_key = self._key(variant, spec)
        key = key_of(trace=trace_key, images=images.digest, method=method, runtimes=runtime_versions())
        return self.store.ranges(key, measure)

    def _traced(self, variant: Variant, specs: Sequence[GraphSpec]) -> dict[GraphSpec, Trace]:
        with PrunedModel(self.model.adapter, variant.schedule) as pruned:
            confidence, given = confidence_of(self.model, variant), self.model.preprocess
            graphs = {spec: export_onnx(pruned, given, spec, noted=True, confidence=confidence) for spec in specs}
            module = Deployable(pruned, self.model.preprocess, "uint8")
            reference = reference_outputs(pruned, module, self.pixels)
        arrays: dict[str, NDArray[np.generic]] = {LOGITS: reference.logits}
        for what, of_layers in ((KEPT, reference.kept), (INTO, reference.into), (GAP, reference.gaps)):
            names = (golden_array(what, layer.block) for layer in variant.plan.layers)
            arrays |= dict(zip(names, of_layers, strict=False))  # only layers that merge have `INTO`
        return {spec: Trace(graph, arrays) for spec, graph in graphs.items()}

    def _key(self, variant: Variant, spec: GraphSpec) -> str:
        """A key of everything that decides a trace's content, which names of variants and keep ratios do not."""
        model, adapter, schedule = self.model, self.model.adapter, variant.schedule
        return key_of(
            timm_name=model.timm_name,
            modules=hashlib.sha256(repr(adapter.model).encode()).hexdigest(),  # activations, epsilons
            family=adapter.family,
            output=adapter.output,
            activation=model.activation,  # of the confidence
            architecture=adapter.architecture.model_dump(),
            weights=model.weights_sha256,
            preprocess=model.preprocess.model_dump(mode="json"),
            golden=hashlib.sha256(self.pixels.tobytes()).hexdigest(),
            plan=variant.plan.model_dump(),
            method=schedule.method if variant.plan.layers else None,
            options=schedule.options.model_dump() if variant.plan.layers else None,
            pruning_weights=tensors_sha256(adapter.pruning_weights or {}) if variant.plan.layers else None,
            spec=asdict(spec),
        )

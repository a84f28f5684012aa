"""How a build proves every engine and graph, before the bundle gets its final name.

- fp32: the engine's tokens and outputs are compared with PyTorch.
- fp16, bf16, int8: the same, with PyTorch following the engine's choice of tokens. Besides, the graph runs with its
  rounding made explicit, which tells how far rounding alone moves the outputs (the drift).
- int8 with dynamic ranges: the engine is compared with its graph in exact products.
- int8 with static ranges: every integer layer runs by itself, on integers whose products are known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ztdeploy.core.bundle import Bundle
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.kernel_files import usable_threads
from ztdeploy.core.manifest import GraphRecord, Manifest, ParityRecord, VariantRecord
from ztdeploy.core.profile import HardwareProfile, Int8Options
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.host.export import Deployable
from ztdeploy.host.graph.emulation import with_exact_products, with_rounding
from ztdeploy.host.graph.integer_layers import integer_layers
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.host.parity import prove, prove_layers, prove_products
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.target.adaptive.pieces import check_pieces, engine_opener, graph_opener
from ztdeploy.target.backends import backend_of, load_graph, why_not_run
from ztdeploy.target.backends.base import StoredEngine
from ztdeploy.target.runtime.parity import golden_reference
from ztdeploy.target.runtime.runner import BundleRunner


@dataclass(frozen=True)
class Proof:
    """Proves the engines and graphs of a bundle that is being built."""

    folder: Path
    model: LoadedModel
    pixels: NDArray[np.uint8]  #: the golden input, `[n, H, W, C]`

    def added_to(self, manifest: Manifest, schedule: PruningSchedule, profile: HardwareProfile) -> Manifest:
        """Prove a variant for a profile, and return the manifest with the parity of its engine.

        The graph gets a parity of its own where no engine can run here; and always below fp32, because engines are
        judged by the graph's drift.

        Raises:
            ParityError: PyTorch is not reproduced, or integer products are not exact.
        """
        variant = Bundle(self.folder, manifest).variant(name=schedule.name)
        engine, graph = variant.engines.get(profile.name), variant.graphs[profile.name]
        runs = engine is not None and why_not_run(profile) is None
        if not runs or graph.precision != "fp32":
            graph = self._of_graph(manifest, variant, profile)
            manifest, variant = _with_variant(manifest, variant, graphs={**variant.graphs, profile.name: graph})
        if engine is not None and runs:
            parity = self._of_engine(manifest, variant, profile)
            engine = engine.model_copy(update={"parity": parity})
            manifest, variant = _with_variant(manifest, variant, engines={**variant.engines, profile.name: engine})
        return manifest

    def of_pieces(self, manifest: Manifest, profile: HardwareProfile) -> Manifest:
        """Hold the pieces of a cascade against whole variants, and return the manifest with the parity of its tails.

        Raises:
            ParityError: prefix and tail compute something else than the whole variant.
        """
        bundle, threads = Bundle(self.folder, manifest), usable_threads(profile.threads)
        runs = why_not_run(profile) is None
        if manifest.cascade is None or not (runs or profile.precision != "bf16"):
            return manifest  # ONNX Runtime has hardly any bf16 kernels on a CPU
        opened = (engine_opener if runs else graph_opener)(bundle, profile.name, threads)
        with BundleRunner(bundle, profile=profile.name, threads=threads, memory="speed", verify=False) as runner:
            found = check_pieces(bundle, runner, opened)
        for stage in manifest.cascade.stages if runs else ():
            engine = stage.engines[profile.name].model_copy(update={"parity": found[stage.name]})
            manifest = manifest.with_engines({(stage.name, profile.name): engine})
        return manifest

    def _of_graph(self, manifest: Manifest, variant: VariantRecord, profile: HardwareProfile) -> GraphRecord:
        """Run the graph in ONNX Runtime, unless another profile with the same graph has proved it already."""
        graph = variant.graphs[profile.name]
        for name, other in variant.graphs.items():
            if other.file == graph.file and name != profile.name:
                if other.parity is not None:
                    return graph.model_copy(update={"parity": other.parity, "drift": other.drift})
                proved = name in variant.engines and why_not_run(manifest.profiles[name]) is None
                if proved and graph.precision == "fp32":  # in lower precision the drift is still unknown
                    return graph
        file = self.folder / graph.file
        if graph.precision == "fp32":
            parity, _ = self._compare(manifest, variant, profile, file)
            return graph.model_copy(update={"parity": parity})
        with self._emulation(graph, profile) as emulation:
            parity, drift = self._compare(manifest, variant, profile, emulation, emulated=True)
        if graph.precision == "fp16":  # ONNX Runtime has hardly any bf16 kernels on a CPU
            parity, _ = self._compare(manifest, variant, profile, file)
        return graph.model_copy(update={"parity": parity, "drift": drift})

    def _of_engine(self, manifest: Manifest, variant: VariantRecord, profile: HardwareProfile) -> ParityRecord:
        if profile.precision != "int8":
            return self._compare(manifest, variant, profile, None)[0]
        if (profile.int8 or Int8Options()).activations == "dynamic":
            return self._against_exact_products(manifest, variant, profile)
        error = self._of_layers(variant, profile)
        parity, _ = self._compare(manifest, variant, profile, None)
        return parity.model_copy(update={"layer_error": error})

    def _against_exact_products(
        self, manifest: Manifest, variant: VariantRecord, profile: HardwareProfile
    ) -> ParityRecord:
        """Compare the engine with its graph in exact products.

        This holds for ONNX Runtime only, which also runs the exact graph. In another runtime the fp32 operators between
        integer layers differ in the last bit, which now and then rounds a value to the next integer.
        """
        threads = usable_threads(profile.threads)
        bundle = Bundle(self.folder, manifest)
        with (
            self._emulation(variant.graphs[profile.name], profile) as exact,
            BundleRunner(bundle, profile=profile.name, threads=threads, memory="speed", verify=False) as runner,
        ):
            return prove_products(runner, variant, load_graph(exact, threads), self.pixels)

    def _of_layers(self, variant: VariantRecord, profile: HardwareProfile) -> float | None:
        """The largest error of any integer layer; all run side by side in an engine built like the variant's."""
        record, backend = variant.graphs[profile.name], backend_of(profile)
        layers = integer_layers(ir.load(self.folder / record.file))
        if layers is None:
            return None
        with scratch_folder(self.folder) as scratch:
            graph, weights = scratch / "layers.onnx", "layers.weights"
            ir.save(layers.model, graph, external_data=weights)
            built = backend.build(graph, record, profile, scratch / f"layers{backend.suffix}")
            fingerprint = built.fingerprint
            stored = StoredEngine(built.file, fingerprint, fingerprint.graph_sha256, scratch / weights)
            runner = backend.load(stored, threads=usable_threads(profile.threads), memory="speed")
            try:
                return prove_layers(f"{variant.name} ({profile.name})", runner, layers)
            finally:
                runner.close()

    @contextmanager
    def _emulation(self, graph: GraphRecord, profile: HardwareProfile) -> Iterator[Path]:
        """A graph with explicit rounding, which computes the same in ONNX Runtime on any CPU."""
        with scratch_folder(self.folder) as scratch:
            file = scratch / "emulation.onnx"
            model = ir.load(self.folder / graph.file)
            if graph.precision == "int8":
                model = with_exact_products(model, backend_of(profile).row_groups)
            ir.save(with_rounding(model), file, external_data="emulation.weights")
            yield file

    def _compare(
        self,
        manifest: Manifest,
        variant: VariantRecord,
        profile: HardwareProfile,
        graph: Path | None,
        *,
        emulated: bool = False,
    ) -> tuple[ParityRecord, ParityRecord | None]:
        """Parity of a variant's engine, or of the given graph; and the drift, where the graph emulates rounding."""
        threads = usable_threads(profile.threads)
        bundle = Bundle(self.folder, manifest)
        runner = BundleRunner(bundle, profile=profile.name, threads=threads, memory="speed", verify=False)
        with runner, PrunedModel(self.model.adapter, variant) as pruned:
            if graph is not None:
                runner.adopt(variant.name, load_graph(graph, threads))
            module = Deployable(pruned, self.model.preprocess, "uint8")
            own = golden_reference(bundle, variant)
            known = variant.graphs[profile.name].parity if graph is None else None
            known = known if known is not None and known.emulated else None
            records = prove(runner, variant, pruned, module, self.pixels, own=own, graph=known, with_drift=emulated)
        parity, drift = (record and record.model_copy(update={"emulated": emulated}) for record in records)
        assert parity is not None
        return parity, drift


def _with_variant(manifest: Manifest, variant: VariantRecord, **changes: object) -> tuple[Manifest, VariantRecord]:
    """A copy of the manifest with a changed variant, and that variant."""
    changed = variant.model_copy(update=changes)
    variants = tuple(changed if one.name == variant.name else one for one in manifest.variants)
    return manifest.model_copy(update={"variants": variants}), changed

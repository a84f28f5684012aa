"""The steps of a build, each of which leaves files in the bundle that is being made."""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ztdeploy.backends import PLANNED, backend_exists, get_backend
from ztdeploy.backends.threads import usable_threads
from ztdeploy.bundle import WEIGHTS_FILE, Bundle, file_records
from ztdeploy.bundle_readme import bundle_readme
from ztdeploy.export import Deployable, GraphSpec, export_onnx
from ztdeploy.graph.shared_weights import SharedWeights
from ztdeploy.manifest import (
    SCHEMA_VERSION,
    BlockNodes,
    EngineRecord,
    GoldenRecord,
    GraphRecord,
    Manifest,
    ModelRecord,
    VariantRecord,
    WeightsRecord,
)
from ztdeploy.models.catalogue import sample_images
from ztdeploy.models.loading import LoadedModel
from ztdeploy.parity import prove, reference_outputs
from ztdeploy.profile import HardwareProfile
from ztdeploy.pruning.pruned_model import PrunedModel
from ztdeploy.runtime.images import read_image
from ztdeploy.runtime.inputs import load_pixels
from ztdeploy.runtime.runner import BundleRunner
from ztdeploy.schedule import PruningSchedule, gmacs, plan, pruning_gmacs
from ztdeploy.version import __version__

GOLDEN_IMAGES = 4
TOOLS = ("torch", "timm", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "pillow")


class Assembly:
    """One bundle in the making; its methods are called in the order in which the pipeline does."""

    def __init__(
        self,
        folder: Path,
        model: LoadedModel,
        profiles: list[HardwareProfile],
        schedules: list[PruningSchedule],
        *,
        batch: int | None,
    ) -> None:
        self.folder, self.model, self.profiles, self.schedules = folder, model, profiles, schedules
        self.buildable = [profile for profile in profiles if backend_exists(profile.backend)]
        self._specs = {profile.name: graph_spec(profile, batch) for profile in profiles}
        self._weights, self._engines = SharedWeights(), dict[tuple[str, str], EngineRecord]()
        self._contents: dict[tuple[str, GraphSpec], tuple[dict[str, int], tuple[BlockNodes, ...]]] = {}
        for name in ("graphs", "golden"):
            (folder / name).mkdir()

    def export(self, schedule: PruningSchedule) -> None:
        """Trace one variant into a graph per distinct graph spec, and note what PyTorch makes of the golden input."""
        with PrunedModel(self.model.adapter, schedule) as pruned:
            for spec in dict.fromkeys(self._specs.values()):
                graph = export_onnx(pruned, self.model.preprocess, spec)
                self._contents[schedule.name, spec] = count_nodes(graph, self.model.adapter.architecture.depth)
                self._weights.add(self._graph_path(schedule, spec), graph)
            module = Deployable(pruned, self.model.preprocess, "uint8")
            reference = reference_outputs(pruned, module, self.pixels)
        blocks = [layer.block for layer in pruned.token_plan.layers]
        arrays = {"logits": reference.logits}
        arrays |= {f"kept.{block}": kept for block, kept in zip(blocks, reference.kept, strict=True)}
        arrays |= {f"gap.{block}": gap for block, gap in zip(blocks, reference.gaps, strict=True)}
        np.savez(self.folder / "golden" / f"{schedule.name}.npz", allow_pickle=False, **arrays)

    def write_graphs(self) -> None:
        """Write all graphs against one weights file."""
        self._weights.write(self.folder / WEIGHTS_FILE)

    def build_engine(self, schedule: PruningSchedule, profile: HardwareProfile) -> None:
        """Build one engine; weights that it shares with the graphs are not stored again."""
        graph, record = self._graph_path(schedule, self._specs[profile.name]), self._graph_record(schedule, profile)
        final = self.folder / "graphs" / f"{schedule.name}.{profile.name}.onnx"
        scratch = self.folder / "scratch"
        scratch.mkdir()
        built = get_backend(profile.backend).build(graph, record, profile, scratch / final.name)
        if built.weights is None:
            built.file.replace(final)
        else:
            self._weights.attach(final, ir.load(built.file))
        shutil.rmtree(scratch)
        self._engines[schedule.name, profile.name] = EngineRecord(
            profile=profile.name,
            backend=profile.backend,
            file=final.relative_to(self.folder).as_posix(),
            fingerprint=built.fingerprint,
        )

    def prove(self, manifest: Manifest, schedule: PruningSchedule, profile: HardwareProfile) -> Manifest:
        """Add an engine's parity record to the manifest.

        Raises:
            ParityError: the engine does not reproduce PyTorch.
        """
        bundle = Bundle(self.folder, manifest)
        threads = usable_threads(profile.threads)
        variant = bundle.variant(name=schedule.name)
        runner = BundleRunner(bundle, profile=profile.name, threads=threads, memory="speed", verify=False)
        with runner, PrunedModel(self.model.adapter, schedule) as pruned:
            module = Deployable(pruned, self.model.preprocess, "uint8")
            parity = prove(runner, variant, pruned, module, self.pixels)
        engine = variant.engines[profile.name].model_copy(update={"parity": parity})
        proved = variant.model_copy(update={"engines": {**variant.engines, profile.name: engine}})
        variants = tuple(proved if v.name == schedule.name else v for v in manifest.variants)
        return manifest.model_copy(update={"variants": variants})

    def draft_manifest(self) -> Manifest:
        """The manifest, but for the parity records."""
        class_names = self._write_class_names()
        golden = self._write_golden()
        variants = tuple(self._variant_record(schedule) for schedule in self.schedules)
        weights = WeightsRecord.model_validate(
            {
                "source": self.model.weights_source,
                "origin": self.model.weights_origin,
                "sha256": self.model.weights_sha256,
            }
        )
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            tools=tool_versions(),
            model=ModelRecord(
                name=self.model.name,
                timm_name=self.model.timm_name,
                family=self.model.adapter.family,
                architecture=self.model.adapter.architecture,
            ),
            weights=weights,
            preprocess=self.model.preprocess,
            class_names=class_names,
            profiles={profile.name: profile for profile in self.profiles},
            default_variant=self.schedules[0].name,
            variants=variants,
            golden=golden,
            missing=tuple(what_is_missing(profile) for profile in self.profiles if profile not in self.buildable),
            files={},
        )
        (self.folder / "README.md").write_text(bundle_readme(manifest), encoding="utf-8")
        return manifest.model_copy(update={"files": file_records(self.folder)})

    @cached_property
    def golden_sources(self) -> list[Path]:
        return sample_images(self.model.entry, GOLDEN_IMAGES)

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The golden input, uint8 `[n, S, S, 3]`."""
        return load_pixels(self.golden_sources, self.model.preprocess)

    def _variant_record(self, schedule: PruningSchedule) -> VariantRecord:
        architecture = self.model.adapter.architecture
        token_plan = plan(schedule, architecture)
        return VariantRecord(
            name=schedule.name,
            schedule=schedule,
            plan=token_plan,
            gmacs=gmacs(architecture, token_plan.tokens_per_block),
            pruning_gmacs=pruning_gmacs(architecture, token_plan, schedule.method),
            graphs={profile.name: self._graph_record(schedule, profile) for profile in self.profiles},
            engines={p.name: self._engines[schedule.name, p.name] for p in self.buildable},
        )

    def _graph_path(self, schedule: PruningSchedule, spec: GraphSpec) -> Path:
        """Named after the variant alone, unless the profiles ask for graphs that differ."""
        label = "" if len(set(self._specs.values())) == 1 else f".{spec.label}"
        return self.folder / "graphs" / f"{schedule.name}{label}.onnx"

    def _graph_record(self, schedule: PruningSchedule, profile: HardwareProfile) -> GraphRecord:
        spec = self._specs[profile.name]
        operators, nodes = self._contents[schedule.name, spec]
        return GraphRecord(
            file=self._graph_path(schedule, spec).relative_to(self.folder).as_posix(),
            opset=spec.opset,
            image_input=spec.image_input,
            batch=spec.batch,
            operators=operators,
            nodes=nodes,
        )

    def _write_golden(self) -> GoldenRecord:
        names = []
        for source in self.golden_sources:
            name = f"golden/{source.stem}.png"
            read_image(source).save(self.folder / name, optimize=True)
            names.append(name)
        np.save(self.folder / "golden/pixels.npy", self.pixels, allow_pickle=False)
        outputs = {schedule.name: f"golden/{schedule.name}.npz" for schedule in self.schedules}
        return GoldenRecord(images=tuple(names), pixels="golden/pixels.npy", outputs=outputs)

    def _write_class_names(self) -> str | None:
        if self.model.class_names is None:
            return None
        (self.folder / "classes.txt").write_text("\n".join(self.model.class_names) + "\n", encoding="utf-8")
        return "classes.txt"


def graph_spec(profile: HardwareProfile, batch: int | None) -> GraphSpec:
    """The graph that a profile asks for; without a dynamic axis, its smallest batch unless told otherwise."""
    fixed = batch if batch is not None or profile.batch.dynamic else profile.batch.sizes[0]
    return GraphSpec(opset=profile.opset, image_input=profile.image_input, batch=fixed)


def count_nodes(graph: ir.Model, depth: int) -> tuple[dict[str, int], tuple[BlockNodes, ...]]:
    """Nodes by operator type, and by block, told apart by their stable names."""
    operators = Counter(node.op_type for node in graph.graph)
    scopes = [(node.name or "").split("/") for node in graph.graph]
    own = Counter(scope[0] for scope in scopes if scope[1:2] != ["prune"])
    pruning = Counter(scope[0] for scope in scopes if scope[1:2] == ["prune"])
    names = [f"blocks.{block}" for block in range(depth)]
    nodes = tuple(BlockNodes(block=i, own=own[name], pruning=pruning[name]) for i, name in enumerate(names))
    return dict(sorted(operators.items())), nodes


def what_is_missing(profile: HardwareProfile) -> str:
    precision = (
        "" if profile.precision == "fp32" else f", and the graph is fp32 where the profile wants {profile.precision}"
    )
    what = f"{PLANNED[profile.backend]} cannot be built by this version"
    return f"profile '{profile.name}': {what}; the ONNX graphs are there{precision}"


def tool_versions() -> dict[str, str]:
    versions = {"ztdeploy": __version__, "python": platform.python_version()}
    for name in TOOLS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions

"""The steps of a build, each of which leaves files in the bundle that is being made."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from PIL import Image

from ztdeploy.core.bundle import WEIGHTS_FILE, file_records
from ztdeploy.core.cache import key_of, tool_versions
from ztdeploy.core.cost import plan_gmacs, pruning_gmacs
from ztdeploy.core.errors import step_of
from ztdeploy.core.files import make_folder, move, write, writing
from ztdeploy.core.folders import scratch_folder
from ztdeploy.core.manifest import (
    SCHEMA_VERSION,
    AdaptedProfile,
    BlockNodes,
    BlocksRecord,
    EngineRecord,
    FailedProfile,
    GoldenRecord,
    GraphRecord,
    Manifest,
    ModelRecord,
    VariantRecord,
    WeightsRecord,
)
from ztdeploy.core.names import GAP, INTO, KEPT, LOGITS, block_of, golden_array, in_pruning_layer
from ztdeploy.core.plan import plan
from ztdeploy.core.profile import HardwareProfile, Int8Options
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.host.board_files import write_board_files
from ztdeploy.host.export import Deployable, export_onnx
from ztdeploy.host.graph import GraphSpec, Ranges, specialise
from ztdeploy.host.graph.parts import blocks_graph, notes_of, without_notes
from ztdeploy.host.graph.plugin_nodes import insert_plugin_nodes
from ztdeploy.host.graph.ranges import measure_ranges
from ztdeploy.host.graph.shared_weights import SharedWeights
from ztdeploy.host.graph.tensorrt_lint import check_tensorrt
from ztdeploy.host.models.catalogue import sample_images
from ztdeploy.host.models.loading import LoadedModel
from ztdeploy.host.parity import reference_outputs
from ztdeploy.host.proof import Proof
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.host.range_images import CalibrationImages, built_in_images
from ztdeploy.host.traces import Trace, TraceStore
from ztdeploy.target.backends import backend_of, runtime_versions
from ztdeploy.target.backends.base import Insight, RunsNotes, TakesPlugins
from ztdeploy.target.backends.threads import usable_threads
from ztdeploy.target.bundle_readme import with_readme
from ztdeploy.target.plugins import unknown_options
from ztdeploy.target.runtime.images import ARRAY_SUFFIX, read_bands, read_image
from ztdeploy.target.runtime.preprocess import load_pixels

GOLDEN_IMAGES = 4
#: Whose time per block was within 2 % of the whole model's; that of one block alone was 5 % too short.
MEASURED_BLOCKS = 3


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
        cache: TraceStore | None = None,
        held: dict[str, Trace] | None = None,
        calibration: CalibrationImages | None = None,
    ) -> None:
        """
        Args:
            held: traces by their keys, which are kept here for a second assembly of the same model; None: there will
                be none.
            calibration: what int8 ranges come from where they are not dynamic; None: the golden images.
        """
        self.folder, self.model, self.profiles, self.schedules = folder, model, profiles, schedules
        self._cache, self._held = cache, held
        self.buildable = [profile for profile in profiles if builds_anywhere(profile)]
        tokens = model.adapter.architecture.tokens
        self._specs = {profile.name: graph_spec(profile, batch, tokens) for profile in profiles}
        self._weights, self._engines = SharedWeights(), dict[tuple[str, str], EngineRecord]()
        self._contents: dict[tuple[str, GraphSpec], GraphContents] = {}
        self._plugin_files: dict[tuple[str, GraphSpec], Path] = {}
        self._noted: dict[tuple[str, GraphSpec], Path] = {}
        self._blocks: dict[str, BlocksRecord] = {}
        for name in ("graphs", "golden"):
            make_folder(folder / name)
        self.calibration = calibration or built_in_images(self.golden_sources)

    def export(self, schedule: PruningSchedule) -> None:
        """Trace one variant, make a graph per distinct spec, and note what PyTorch makes of the golden input."""
        specs = list(dict.fromkeys(self._specs.values()))
        traces = self._traces(schedule, list(dict.fromkeys(spec.traced for spec in specs)))
        # All are made before any is written: writing renames what is inside.
        ranges, graphs = self._ranges(schedule, specs, traces), list[tuple[GraphSpec, ir.Model]]()
        for spec in specs:
            with step_of(*self._profiles_of(spec)):
                graphs.append((spec, specialise(traces[spec.traced].graph, spec, ranges.get(spec))))
        for spec, graph in graphs:
            with step_of(*self._profiles_of(spec)):
                self._take(schedule, spec, graph)
        reference = next(iter(traces.values())).reference
        with writing(self.folder / "golden" / f"{schedule.name}.npz") as file:
            np.savez(file, allow_pickle=False, **reference)

    def _profiles_of(self, spec: GraphSpec) -> list[str]:
        """The names of the profiles that ask for such a graph."""
        return [name for name, own in self._specs.items() if own == spec]

    def _ranges(
        self, schedule: PruningSchedule, specs: list[GraphSpec], traces: dict[GraphSpec, Trace]
    ) -> dict[GraphSpec, Ranges]:
        """What the specs need whose int8 ranges come from calibration images; each trace is watched once per method."""
        threads = usable_threads(0)
        found, ranges = dict[tuple[GraphSpec, str], Ranges](), dict[GraphSpec, Ranges]()
        for spec in specs:
            if spec.int8 is None or not spec.int8.static:
                continue
            traced, method = spec.traced, spec.int8.ranges
            if (traced, method) not in found:
                batches = self.calibration.batches(traced, self.model.preprocess)
                measure = partial(measure_ranges, traces[traced].graph, batches, method, threads=threads)
                if self._cache is None:
                    found[traced, method] = measure()
                else:
                    trace, images = self._trace_key(schedule, traced), self.calibration.digest
                    key = key_of(trace=trace, images=images, method=method, runtimes=runtime_versions())
                    found[traced, method] = self._cache.ranges(key, measure)
            ranges[spec] = found[traced, method]
        return ranges

    def _traces(self, schedule: PruningSchedule, specs: list[GraphSpec]) -> dict[GraphSpec, Trace]:
        """One trace per spec; what is held, or is in the cache, is not traced again."""
        if self._cache is None and self._held is None:
            return self._trace(schedule, specs)
        keys = {spec: self._trace_key(schedule, spec) for spec in specs}
        known = {spec: self._known(key) for spec, key in keys.items()}
        missing = [spec for spec, trace in known.items() if trace is None]
        made = self._trace(schedule, missing) if missing else {}
        for spec, trace in made.items():
            self._keep(keys[spec], trace)
        return made | {spec: trace for spec, trace in known.items() if trace is not None}

    def _known(self, key: str) -> Trace | None:
        held = None if self._held is None else self._held.get(key)
        if held is not None:
            return Trace(held.graph.clone(), held.reference)
        return None if self._cache is None else self._cache.read(key)

    def _keep(self, key: str, trace: Trace) -> None:
        """Writing a bundle renames what is inside a trace: what is held is a copy, which shares the weights."""
        if self._held is not None:
            self._held[key] = Trace(trace.graph.clone(), trace.reference)
        if self._cache is not None:
            self._cache.write(key, trace)

    def _trace(self, schedule: PruningSchedule, specs: list[GraphSpec]) -> dict[GraphSpec, Trace]:
        with PrunedModel(self.model.adapter, schedule) as pruned:
            graphs = {spec: export_onnx(pruned, self.model.preprocess, spec, noted=True) for spec in specs}
            module = Deployable(pruned, self.model.preprocess, "uint8")
            reference = reference_outputs(pruned, module, self.pixels)
        blocks = [layer.block for layer in pruned.token_plan.layers]
        arrays: dict[str, NDArray[np.generic]] = {LOGITS: reference.logits}
        arrays |= {golden_array(KEPT, block): kept for block, kept in zip(blocks, reference.kept, strict=True)}
        # Only the layers of merging methods say into what they merge.
        arrays |= {golden_array(INTO, block): into for block, into in zip(blocks, reference.into, strict=False)}
        arrays |= {golden_array(GAP, block): gap for block, gap in zip(blocks, reference.gaps, strict=True)}
        return {spec: Trace(graph, arrays) for spec, graph in graphs.items()}

    def _trace_key(self, schedule: PruningSchedule, spec: GraphSpec) -> str:
        """What decides a trace's content; names of variants and keep ratios as such do not."""
        token_plan = plan(schedule, self.model.adapter.architecture)
        return key_of(
            timm_name=self.model.timm_name,
            modules=hashlib.sha256(repr(self.model.adapter.model).encode()).hexdigest(),  # activations, epsilons
            family=self.model.adapter.family,
            output=self.model.adapter.output,
            architecture=self.model.adapter.architecture.model_dump(),
            weights=self.model.weights_sha256,
            preprocess=self.model.preprocess.model_dump(mode="json"),
            golden=hashlib.sha256(self.pixels.tobytes()).hexdigest(),
            plan=token_plan.model_dump(),
            method=schedule.method if token_plan.layers else None,
            options=schedule.options.model_dump() if token_plan.layers else None,
            spec=asdict(spec),
        )

    def _take(self, schedule: PruningSchedule, spec: GraphSpec, noted: ir.Model) -> None:
        graph = without_notes(noted)
        profiles = [profile for profile in self.profiles if self._specs[profile.name] == spec]
        if any(backend_of(profile).tensorrt_operators for profile in profiles):
            check_tensorrt(graph)
        depth = self.model.adapter.architecture.depth
        self._contents[schedule.name, spec] = contents_of(graph, depth)
        if not plan(schedule, self.model.adapter.architecture).layers:
            self._take_blocks(spec, graph)  # before its initialisers get other names
        path = self._graph_path(schedule, spec)
        self._weights.add(path, graph)
        if notes_of(noted) and any(map(self._explains, profiles)):
            self._noted[schedule.name, spec] = path.with_name(f"_notes.{path.name}")  # no variant's name
            self._weights.add(self._noted[schedule.name, spec], noted)

    def _explains(self, profile: HardwareProfile) -> bool:
        """Whether a graph with notes runs where it is shown: in ONNX Runtime, which has next to no kernels for bf16 on
        a CPU, or in the profile's own runtime."""
        return isinstance(backend_of(profile), RunsNotes) or self._specs[profile.name].precision != "bf16"

    def _take_blocks(self, spec: GraphSpec, dense: ir.Model) -> None:
        """Keep some middle blocks alone for the profiles whose runtime can measure them, if they can be cut out."""
        profiles = [name for name, own in self._specs.items() if own == spec and self._looks_into(name)]
        depth = self.model.adapter.architecture.depth
        count = min(MEASURED_BLOCKS, depth)
        first = (depth - count) // 2
        blocks = blocks_graph(dense, range(first, first + count)) if profiles else None
        if blocks is not None:
            name = ".".join(filter(None, ("_blocks", spec.label(self._specs.values()))))  # no variant's name
            path = self.folder / "graphs" / f"{name}.onnx"
            self._weights.add(path, blocks)
            record = BlocksRecord(file=path.relative_to(self.folder).as_posix(), count=count)
            self._blocks |= dict.fromkeys(profiles, record)

    def _looks_into(self, name: str) -> bool:
        """Whether the profile's runtime can measure a graph of which no engine was built."""
        (profile,) = (profile for profile in self.profiles if profile.name == name)
        return isinstance(backend_of(profile), Insight)

    def write_graphs(self) -> None:
        """Write all graphs against one weights file, and those with plugin nodes for boards that can have plugins."""
        self._weights.write(self.folder / WEIGHTS_FILE)
        boards = {self._specs[profile.name] for profile in self.profiles if takes_plugins(profile)}
        for schedule in self.schedules:
            for spec in () if self._plain_for(schedule) else boards:
                plain = self._graph_path(schedule, spec)
                twin = plain.with_name(f"{plain.stem}.plugins.onnx")
                if insert_plugin_nodes(plain, twin):
                    self._plugin_files[schedule.name, spec] = twin

    def build_engine(self, schedule: PruningSchedule, profile: HardwareProfile) -> None:
        """Build one engine; weights that it shares with the graphs are not stored again."""
        graph, record = self._graph_path(schedule, self._specs[profile.name]), self._graph_record(schedule, profile)
        backend = backend_of(profile)
        final = self.folder / "graphs" / f"{schedule.name}.{profile.name}{backend.suffix}"
        with scratch_folder(self.folder) as scratch:
            built = backend.build(graph, record, profile, scratch / final.name)
            if built.weights is None:
                move(built.file, final)
            else:
                self._weights.attach(final, ir.load(built.file))
        self._engines[schedule.name, profile.name] = EngineRecord(
            profile=profile.name,
            backend=profile.backend,
            file=final.relative_to(self.folder).as_posix(),
            fingerprint=built.fingerprint,
        )

    @property
    def proof(self) -> Proof:
        """What proves the variants of a drafted manifest."""
        return Proof(self.folder, self.model, self.pixels)

    def draft_manifest(self, failed: Sequence[FailedProfile], adapted: Sequence[AdaptedProfile]) -> Manifest:
        """The manifest, but for the parity records."""
        class_names = self._write_class_names()
        golden = self._write_golden()
        variants = tuple(self._variant_record(schedule) for schedule in self.schedules)
        weights = WeightsRecord.model_validate(
            {
                "source": self.model.weights_source,
                "origin": self.model.weights_origin,
                "sha256": self.model.weights_sha256,
                "remarks": self.model.remarks,
            }
        )
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            tools={**tool_versions(), **runtime_versions()},
            model=ModelRecord(
                name=self.model.name,
                timm_name=self.model.timm_name,
                family=self.model.adapter.family,
                architecture=self.model.adapter.architecture,
                output=self.model.output,
                activation=self.model.activation,
                activation_source=self.model.activation_source,
            ),
            weights=weights,
            text_head=self.model.text_head,
            preprocess=self.model.preprocess,
            preprocess_sources=dict(self.model.preprocess_sources),
            class_names=class_names,
            profiles={profile.name: profile for profile in self.profiles},
            default_variant=self.schedules[0].name,
            variants=variants,
            golden=golden,
            blocks=self._blocks,
            missing=(),
            failed=tuple(failed),
            adapted=tuple(adapted),
            files={},
        )
        return manifest.model_copy(update={"files": file_records(self.folder)})

    def _plain_for(self, schedule: PruningSchedule) -> tuple[str, ...]:
        """The options that keep plugins out of a variant's graphs."""
        layers = plan(schedule, self.model.adapter.architecture).layers
        return unknown_options(schedule.method, schedule.options) if layers else ()

    @cached_property
    def golden_sources(self) -> list[Path]:
        """Photographs. For models that take neither RGB nor grey, the files that `with_channels` makes of them."""
        photos, channels = sample_images(self.model.entry, GOLDEN_IMAGES), self.model.preprocess.channels
        if channels in (1, 3):
            return photos
        return [with_channels(read_image(photo), channels, self.folder / "golden" / photo.stem) for photo in photos]

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The golden input, uint8 `[n, H, W, C]`."""
        return load_pixels(self.golden_sources, self.model.preprocess)

    def _variant_record(self, schedule: PruningSchedule) -> VariantRecord:
        architecture = self.model.adapter.architecture
        token_plan = plan(schedule, architecture)
        return VariantRecord(
            name=schedule.name,
            schedule=schedule,
            plan=token_plan,
            gmacs=plan_gmacs(architecture, token_plan),
            pruning_gmacs=pruning_gmacs(architecture, token_plan, schedule.method, schedule.options),
            graphs={profile.name: self._graph_record(schedule, profile) for profile in self.profiles},
            engines={p.name: self._engines[schedule.name, p.name] for p in self.buildable},
        )

    def _graph_path(self, schedule: PruningSchedule, spec: GraphSpec) -> Path:
        """Named after the variant alone, unless the profiles ask for graphs that differ."""
        label = spec.label(self._specs.values())
        if label in self._specs:  # engines are named after their profiles
            label += "-graph"
        return self.folder / "graphs" / f"{'.'.join(filter(None, (schedule.name, label)))}.onnx"

    def _graph_record(self, schedule: PruningSchedule, profile: HardwareProfile) -> GraphRecord:
        spec = self._specs[profile.name]
        contents = self._contents[schedule.name, spec]
        twin = self._plugin_files.get((schedule.name, spec)) if takes_plugins(profile) else None
        noted = self._noted.get((schedule.name, spec)) if self._explains(profile) else None
        return GraphRecord(
            file=self._graph_path(schedule, spec).relative_to(self.folder).as_posix(),
            notes_file=None if noted is None else noted.relative_to(self.folder).as_posix(),
            plugin_file=None if twin is None else twin.relative_to(self.folder).as_posix(),
            plain_for=self._plain_for(schedule) if takes_plugins(profile) else (),
            opset=spec.opset,
            image_input=spec.image_input,
            batch=spec.batch,
            precision=spec.precision,
            calibration=self.calibration.origin if spec.int8 is not None and spec.int8.static else None,
            weights_bytes=contents.weights_bytes,
            operators=contents.operators,
            nodes=contents.nodes,
        )

    def _write_golden(self) -> GoldenRecord:
        names = []
        for source in self.golden_sources:
            path = source
            if not source.is_relative_to(self.folder):
                (picture,) = read_bands(source, self.model.preprocess)
                path = self.folder / "golden" / f"{source.stem}.png"
                with writing(path) as file:
                    picture.save(file, "PNG", optimize=True)
            names.append(path.relative_to(self.folder).as_posix())
        with writing(self.folder / "golden/pixels.npy") as file:
            np.save(file, self.pixels, allow_pickle=False)
        outputs = {schedule.name: f"golden/{schedule.name}.npz" for schedule in self.schedules}
        return GoldenRecord(images=tuple(names), pixels="golden/pixels.npy", outputs=outputs)

    def _write_class_names(self) -> str | None:
        if self.model.class_names is None:
            return None
        write(self.folder / "classes.txt", "\n".join(self.model.class_names) + "\n")
        return "classes.txt"


def documented(folder: Path, manifest: Manifest) -> Manifest:
    """Write what people read in a bundle: its README, and what boards need where engines are built by hand.

    Returns:
        The manifest with these files, and with what the bundle lacks.
    """
    manifest = with_readme(manifest, folder)
    files = file_records(folder, write_board_files(folder, manifest))
    return manifest.model_copy(update={"files": {**manifest.files, **files}})


def with_channels(photo: Image.Image, channels: int, path: Path) -> Path:
    """Write a picture of so many channels: a photograph's red, green, blue and luma, over and over.

    Args:
        path: without an ending, which depends on what can hold so many.

    Returns:
        The file.
    """
    bands = [*photo.split(), photo.convert("L")]
    chosen = [bands[channel % len(bands)] for channel in range(channels)]
    mode = {2: "LA", 4: "RGBA"}.get(channels)
    if mode is not None:
        path = path.with_suffix(".png")
        with writing(path) as file:
            Image.merge(mode, chosen).save(file, "PNG", optimize=True)
        return path
    path = path.with_suffix(ARRAY_SUFFIX)
    with writing(path) as file:
        np.save(file, np.stack([np.asarray(band) for band in chosen], axis=-1), allow_pickle=False)
    return path


def builds_anywhere(profile: HardwareProfile) -> bool:
    """Whether engines for the profile can be built by another machine than the one that runs them."""
    return backend_of(profile).built_where == "anywhere"


def takes_plugins(profile: HardwareProfile) -> bool:
    """Whether the profile's engines may hold compiled plugins."""
    return isinstance(backend_of(profile), TakesPlugins)


def graph_spec(profile: HardwareProfile, batch: int | None, tokens: int) -> GraphSpec:
    """The graph that a profile asks for; without a dynamic axis, its smallest batch unless told otherwise.

    Args:
        tokens: of the model's first block; no other has more.
    """
    fused = profile.fused_attention_from
    fixed = batch if batch is not None or profile.batch.dynamic else profile.batch.sizes[0]
    form = backend_of(profile).graph_form(profile)
    return GraphSpec(
        opset=profile.opset,
        image_input=profile.image_input,
        batch=fixed,
        precision=profile.precision,
        turing=form == "turing",
        board=form == "board",
        fused_attention_from=fused if fused is not None and fused <= tokens else None,
        int8=(profile.int8 or Int8Options()) if profile.precision == "int8" else None,
    )


@dataclass(frozen=True)
class GraphContents:
    """What is in a graph."""

    operators: dict[str, int]  #: nodes by operator type
    nodes: tuple[BlockNodes, ...]  #: by block, told apart by their stable names
    weights_bytes: int


def contents_of(graph: ir.Model, depth: int) -> GraphContents:
    operators = Counter(node.op_type for node in graph.graph)
    counts = Counter((block_of(node.name), in_pruning_layer(node.name)) for node in graph.graph)
    nodes = tuple(BlockNodes(block=i, own=counts[i, False], pruning=counts[i, True]) for i in range(depth))
    weights = [value.const_value for value in graph.graph.initializers.values()]
    size = sum(weight.nbytes for weight in weights if weight is not None)
    return GraphContents(dict(sorted(operators.items())), nodes, size)

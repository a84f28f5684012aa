"""The graphs of a bundle in the making: traced once per variant, specialised for the profiles, written together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ztdeploy.core.bundle import WEIGHTS_FILE
from ztdeploy.core.errors import step_of
from ztdeploy.core.files import writing
from ztdeploy.core.manifest import BlockNodes, BlocksRecord, GraphRecord
from ztdeploy.core.names import block_of, in_pruning_layer
from ztdeploy.core.plan import Variant
from ztdeploy.core.profile import HardwareProfile, Int8Options
from ztdeploy.core.schedule import Architecture
from ztdeploy.host.calibration import CalibrationImages
from ztdeploy.host.graph import GraphSpec, Ranges, specialise
from ztdeploy.host.graph.cutting import cut
from ztdeploy.host.graph.parts import blocks_graph, notes_of, without_notes
from ztdeploy.host.graph.plugin_nodes import insert_plugin_nodes
from ztdeploy.host.graph.shared_weights import SharedWeights
from ztdeploy.host.graph.tensorrt_lint import check_tensorrt
from ztdeploy.host.traces import Trace
from ztdeploy.host.tracing import Tracer
from ztdeploy.jobs.chain import PREFIX, Chain, tail_name
from ztdeploy.target.backends import backend_of
from ztdeploy.target.backends.base import Insight, RunsNotes, TakesPlugins
from ztdeploy.target.plugins import unknown_options

#: Number of blocks in the timing graph. Three blocks predict the whole model within 2 %; one underestimates by 5 %.
MEASURED_BLOCKS = 3


class Graphs:
    """The graphs of one bundle: `export` every variant, then `write` all graphs, then ask for their records."""

    def __init__(
        self,
        folder: Path,
        tracer: Tracer,
        profiles: Sequence[HardwareProfile],
        calibration: CalibrationImages,
        batch: int | None,
        chain: Chain | None = None,
    ) -> None:
        """
        Args:
            folder: of the bundle.
            calibration: what int8 ranges come from where they are not dynamic.
            batch: of every graph; None: as the profiles say.
            chain: the stages of a cascade, whose graphs are also cut into pieces.
        """
        self.folder, self.tracer, self.profiles, self.calibration = folder, tracer, profiles, calibration
        self.chain = chain
        architecture = tracer.model.adapter.architecture
        self.specs = {profile.name: graph_spec(profile, batch, architecture.tokens) for profile in profiles}
        self.weights = SharedWeights()
        self.blocks: dict[str, BlocksRecord] = {}  #: by profile
        self._records: dict[tuple[str, str], GraphRecord] = {}  #: by variant or piece, and profile

    def export(self, variant: Variant) -> None:
        """Trace one variant, make a graph for each distinct spec, and write what PyTorch makes of the golden input.

        Raises:
            StepError: a graph cannot be made, for a reason that concerns only some profiles.
        """
        specs = list(dict.fromkeys(self.specs.values()))
        traces = self.tracer.traces(variant, list(dict.fromkeys(spec.traced for spec in specs)))
        # Ranges and graphs are all made before any is written: writing renames what is inside a trace.
        ranges = self._ranges(variant, specs, traces)
        graphs, blocks = dict[GraphSpec, ir.Model](), dict[GraphSpec, ir.Model]()
        for spec in specs:
            with step_of(*self._profiles_of(spec)):
                graphs[spec] = specialise(traces[spec.traced].graph, spec, ranges.get(spec))
                if not variant.plan.layers:  # rows of all images depend on the number of tokens, and blocks must not
                    plain = graphs[spec]
                    if spec.rows:
                        plain = specialise(traces[spec.traced].graph, replace(spec, rows=False), ranges.get(spec))
                    blocks[spec] = without_notes(plain)
        for spec, graph in graphs.items():
            with step_of(*self._profiles_of(spec)):
                if spec in blocks:
                    self._take_blocks(spec, blocks[spec])  # before its initialisers get other names
                self._take(variant, spec, graph)
        with writing(self.folder / "golden" / f"{variant.schedule.name}.npz") as file:
            np.savez(file, allow_pickle=False, **next(iter(traces.values())).reference)

    def write(self) -> None:
        """Write all graphs against one weights file, and twins with plugin nodes for profiles that take plugins."""
        self.weights.write(self.folder / WEIGHTS_FILE)
        taking = {profile.name for profile in self.profiles if takes_plugins(profile)}
        twins: dict[Path, str | None] = {}
        for (part, profile), record in self._records.items():
            plain = self.folder / record.file
            if profile in taking and plain not in twins and not record.plain_for:
                twin = plain.with_name(f"{plain.stem}.plugins.onnx")
                twins[plain] = self._within(twin) if insert_plugin_nodes(plain, twin) else None
            self._records[part, profile] = record.model_copy(update={"plugin_file": twins.get(plain)})

    @property
    def parts(self) -> list[str]:
        """The names of all variants, then of the pieces of the cascade."""
        names = dict.fromkeys(part for part, _profile in self._records)
        return sorted(names, key=lambda name: name.startswith("_"))

    def record(self, part: str, profile: HardwareProfile) -> GraphRecord:
        """What a manifest says of the graph that a profile's engine of a variant or a piece is built from."""
        return self._records[part, profile.name]

    def _path(self, part: str, spec: GraphSpec) -> Path:
        """Named after the variant or piece alone, unless the profiles ask for graphs that differ."""
        label = spec.label(self.specs.values())
        if label in self.specs:  # engines are named after their profiles
            label += "-graph"
        return self.folder / "graphs" / f"{'.'.join(filter(None, (part, label)))}.onnx"

    def _within(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _profiles_of(self, spec: GraphSpec) -> list[str]:
        return [name for name, own in self.specs.items() if own == spec]

    def _ranges(
        self, variant: Variant, specs: Sequence[GraphSpec], traces: dict[GraphSpec, Trace]
    ) -> dict[GraphSpec, Ranges]:
        """The int8 ranges of the specs that take them from calibration images, measured once per trace and method."""
        static = {spec: (spec.traced, spec.int8.ranges) for spec in specs if spec.int8 and spec.int8.static}
        found = {
            (traced, method): self.tracer.ranges(variant, traced, traces[traced], method, self.calibration)
            for traced, method in dict.fromkeys(static.values())
        }
        return {spec: found[key] for spec, key in static.items()}

    def _take(self, variant: Variant, spec: GraphSpec, noted: ir.Model) -> None:
        """Add a graph to what will be written, the pieces that it is cut into for a cascade, and its twin with notes
        where some profile's runtime runs that."""
        name, profiles = variant.schedule.name, [one for one in self.profiles if self.specs[one.name] == spec]
        graphs = {name: without_notes(noted)}
        if self.chain is not None and name in self.chain.names:
            graphs |= self._pieces(name, self.chain, noted)
        explained = [profile.name for profile in profiles if _explains(profile)] if notes_of(noted) else []
        notes = self._path(name, spec)
        notes = notes.with_name(f"_notes.{notes.name}")  # no variant has such a name
        foreign = unknown_options(variant.schedule.method, variant.schedule.options) if variant.plan.layers else ()
        architecture = self.tracer.model.adapter.architecture
        for part, graph in graphs.items():
            if any(backend_of(profile).tensorrt_operators for profile in profiles):
                check_tensorrt(graph)
            path = self._path(part, spec)
            record = graph_record(graph, spec, self._within(path), architecture, self.calibration.origin)
            self.weights.add(path, graph)
            for profile in profiles:
                changes = {
                    "notes_file": self._within(notes) if part == name and profile.name in explained else None,
                    "plain_for": foreign if takes_plugins(profile) else (),
                }
                self._records[part, profile.name] = record.model_copy(update=changes)
        if explained:
            self.weights.add(notes, noted)

    def _pieces(self, name: str, chain: Chain, noted: ir.Model) -> dict[str, ir.Model]:
        """The tail of a stage, with its confidence if another stage follows; of the last stage also the prefix."""
        last = name == chain.names[-1]
        prefix, tail = cut(without_notes(noted, confidence=not last), chain.block)
        return {tail_name(name): tail, **({PREFIX: prefix} if last else {})}

    def _take_blocks(self, spec: GraphSpec, dense: ir.Model) -> None:
        """Keep some middle blocks alone for the profiles whose runtime can time them, if they can be cut out."""
        taking = [profile for profile in self.profiles if self.specs[profile.name] == spec]
        names = [profile.name for profile in taking if isinstance(backend_of(profile), Insight)]
        depth = self.tracer.model.adapter.architecture.depth
        count = min(MEASURED_BLOCKS, max(1, depth - 1))  # the last one may compute less
        first = (depth - count) // 2
        blocks = blocks_graph(dense, range(first, first + count)) if names else None
        if blocks is not None:
            name = ".".join(filter(None, ("_blocks", spec.label(self.specs.values()))))  # no variant has such a name
            path = self.folder / "graphs" / f"{name}.onnx"
            self.weights.add(path, blocks)
            self.blocks |= dict.fromkeys(names, BlocksRecord(file=self._within(path), count=count))


def takes_plugins(profile: HardwareProfile) -> bool:
    """Whether the profile's engines may hold compiled plugins."""
    return isinstance(backend_of(profile), TakesPlugins)


def _explains(profile: HardwareProfile) -> bool:
    """Whether a graph with notes runs where it is shown: in the profile's own runtime, or in ONNX Runtime, which has
    next to no kernels for bf16 on a CPU."""
    return isinstance(backend_of(profile), RunsNotes) or profile.precision != "bf16"


def graph_spec(profile: HardwareProfile, batch: int | None, tokens: int) -> GraphSpec:
    """The graph that a profile asks for; without a dynamic axis, its smallest batch unless told otherwise.

    Args:
        tokens: of the model's first block; no other has more.
    """
    fused, form = profile.fused_attention_from, backend_of(profile).graph_form(profile)
    return GraphSpec(
        opset=profile.opset,
        image_input=profile.image_input,
        batch=batch if batch is not None or profile.batch.dynamic else profile.batch.sizes[0],
        precision=profile.precision,
        turing=form == "turing",
        board=form == "board",
        rows=form == "rows",
        fused_attention_from=fused if fused is not None and fused <= tokens else None,
        int8=(profile.int8 or Int8Options()) if profile.precision == "int8" else None,
    )


def graph_record(graph: ir.Model, spec: GraphSpec, file: str, architecture: Architecture, images: str) -> GraphRecord:
    """What a manifest says of a graph: its nodes are counted by operator, and by block with their stable names.

    Args:
        images: where int8 ranges come from, if the spec has any that do not come from the engine's own input.
    """
    operators = Counter(node.op_type for node in graph.graph)
    nodes = Counter((block_of(node.name), in_pruning_layer(node.name)) for node in graph.graph)
    weights = [value.const_value for value in graph.graph.initializers.values()]
    return GraphRecord(
        file=file,
        opset=spec.opset,
        image_input=spec.image_input,
        batch=spec.batch,
        precision=spec.precision,
        calibration=images if spec.int8 is not None and spec.int8.static else None,
        weights_bytes=sum(weight.nbytes for weight in weights if weight is not None),
        operators=dict(sorted(operators.items())),
        nodes=tuple(
            BlockNodes(block=block, own=nodes[block, False], pruning=nodes[block, True])
            for block in range(architecture.depth)
        ),
    )

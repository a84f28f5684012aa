"""The manifest: what a bundle says about itself, as records that both halves read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.plan import Variant
from ztdeploy.core.preprocess_spec import Activation, ImageInput, Output, PreprocessSpec, given
from ztdeploy.core.profile import HardwareProfile, Precision
from ztdeploy.core.records import FiniteRecord
from ztdeploy.core.schedule import Architecture

SCHEMA_VERSION = 4
#: What a fingerprint's `plugins` starts with where their PTX is inside the engine.
AHEAD_OF_TIME = "ahead-of-time"
PluginKind = Literal["none", "library", "ahead-of-time"]


def _inside(path: str) -> str:
    """A relative POSIX path without `..`; the only kind that a manifest may hold."""
    pure = PurePosixPath(path)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or not path.isprintable() or {*"\\:"} & {*path}:
        raise ValueError("the path leaves the bundle")
    if str(pure) != path:
        raise ValueError("the path is not the shortest one")
    if len(os.fsencode(path)) > 1024 or any(len(os.fsencode(part)) > 255 for part in pure.parts):
        raise ValueError("the path is too long")
    return path


BundlePath = Annotated[str, AfterValidator(_inside)]
#: Variants and profiles give files their names.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


#: What a user asks for where no checkpoint is given.
WeightsSource = Literal["pretrained", "random"]


class FileRecord(FiniteRecord):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class ModelRecord(FiniteRecord):
    name: str  #: as the user typed it
    timm_name: str
    family: str
    architecture: Architecture
    output: Output = "logits"
    activation: Activation = "softmax"  #: of logits
    activation_source: str = "default"  #: where that is known from, in words

    @property
    def gives(self) -> Output:
        """The same; a model without classes gives embeddings, whatever an older version wrote down."""
        return given(self.output, self.architecture.num_classes)


class WeightsRecord(FiniteRecord):
    source: Literal["pretrained", "checkpoint", "shipped", "random"]
    origin: str  #: file name, hub name or seed
    sha256: str  #: of names, shapes and values of all parameters
    remarks: tuple[str, ...] = ()  #: what was chosen, left out or doubted about them, in words


class TextHeadRecord(FiniteRecord):
    """What answers are scored by, where the model names no classes itself: cosines to text embeddings."""

    origin: str  #: file name
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  #: of the file
    classes: int = Field(ge=1)
    dimension: int = Field(ge=1)
    scale: float  #: that cosines are multiplied by
    bias: float


class BlockNodes(FiniteRecord):
    """How many ONNX nodes a block has, and how many the pruning layer behind it."""

    block: int
    own: int
    pruning: int


def plugin_kind(identity: str | None) -> PluginKind:
    """What kind of plugins an engine's fingerprint speaks of."""
    if identity is None:
        return "none"
    return "ahead-of-time" if identity.startswith(AHEAD_OF_TIME) else "library"


class LayerParity(FiniteRecord):
    """How often an engine's choice of tokens agreed with the reference at one pruning layer."""

    block: int
    identical: int  #: images with exactly the reference's kept set
    ties: int  #: images whose kept set differs, with a gap at the cut within the tolerance
    overlap: float = Field(default=1.0, ge=0, le=1)  #: share of the reference's kept tokens, mean over the images


class ParityRecord(FiniteRecord):
    """An engine, or a graph, against fp32 PyTorch or against what its graph must give, on the same real images."""

    images: int
    max_logit_difference: float
    median_logit_difference: float  #: over the images, of each one's largest
    logit_tolerance: float | None  #: None where nothing is judged
    gap_tolerance: float | None  #: None below fp32, where a cut decides by less than rounding
    layers: tuple[LayerParity, ...]
    replayed: bool = True  #: whether the reference kept the same tokens; else the median is judged, not the largest
    emulated: bool = False  #: of a graph that spells out in wider types what the precision rounds
    against: Literal["pytorch", "graph"] = "pytorch"  #: an int8 engine is held against its graph, with exact products
    agreement: float | None = None  #: share of images with the reference's answer, where each keeps tokens of its own
    kl: float | None = None  #: likewise, mean divergence of the answers from the reference's, nats
    cosine: float | None = None  #: likewise, of embeddings and features: mean cosine to the reference's
    #: of an int8 engine's layers, each by itself on given integers: the largest, relative to the layer's largest result
    layer_error: float | None = None

    @property
    def judged(self) -> float:
        return self.max_logit_difference if self.replayed else self.median_logit_difference

    @property
    def judgement(self) -> str:
        """What was judged, and what it was allowed to be where that is known."""
        allowed = "" if self.logit_tolerance is None else f" of {self.logit_tolerance:.0e}"
        return f"{self.judged:.0e}{allowed}"


class GraphRecord(FiniteRecord):
    file: BundlePath
    plugin_file: BundlePath | None = None  #: the same graph with plugin nodes in place of the scoring
    ahead_of_time_file: BundlePath | None = None  #: likewise, with nodes for plugins that come as PTX
    plain_for: tuple[str, ...] = ()  #: the options that it has no such twins for, since no plugin knows them
    #: the same graph, with what its pruning layers decide by as further outputs: what `show` runs beside an engine
    notes_file: BundlePath | None = None
    opset: int
    image_input: ImageInput
    batch: Annotated[int, Field(ge=1)] | None
    precision: Precision = "fp32"
    calibration: str | None = None  #: the images that int8 ranges come from, in words; None where they are dynamic
    weights_bytes: int = Field(ge=0)
    operators: dict[str, int]  #: nodes by operator type
    nodes: tuple[BlockNodes, ...]
    parity: ParityRecord | None = None  #: run by ONNX Runtime at build time, where no engine of it could be
    drift: ParityRecord | None = None  #: below fp32: against fp32, each on its own choices: what is to be expected

    @property
    def files(self) -> list[str]:
        """The graph and its twins."""
        twins = (self.plugin_file, self.ahead_of_time_file, self.notes_file)
        return [self.file, *(file for file in twins if file is not None)]

    def source(self, plugins: str | None) -> str | None:
        """The file that an engine with such plugins is built from; None where the graph has no such twin."""
        return {"none": self.file, "library": self.plugin_file, "ahead-of-time": self.ahead_of_time_file}[
            plugin_kind(plugins)
        ]


class Fingerprint(FiniteRecord):
    """What an engine is bound to. A mismatch refuses to load."""

    graph_sha256: str
    runtime: str
    runtime_version: str
    device: str
    plugins: str | None = None  #: the plugin library that it needs


class Candidate(FiniteRecord):
    """An engine that was built, proved and measured on the device, whether it was kept or not."""

    plugins: PluginKind
    median_ms: float  #: at the profile's smallest batch


class FidelityRecord(FiniteRecord):
    """What pruning costs: an engine on images, against the dense engine of the same profile, or of an fp32 one."""

    created: str
    data: str  #: what the images are called
    data_sha256: str  #: of their names, contents and labels
    images: int = Field(ge=1)
    engine_sha256: str  #: of the engine that was evaluated
    dense_sha256: str  #: and of the dense one
    dense_profile: Name | None = None  #: whose that is; None: the same
    top1: float | None  #: share of images; None where they are not labelled
    top5: float | None
    dense_top1: float | None
    change: tuple[float, float] | None  #: 95 % interval of top1 less dense_top1
    agreement: float | None  #: share of images with the dense engine's answer; None for embeddings and features
    kl: float | None  #: mean divergence from the dense engine's output, nats; likewise
    cosine: float | None = None  #: of embeddings and features: mean cosine to the dense engine's


class GateLimits(FiniteRecord):
    """What pruning may cost on the calibration images; None: anything."""

    max_drop: float | None = Field(default=None, ge=0, le=100)  #: points of top-1
    min_agreement: float | None = Field(default=None, ge=0, le=1)  #: share of images with dense's answer
    max_kl: float | None = Field(default=None, ge=0)  #: mean divergence from dense, nats
    min_cosine: float | None = Field(default=None, ge=-1, le=1)  #: mean cosine to dense, of embeddings and features


class GateRow(FiniteRecord):
    """One pruned variant on the calibration images."""

    variant: str
    keep_ratio: float | None
    method: str
    drop: float | None  #: points of top-1 lost; None where the images are not labelled
    agreement: float | None  #: None for embeddings and features
    kl: float | None  #: likewise
    cosine: float | None = None  #: of embeddings and features: mean cosine to dense
    failed: tuple[str, ...]  #: by how much it missed which limits, in words; empty: it is in the bundle


class GateRecord(FiniteRecord):
    """What decided which variants are in the bundle."""

    profile: Name
    dense_profile: Name | None = None  #: whose dense engine variants were held against; None: the same
    data: str  #: what the calibration images are called
    data_sha256: str
    images: int
    limits: GateLimits
    rows: tuple[GateRow, ...]
    advice: tuple[str, ...]  #: which keep ratios pass, or might


class TimingRecord(FiniteRecord):
    """One candidate's engine, timed in turns with the others, each in a process of its own."""

    median_ms: float  #: over all calls
    interval: tuple[float, float]  #: 95 %, of the median of the rounds' medians
    speedup: float  #: over the profile asked for: the median of the rounds' ratios
    speedup_interval: tuple[float, float]  #: 95 %


class CandidateRecord(FiniteRecord):
    """A profile that might have been shipped in the place of the one asked for, or that one itself."""

    profile: Name
    backend: str
    precision: Precision
    reason: str | None  #: why it is not in the bundle; None: it is
    rows: tuple[GateRow, ...] = ()  #: its variants on the calibration images, dense as well; empty: it never ran
    timing: TimingRecord | None = None  #: None: it never ran


class ChoiceRecord(FiniteRecord):
    """Which of a profile's candidates is in the bundle: what `build --precision auto` found out on one machine."""

    asked: Name
    shipped: Name
    processor: str
    threads: int
    variant: str  #: that was timed
    batch: int
    rounds: int
    data: str  #: what the calibration images are called
    data_sha256: str
    images: int
    limits: GateLimits  #: where all are None, candidates are held against fp32, see docs/precision.md
    candidates: tuple[CandidateRecord, ...]  #: the profile asked for first, then the less risky first


class CalibrationRecord(FiniteRecord):
    """What the build saw of its calibration images before anything was built."""

    data: str  #: what they are called
    images: int  #: that are there
    looked_at: int = Field(ge=1)  #: decoded, of every class as many
    cautions: tuple[str, ...]  #: what makes judgements on them worth less


class BlockRange(FiniteRecord):
    """The largest magnitudes of what fp16 would hold of one block; infinite ones are refused, not recorded."""

    model_config = ConfigDict(allow_inf_nan=True)

    block: int
    residual: float  #: of the tokens, ahead of the block, behind attention and behind the MLP
    attention: float  #: of what its linear layers give
    logits: float  #: of attention, scaled, ahead of softmax
    mlp: float  #: of what goes into its linear layers and what they give


class RangeRecord(FiniteRecord):
    """Whether fp16 can hold what a variant computes, by PyTorch in fp32 on calibration images."""

    data: str
    images: int = Field(ge=1)
    blocks: tuple[BlockRange, ...]


class EngineRecord(FiniteRecord):
    profile: Name
    backend: str
    file: BundlePath
    weights: BundlePath | None = None  #: weights of its own, where it was rebuilt on the target
    fingerprint: Fingerprint
    parity: ParityRecord | None = None  #: None: it has never run
    candidates: tuple[Candidate, ...] = ()  #: what was measured to choose it
    fidelity: FidelityRecord | None = None  #: the last evaluation on images

    @property
    def files(self) -> list[str]:
        return [file for file in (self.file, self.weights) if file is not None]


class VariantRecord(Variant):
    """A variant in a bundle, with its graphs and engines."""

    name: Name
    gmacs: float = Field(gt=0)
    pruning_gmacs: float = Field(ge=0)
    graphs: dict[Name, GraphRecord]  #: by profile name
    engines: dict[Name, EngineRecord]  #: by profile name
    fp16_range: RangeRecord | None = None  #: where the build was given calibration images and an fp16 profile


class GoldenRecord(FiniteRecord):
    """Known inputs and what must come out."""

    images: Annotated[tuple[BundlePath, ...], Field(min_length=1)]  #: lossless source images
    pixels: BundlePath  #: `.npy`, uint8 `[n, H, W, C]`: the images after resize and crop
    outputs: dict[str, BundlePath]  #: variant name -> `.npz` of `logits`, `kept.<block>`, `into.<block>`, `gap.<block>`


class FailedProfile(FiniteRecord):
    """A profile that was asked for and is not in the bundle, while others are."""

    profile: Name
    given: str  #: what was found
    expected: str
    fix: str
    exit_code: int  #: that the build would have ended with, had it been for this profile alone

    @classmethod
    def of(cls, profile: str, error: ZtdeployError) -> FailedProfile:
        return cls(
            profile=profile, given=error.given, expected=error.expected, fix=error.fix, exit_code=error.exit_code
        )

    @property
    def error(self) -> ZtdeployError:
        error = ZtdeployError(self.given, self.expected, self.fix)
        error.exit_code = self.exit_code
        return error

    @property
    def line(self) -> str:
        return f"profile '{self.profile}' was not built: {self.error}"


class AdaptedProfile(FiniteRecord):
    """A profile that was built in another form than its file asks for: one that loses no sums on this processor."""

    profile: Name
    change: str
    reason: str

    @property
    def line(self) -> str:
        return f"profile '{self.profile}' has {self.change}: {self.reason}"


class MissingPart(FiniteRecord):
    """Something that a bundle lacks, or has in another form than it could have."""

    #: "engines": none is built yet; "run": the engines have never run; "ranges": int8 ranges come from other images
    #: than the user's; "plugins": a variant's graphs have no twins with plugin nodes.
    kind: Literal["engines", "run", "ranges", "plugins"]
    profile: Name
    variant: Name | None = None  #: None: all variants
    reason: str = ""

    @property
    def line(self) -> str:
        what = {
            "engines": "its engines are built on the device; there, run: ztdeploy finalize BUNDLE",
            "run": f"its engines have not been run: {self.reason}; where they can be: ztdeploy verify BUNDLE",
            "ranges": f"its int8 ranges come from {self.reason}; from yours with --calib FOLDER",
            "plugins": f"variant '{self.variant}' has plain operators only: the plugins do not know its option"
            f" {self.reason}",
        }
        return f"profile '{self.profile}': {what[self.kind]}"


class BlocksRecord(FiniteRecord):
    """A graph of a few neighbouring dense blocks alone, for any number of tokens."""

    file: BundlePath
    count: int = Field(ge=1)


class Manifest(FiniteRecord):
    schema_version: int
    created: str
    tools: dict[str, str]
    model: ModelRecord
    weights: WeightsRecord
    text_head: TextHeadRecord | None = None  #: part of the weights as well
    preprocess: PreprocessSpec
    preprocess_sources: dict[str, str] = Field(
        default_factory=dict
    )  #: who says each field of it: an option, a file, or timm's default
    class_names: BundlePath | None
    profiles: dict[Name, HardwareProfile]
    default_variant: Name
    variants: tuple[VariantRecord, ...]
    golden: GoldenRecord
    missing: tuple[MissingPart, ...]
    failed: tuple[FailedProfile, ...] = ()
    adapted: tuple[AdaptedProfile, ...] = ()
    blocks: dict[Name, BlocksRecord] = Field(
        default_factory=dict
    )  #: by profile; what measures how time grows with tokens
    gates: tuple[GateRecord, ...] = ()  #: by profile, where the build was given calibration images
    choices: tuple[ChoiceRecord, ...] = ()  #: of `build --precision auto`
    calibration: CalibrationRecord | None = None  #: where the build was given calibration images
    timing_caches: dict[Name, BundlePath] = Field(
        default_factory=dict
    )  #: by profile: what building engines on the device measured
    files: dict[BundlePath, FileRecord]

    @property
    def lines_of_missing(self) -> tuple[str, ...]:
        """All that is not as it was asked for, for people: profiles that failed or have another form come first."""
        profiles = (*(one.line for one in self.failed), *(one.line for one in self.adapted))
        return (*profiles, *(one.line for one in self.missing))

    def with_engines(self, engines: Mapping[tuple[str, str], EngineRecord]) -> Manifest:
        """The manifest with some engines replaced or added, by the names of their variant and profile."""
        variants = []
        for variant in self.variants:
            own = {profile: engine for (name, profile), engine in engines.items() if name == variant.name}
            variants.append(variant.model_copy(update={"engines": {**variant.engines, **own}}))
        return self.model_copy(update={"variants": tuple(variants)})

    @property
    def dense(self) -> VariantRecord:
        return next(variant for variant in self.variants if not variant.plan.layers)

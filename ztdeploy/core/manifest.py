"""The manifest: what a bundle says about itself, as records that both halves read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from ztdeploy.core.cascade import CascadeSetting, Share, Signal, percent_below
from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.plan import Variant
from ztdeploy.core.preprocess_spec import (
    LARGEST_RESIZED,
    Activation,
    ImageInput,
    Output,
    PreprocessSpec,
    given,
)
from ztdeploy.core.profile import HardwareProfile, Precision
from ztdeploy.core.records import FiniteRecord
from ztdeploy.core.schedule import Architecture

SCHEMA_VERSION = 5
PluginKind = Literal["none", "library"]
_AnyPart = TypeVar("_AnyPart", bound="PartRecord")


def _inside(path: str) -> str:
    """The only kind of path that a manifest may hold: relative, POSIX, and without `..`."""
    pure = PurePosixPath(path)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or not path.isprintable() or {*"\\:"} & {*path}:
        raise ValueError("the path leaves the bundle")
    if str(pure) != path:
        raise ValueError("the path is not the shortest one")
    if len(os.fsencode(path)) > 1024 or any(len(os.fsencode(part)) > 255 for part in pure.parts):
        raise ValueError("the path is too long")
    return path


BundlePath = Annotated[str, AfterValidator(_inside)]
#: The name of a variant or a profile; files are named after it.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_MapSide = Annotated[int, Field(ge=1, le=LARGEST_RESIZED)]
MapShape = tuple[Annotated[int, Field(ge=1, le=2**16)], _MapSide, _MapSide]
#: The weights that a user can ask for without a checkpoint.
WeightsSource = Literal["pretrained", "random"]


class FileRecord(FiniteRecord):
    sha256: Sha256
    bytes: int = Field(ge=0)


class ModelRecord(FiniteRecord):
    name: str  #: as the user typed it
    timm_name: str
    family: str
    architecture: Architecture
    output: Output = "logits"
    activation: Activation = "softmax"  #: of logits and maps
    activation_source: str = "default"  #: how the activation is known, in words
    map_shape: MapShape | None = None  #: channels, height and width of a map; None: the model gives something else

    @model_validator(mode="after")
    def _a_map_has_a_shape(self) -> ModelRecord:
        if (self.output == "maps") != (self.map_shape is not None):
            raise ValueError("map_shape belongs to the output 'maps', and to no other")
        return self

    @property
    def classes(self) -> int:
        """How many outputs have names: those of a classifier, or the channels of a map."""
        return self.architecture.num_classes if self.map_shape is None else self.map_shape[0]

    @property
    def gives(self) -> Output:
        """The kind of output. A model without classes gives embeddings, whatever an older version wrote down."""
        return given(self.output, self.architecture.num_classes)


class WeightsRecord(FiniteRecord):
    source: Literal["pretrained", "checkpoint", "shipped", "random"]
    origin: str  #: file name, hub name or seed
    sha256: str  #: of names, shapes and values of all parameters
    remarks: tuple[str, ...] = ()  #: what was chosen, left out or is doubtful, in words


class TextHeadRecord(FiniteRecord):
    """The head of a model that names no classes itself: logits are scaled cosines to text embeddings."""

    origin: str  #: file name
    sha256: Sha256  #: of the file
    classes: int = Field(ge=1)
    dimension: int = Field(ge=1)
    scale: float  #: factor of the cosines
    bias: float


class BlockNodes(FiniteRecord):
    """Numbers of ONNX nodes of a block and of the pruning layer behind it."""

    block: int
    own: int
    pruning: int


def plugin_kind(identity: str | None) -> PluginKind:
    """The kind of plugins that an engine's fingerprint names."""
    return "none" if identity is None else "library"


class LayerParity(FiniteRecord):
    """How often an engine's choice of tokens agreed with the reference at one pruning layer."""

    block: int
    identical: int  #: images for which exactly the reference's tokens are kept
    ties: int  #: images for which other tokens are kept, with a gap at the cut within the tolerance
    overlap: float = Field(default=1.0, ge=0, le=1)  #: share of the reference's tokens that are kept, mean over images


class ParityRecord(FiniteRecord):
    """An engine or a graph compared with fp32 PyTorch, or with what its graph must give, on the same real images."""

    images: int
    max_logit_difference: float
    median_logit_difference: float  #: median over the images of the largest difference of each
    logit_tolerance: float | None  #: None where nothing is judged
    gap_tolerance: float | None  #: None below fp32, where rounding exceeds the gap at a cut
    layers: tuple[LayerParity, ...]
    replayed: bool = True  #: the reference was made to keep the same tokens; if not, the median difference is judged
    emulated: bool = False  #: the graph was run with its roundings spelt out in wider types
    against: Literal["pytorch", "graph"] = "pytorch"  #: int8 engines are compared with their graph and exact products
    #: The next three are known where each side kept its own tokens.
    agreement: float | None = None  #: share of images with the reference's answer
    kl: float | None = None  #: mean divergence of the answers from the reference's, nats
    cosine: float | None = None  #: of embeddings, features and whole maps: mean cosine to the reference's
    #: Of an int8 engine: the largest error of a layer by itself on given integers, relative to its largest result.
    layer_error: float | None = None

    @property
    def judged(self) -> float:
        return self.max_logit_difference if self.replayed else self.median_logit_difference

    @property
    def judgement(self) -> str:
        """The difference that was judged, and its tolerance where one is known."""
        allowed = "" if self.logit_tolerance is None else f" of {self.logit_tolerance:.0e}"
        return f"{self.judged:.0e}{allowed}"


class GraphRecord(FiniteRecord):
    file: BundlePath
    plugin_file: BundlePath | None = None  #: its twin with plugin nodes in place of the scoring
    plain_for: tuple[str, ...] = ()  #: options that no plugin knows, because of which it has no such twin
    #: Its twin with the scores of its pruning layers as further outputs, which `show` runs beside an engine.
    notes_file: BundlePath | None = None
    opset: int
    image_input: ImageInput
    batch: Annotated[int, Field(ge=1)] | None
    precision: Precision = "fp32"
    calibration: str | None = None  #: images that int8 ranges come from, in words; None where ranges are dynamic
    weights_bytes: int = Field(ge=0)
    operators: dict[str, int]  #: nodes by operator type
    nodes: tuple[BlockNodes, ...]
    parity: ParityRecord | None = None  #: by ONNX Runtime at build time, where no engine could run
    drift: ParityRecord | None = None  #: below fp32: compared with fp32, where each keeps its own tokens

    @property
    def files(self) -> list[str]:
        """The graph and its twins."""
        return [file for file in (self.file, self.plugin_file, self.notes_file) if file is not None]

    def source(self, plugins: str | None) -> str | None:
        """The file that an engine with such plugins is built from; None where the graph has no such twin."""
        return self.file if plugins is None else self.plugin_file


class Fingerprint(FiniteRecord):
    """What an engine is bound to. An engine with another fingerprint than the machine's is not loaded."""

    graph_sha256: str
    runtime: str
    runtime_version: str
    device: str
    plugins: str | None = None  #: identity of the plugins that the engine needs


class Candidate(FiniteRecord):
    """An engine that was built, verified and measured on the device, whether or not it was kept."""

    plugins: PluginKind
    median_ms: float  #: at the profile's smallest batch


class ImagesUsed(FiniteRecord):
    """The images that something was judged on."""

    data: str  #: what the images are called
    data_sha256: str  #: of their names, contents and labels
    images: int = Field(ge=1)


class Fidelity(ImagesUsed):
    """How pruning changes an engine's answers, compared with the baseline's engine."""

    top1: float | None = None  #: share of images; None where they are not labelled
    dense_top1: float | None = None
    change: tuple[float, float] | None = None  #: 95 % interval of top1 less dense_top1
    agreement: float | None  #: share of images with the baseline's answer; None for vectors and maps
    kl: float | None  #: mean divergence from the baseline's output, nats; None for vectors and maps
    cosine: float | None = None  #: of embeddings and features: mean cosine to the baseline's
    error: float | None = None  #: of maps: mean error, see `MapFigures`
    iou: float | None = None  #: of maps: mean intersection over union with the baseline's; None of values

    @property
    def likeness(self) -> float:
        """The agreement of answers, the mean cosine of vectors, or of maps the mean IoU, of values 1 less the error."""
        within = None if self.error is None else 1 - self.error
        return next((one for one in (self.agreement, self.cosine, self.iou, within) if one is not None), 0.0)


class FidelityRecord(Fidelity):
    """An evaluation on record; the baseline's engine may be of another, fp32 profile."""

    created: str
    engine_sha256: str  #: of the engine that was evaluated
    dense_sha256: str  #: of the baseline's engine
    dense_profile: Name | None = None  #: profile of the baseline's engine; None: the same
    top5: float | None


class GateLimits(FiniteRecord):
    """What pruning may cost on the calibration images; None: no limit."""

    max_drop: float | None = Field(default=None, ge=0, le=100)  #: points of top-1
    min_agreement: float | None = Field(default=None, ge=0, le=1)  #: share of images with the baseline's answer
    max_kl: float | None = Field(default=None, ge=0)  #: mean divergence from the baseline, nats
    min_cosine: float | None = Field(default=None, ge=-1, le=1)  #: mean cosine to the baseline, of embeddings, features
    max_error: float | None = Field(default=None, ge=0)  #: mean error of maps
    min_iou: float | None = Field(default=None, ge=0, le=1)  #: mean intersection over union of maps

    @property
    def options(self) -> dict[str, float]:
        """The limits that there are, by the option that sets them."""
        return {f"--{name.replace('_', '-')}": value for name, value in self if value is not None}


class GateRow(FiniteRecord):
    """One pruned variant on the calibration images."""

    variant: str
    keep_ratio: float | None
    method: str
    drop: float | None  #: points of top-1 lost; None where the images are not labelled
    agreement: float | None  #: None for vectors and maps
    kl: float | None  #: None for vectors and maps
    cosine: float | None = None  #: of embeddings and features: mean cosine to the baseline
    error: float | None = None  #: of maps
    iou: float | None = None  #: of maps; None of values
    failed: tuple[str, ...]  #: the limits that it missed and by how much, in words; empty: it is in the bundle


class GateRecord(ImagesUsed):
    """What decided which variants are in the bundle."""

    profile: Name
    dense_profile: Name | None = None  #: profile of the baseline that variants were compared with; None: the same
    limits: GateLimits
    rows: tuple[GateRow, ...]
    advice: tuple[str, ...]  #: which keep ratios pass, or might

    @property
    def lines(self) -> list[str]:
        """What was left out and why, for people, with the advice."""
        against = "" if self.dense_profile is None else f", against dense of {self.dense_profile}"
        where = f"on {self.images} images of '{self.data}' ({self.profile}{against})"
        left_out = [(row.variant, ", ".join(row.failed)) for row in self.rows if row.failed]
        return [*(f"'{name}' is not in the bundle: {where}, {why}" for name, why in left_out), *self.advice]


class TimingRecord(FiniteRecord):
    """One candidate's engine, timed in turns with the others, each in its own process."""

    median_ms: float  #: over all calls
    interval: tuple[float, float]  #: 95 %, of the median of the rounds' medians
    speedup: float  #: over the profile asked for: the median of the rounds' ratios
    speedup_interval: tuple[float, float]  #: 95 %


class CandidateRecord(FiniteRecord):
    """A profile that could be shipped instead of the one asked for, or that one itself."""

    profile: Name
    backend: str
    precision: Precision
    reason: str | None  #: why it is not in the bundle; None: it is
    rows: tuple[GateRow, ...] = ()  #: its variants on the calibration images, with the baseline; empty: it never ran
    timing: TimingRecord | None = None  #: None: it never ran


class ChoiceRecord(ImagesUsed):
    """Which of a profile's candidates is in the bundle: what `build --precision auto` measured on one machine."""

    asked: Name
    shipped: Name
    processor: str
    threads: int
    variant: str  #: that was timed
    batch: int
    rounds: int
    limits: GateLimits  #: without limits, candidates are compared with fp32, see docs/explanation/precision.md
    candidates: tuple[CandidateRecord, ...]  #: the profile asked for first, then the less risky first


class CalibrationRecord(FiniteRecord):
    """What the build found out about its calibration images before it built anything."""

    data: str  #: what they are called
    images: int  #: in the folder
    looked_at: int = Field(ge=1)  #: decoded, equally many of every class
    cautions: tuple[str, ...]  #: reasons to trust judgements on them less


class BlockRange(FiniteRecord):
    """The largest magnitudes of one block's values that fp16 would hold; infinite ones are refused, not recorded."""

    model_config = ConfigDict(allow_inf_nan=True)

    block: int
    residual: float  #: tokens, before the block, after attention and after the MLP
    attention: float  #: outputs of attention's linear layers
    logits: float  #: scaled attention logits, before softmax
    mlp: float  #: inputs and outputs of the MLP's linear layers


class RangeRecord(FiniteRecord):
    """Whether fp16 can hold a variant's values, measured by PyTorch in fp32 on calibration images."""

    data: str
    images: int = Field(ge=1)
    blocks: tuple[BlockRange, ...]


class EngineRecord(FiniteRecord):
    profile: Name
    backend: str
    file: BundlePath
    weights: BundlePath | None = None  #: its own weights file, where it was rebuilt on the target
    fingerprint: Fingerprint
    parity: ParityRecord | None = None  #: None: it has never run
    candidates: tuple[Candidate, ...] = ()  #: the engines that were measured to choose it
    fidelity: FidelityRecord | None = None  #: the last evaluation on images

    @property
    def files(self) -> list[str]:
        return [file for file in (self.file, self.weights) if file is not None]


class PartRecord(FiniteRecord):
    """Something that profiles have a graph and an engine of: a variant, or a piece of one."""

    name: str
    graphs: dict[Name, GraphRecord]  #: by profile name
    engines: dict[Name, EngineRecord]  #: by profile name


class VariantRecord(Variant, PartRecord):
    """A variant in a bundle, with its graphs and engines."""

    name: Name
    gmacs: float = Field(gt=0)
    pruning_gmacs: float = Field(ge=0)
    fp16_range: RangeRecord | None = None  #: where the build was given calibration images and an fp16 profile

    def __repr_args__(self) -> Iterator[tuple[str, object]]:
        yield from super().__repr_args__()
        yield "gmacs", round(self.gmacs, 3)
        yield "engines", list(self.engines)


class GoldenRecord(FiniteRecord):
    """Known inputs and the outputs that they must give."""

    images: Annotated[tuple[BundlePath, ...], Field(min_length=1)]  #: lossless source images
    pixels: BundlePath  #: `.npy`, uint8 `[n, H, W, C]`: the images after resize and crop
    outputs: dict[str, BundlePath]  #: variant name -> `.npz` of the logits and of `core.names.golden_array`


class FailedProfile(FiniteRecord):
    """A profile that was asked for and could not be built, while others could; the fields are its error's.

    Where only its cascade failed, its engines are in the bundle.
    """

    profile: Name
    part: Literal["profile", "cascade"] = "profile"
    given: str
    expected: str
    fix: str
    exit_code: int

    @classmethod
    def of(cls, profile: str, error: ZtdeployError, part: Literal["profile", "cascade"] = "profile") -> FailedProfile:
        fields = {name: getattr(error, name) for name in ("given", "expected", "fix", "exit_code")}
        return cls(profile=profile, part=part, **fields)

    @property
    def error(self) -> ZtdeployError:
        error = ZtdeployError(self.given, self.expected, self.fix)
        error.exit_code = self.exit_code
        return error

    @property
    def line(self) -> str:
        what = "was not built" if self.part == "profile" else "has no cascade"
        return f"profile '{self.profile}' {what}: {self.error}"


class AdaptedProfile(FiniteRecord):
    """A profile that was built in another form than its file asks for, so that no sums overflow on this processor."""

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
    """A graph of a few neighbouring blocks of the baseline, for any number of tokens."""

    file: BundlePath
    count: int = Field(ge=1)


#: The name of a piece of a variant, which no variant can have.
PieceName = Annotated[str, Field(pattern=r"^_[a-z0-9][a-z0-9._-]{0,79}$")]


class Piece(PartRecord):
    """What a cascade cuts a variant's graph into: the blocks that all stages share, or the rest of one stage."""

    name: PieceName


class CascadeStage(Piece):
    """The rest of a stage's variant behind the prefix. Its outputs are the variant's own and the stage's confidence."""

    variant: Name


class CascadeFidelity(FidelityRecord):
    """An evaluation of a cascade on record: its agreement is in the sense of its guarantee, and its digest is of all
    its engines and thresholds.
    """

    bound: Share  #: the agreement on images like these is at least this, with 95 % confidence
    shares: tuple[Share, ...]  #: per stage: share of these images that it ran on
    gmacs: float = Field(gt=0)  #: mean multiply-adds of one of these images, in units of 1e9

    @property
    def words(self) -> str:
        """What was found, in words that follow what is guaranteed."""
        against = "" if self.dense_profile is None else f" of {self.dense_profile}"
        return (
            f"on {self.images} images of '{self.data}' it agreed with the baseline{against} on"
            f" {100 * self.likeness:.1f} % (at least {percent_below(self.bound)} of images like them), and"
            f" {100 * self.shares[-1]:.0f} % went on to the baseline"
        )


class CascadeRecord(FiniteRecord):
    """A cascade: stages from the cheapest to the baseline, behind one prefix (see `core/cascade.py`)."""

    block: int = Field(ge=0)  #: graphs are cut in front of this block, counted from 0
    signal: Signal
    prefix: Piece
    stages: Annotated[tuple[CascadeStage, ...], Field(min_length=2)]
    settings: dict[Name, CascadeSetting] = Field(default_factory=dict)  #: by profile; only where its engines have run
    evaluations: dict[Name, CascadeFidelity] = Field(default_factory=dict)  #: by profile: the last one on images

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return (self.prefix, *self.stages)

    @property
    def chain(self) -> str:
        """The variants of its stages, in words."""
        return ", ".join(stage.variant for stage in self.stages)


class Manifest(FiniteRecord):
    schema_version: int
    created: str
    tools: dict[str, str]
    model: ModelRecord
    weights: WeightsRecord
    text_head: TextHeadRecord | None = None  #: part of the weights as well
    preprocess: PreprocessSpec
    #: Where each field of it comes from: an option, a file, or timm's default.
    preprocess_sources: dict[str, str] = Field(default_factory=dict)
    class_names: BundlePath | None
    profiles: dict[Name, HardwareProfile]
    default_variant: Name
    variants: tuple[VariantRecord, ...]
    cascade: CascadeRecord | None = None
    golden: GoldenRecord
    missing: tuple[MissingPart, ...]
    failed: tuple[FailedProfile, ...] = ()
    adapted: tuple[AdaptedProfile, ...] = ()
    #: By profile: graphs for measuring how time grows with tokens.
    blocks: dict[Name, BlocksRecord] = Field(default_factory=dict)
    gates: tuple[GateRecord, ...] = ()  #: by profile, where the build was given calibration images
    choices: tuple[ChoiceRecord, ...] = ()  #: of `build --precision auto`
    calibration: CalibrationRecord | None = None  #: where the build was given calibration images
    #: By profile: what building engines on the device measured.
    timing_caches: dict[Name, BundlePath] = Field(default_factory=dict)
    files: dict[BundlePath, FileRecord]

    @property
    def lines_of_missing(self) -> tuple[str, ...]:
        """What is not as it was asked for, in words: profiles that failed or have another form come first."""
        parts: list[FailedProfile | AdaptedProfile | MissingPart] = [*self.failed, *self.adapted, *self.missing]
        return tuple(one.line for one in parts)

    @property
    def lines_of_cascade(self) -> tuple[str, ...]:
        """What the cascade keeps and costs with the engines of each profile, in words."""
        lines, cascade = [], self.cascade
        for profile, one in cascade.settings.items() if cascade else ():
            last = f"{100 * one.shares[-1]:.0f} % of images go on to the baseline"
            cost = f"{one.gmacs:.3f} GMACs on average, {one.gmacs / self.dense.gmacs:.2f} of the baseline's"
            times = "" if one.mean_ms is None else f", {one.mean_ms:.2f} ms on average and {one.worst_ms:.2f} at worst"
            assert cascade is not None
            found = cascade.evaluations.get(profile)
            since = f"; {found.words}" if found else ""
            name = f"the cascade of {cascade.chain} ({profile})"
            lines.append(f"{name} {one.guarantee.words}; {last}: {cost}{times}{since}")
        return tuple(lines)

    def with_engines(self, engines: Mapping[tuple[str, str], EngineRecord]) -> Manifest:
        """The manifest with some engines replaced or added, by the names of their variant or piece, and profile.

        Evaluations of a cascade whose engines these replace are left out.
        """

        def with_own(part: _AnyPart) -> _AnyPart:
            own = {profile: engine for (name, profile), engine in engines.items() if name == part.name}
            return part.model_copy(update={"engines": {**part.engines, **own}})

        changes: dict[str, object] = {"variants": tuple(map(with_own, self.variants))}
        if self.cascade is not None:
            pieces = {"prefix": with_own(self.cascade.prefix), "stages": tuple(map(with_own, self.cascade.stages))}
            replaced, known = {profile for _, profile in engines}, self.cascade.evaluations.items()
            left = {name: one for name, one in known if not {name, one.dense_profile} & replaced}
            changes["cascade"] = self.cascade.model_copy(update={**pieces, "evaluations": left})
        return self.model_copy(update=changes)

    @property
    def parts(self) -> tuple[PartRecord, ...]:
        """Everything that has graphs and engines: all variants, then the pieces of the cascade."""
        return (*self.variants, *(self.cascade.pieces if self.cascade else ()))

    @property
    def dense(self) -> VariantRecord:
        return next(variant for variant in self.variants if not variant.plan.layers)

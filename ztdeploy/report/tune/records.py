"""What a search was asked for and what it found: records that are JSON on disk, with a schema version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from ztdeploy.core.brief import Brief, Shown
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.records import Record
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.core.verdict import Verdict
from ztdeploy.target.evaluate.eval_report import Change, DataFacts, Mean, Share
from ztdeploy.target.measure.machine import Machine
from ztdeploy.target.measure.statistics import Interval
from ztdeploy.target.measure.sweep_report import Staircase

SCHEMA_VERSION: Literal[2] = 2
KIND: Literal["ztdeploy-tune"] = "ztdeploy-tune"
State = Literal["complete", "pruned", "failed"]
#: `gmacs`: per image, as `plan_gmacs` counts; `reduction`: the share of the baseline's compute that is saved;
#: `latency_ms`: per call on this machine; `speedup`: the baseline's latency over it.
BudgetKind = Literal["gmacs", "reduction", "latency_ms", "speedup"]
#: `random` is the paper's Monte Carlo search.
SamplerName = Literal["tpe", "random", "nsga2"]
#: `curves`: how counts follow from a few numbers, and the method's options; `counts`: one for each block.
SearchName = Literal["curves", "counts"]
#: Methods that have a search space.
TUNABLE = ("novelty-merge", "zero-tprune-merge", "zero-tprune")


class Budget(Record):
    """What a model may cost on its target."""

    kind: BudgetKind
    value: float

    @property
    def in_time(self) -> bool:
        """Whether the limit is a time rather than an amount of compute."""
        return self.kind in ("latency_ms", "speedup")

    def limit(self, dense: float) -> float:
        """The highest cost, in the unit of `dense`, which is what the baseline costs: GMACs or milliseconds."""
        if self.kind == "reduction":
            return dense * (1 - self.value)
        return dense / self.value if self.kind == "speedup" else self.value

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}"


class TuneRequest(Record):
    """What to search for, and on what."""

    model: ModelSource
    data: Path
    budget: Budget | None = None  #: None: the whole front, cost against fidelity
    profile: str | None = None  #: a budget in time is measured with the engines of this profile
    methods: tuple[str, ...] = (TUNABLE[0],)
    trials: int = 100
    sampler: SamplerName | None = None  #: by default `tpe` with a budget, `nsga2` without
    workers: int = 1
    storage: str | None = None  #: a database's URL; by default a SQLite file in the folder
    study: str = "tune"  #: its name in the storage
    max_drop: float | None = None  #: points of top-1 that the winner may lose on the tuning images
    limit: int | None = None  #: images, of every class alike; by default all
    seed: int = 0
    #: Instead of a budget: the agreement of a cascade of what is searched and the baseline, whose mean cost is lowered.
    cascade: float | None = None
    search: SearchName = "curves"

    @property
    def front(self) -> bool:
        """Whether the whole front is searched, cost against fidelity."""
        return self.budget is None and self.cascade is None

    @property
    def sampler_used(self) -> SamplerName:
        return self.sampler or ("nsga2" if self.front else "tpe")

    @property
    def searched_by(self) -> str:
        """What chose the trials, in a word or two."""
        return "exchanging counts" if self.search == "counts" else self.sampler_used


class GmacsCost(Record):
    """A schedule costs its compute, counted: exact, for any machine."""

    kind: Literal["gmacs"] = "gmacs"
    unit: ClassVar[str] = "GMACs"


class LatencyCost(Record):
    """A schedule costs the milliseconds of a call, predicted for one machine, profile and precision.

    `ends + scale * (sum over blocks of block(tokens)) + sum over pruning layers of (layer + pair * N^2)`. `block` is
    the staircase's, of a few blocks alone; the rest is fitted to whole engines.
    """

    kind: Literal["latency"] = "latency"
    unit: ClassVar[str] = "ms"
    staircase: Staircase
    ends_ms: float  #: in front of the first block and behind the last
    scale: float = 1.0  #: time of a block in a whole engine over that of a block alone
    layer_ms: dict[str, float] = Field(default_factory=dict)  #: by method: of a pruning layer, whatever its size
    pair_ns: dict[str, float] = Field(default_factory=dict)  #: by method: of each pair of the tokens that enter it
    fitted: int = 0  #: engines that these rest on
    worst_fit: float = 0.0  #: the largest relative error on those


Cost: TypeAlias = Annotated[GmacsCost | LatencyCost, Field(discriminator="kind")]


class ModelFacts(Record):
    name: str
    timm_name: str
    weights: str  #: where they come from
    origin: str
    sha256: str  #: of the parameters
    depth: int
    tokens: int
    dense_gmacs: float


class TrialRecord(Record):
    """One trial, as the study has it."""

    number: int
    state: State
    start: bool  #: whether it does what a preset does
    kl: float | None  #: on the tuning half, or on the images it saw before it was given up
    images: int
    cost: float | None
    lost: float | None  #: points of top-1 below the baseline's, where there are labels
    seconds: float
    same_as: int | None  #: an earlier trial of the same schedule, which was not judged twice
    parameters: dict[str, Any]
    schedule: PruningSchedule | None


class Score(Record):
    """A schedule on the report half; beside it, its KL on the tuning half, where a trial was made of it."""

    label: str
    schedule: PruningSchedule
    cost: float
    gmacs: float
    tuning_kl: float | None
    kl: Mean
    agreement: Share
    top1: Share | None
    change: Change | None


class Ratio(Record):
    """The ratio of two means of KL over the same images, drawn in pairs."""

    value: float
    interval: Interval


class BestAtCost(Record):
    """What was found for one cost, and what it is compared with there."""

    limit: float
    share: float  #: of the baseline's cost
    searched: bool  #: False: the winner's shape at another cost, which no trial had
    tuned: Score
    preset: Score
    tome: Score
    to_preset: Ratio
    to_tome: Ratio

    @property
    def name(self) -> str:
        """The name of its schedule's file."""
        return self.tuned.schedule.name

    @property
    def better(self) -> bool:
        """Whether what was found is shown to be nearer to the baseline than the best preset, on the report half."""
        return self.to_preset.interval.high < 1

    @property
    def recommended(self) -> Score:
        """What was found, where it is shown to be better; otherwise the best preset."""
        return self.tuned if self.better else self.preset


class TwoStages(Record):
    """The cascade of a schedule and the baseline, counted in multiply-adds: longer chains were not searched.

    Its threshold is of the tuning half, its figures of the report half. No engines ran: the build chooses a threshold
    of its own, on its calibration images, and what a stage takes in time only `bench` tells.
    """

    schedule: PruningSchedule
    threshold: float  #: an image goes on to the baseline where the schedule's confidence is below it
    went_on: Share
    agreement: Share
    bound: float  #: agreement is at least this with 95 % confidence, on images like those of the report half
    mean_gmacs: float  #: of one image on average
    worst_gmacs: float  #: of one that goes on


class CascadeFound(Record):
    """The cascade of the schedule that was found, and that of the best preset."""

    tuned: TwoStages
    preset: TwoStages

    @property
    def better(self) -> bool:
        return self.tuned.mean_gmacs < self.preset.mean_gmacs

    @property
    def recommended(self) -> TwoStages:
        return self.tuned if self.better else self.preset


class Importance(Record):
    parameter: str
    share: float


class Measured(Record):
    """The engine of a schedule that was found, on this machine."""

    schedule: str
    predicted_ms: float
    measured_ms: float


class TuneReport(Shown, Record):
    kind: Literal["ztdeploy-tune"] = KIND
    schema_version: Literal[2] = SCHEMA_VERSION
    created: str
    request: TuneRequest
    storage: str  #: without a password
    model: ModelFacts
    machine: Machine
    tuning_data: DataFacts
    report_data: DataFacts
    dense_cost: float
    unit: str
    cost: Cost
    trials: tuple[TrialRecord, ...]
    importances: tuple[Importance, ...]
    compared: tuple[BestAtCost, ...]  #: the first one is the winner
    dense_top1: Share | None
    cascade: CascadeFound | None = None  #: where the request asks for one
    measured: tuple[Measured, ...] = ()
    notes: tuple[str, ...] = ()
    verdict: Verdict | None = None  #: None in reports of older versions

    @property
    def winner(self) -> BestAtCost:
        return self.compared[0]

    @property
    def better(self) -> bool:
        """Whether what was found is recommended, rather than `preset`."""
        return self.winner.better if self.cascade is None else self.cascade.better

    @property
    def preset(self) -> PruningSchedule:
        """The best preset that what was found is compared with."""
        return self.winner.preset.schedule if self.cascade is None else self.cascade.preset.schedule

    @property
    def finished(self) -> list[TrialRecord]:
        return [one for one in self.trials if one.state != "failed"]

    def brief(self) -> Brief:
        """The search, and a row for each schedule that it found."""
        rows = [
            (
                one.name,
                f"{100 * one.share:.1f} %",
                f"{100 * one.tuned.agreement.value:.1f} %",
                f"{one.tuned.kl.value:.4f}",
                f"{one.to_preset.value:.2f}",
            )
            for one in self.compared
        ]
        found = f"'{self.winner.name}'" if self.verdict is None else self.verdict.sentence
        return Brief(
            f"{self.model.name}, {len(self.finished)} trials on '{self.tuning_data.name}': {found}",
            ("schedule", "of the baseline's cost", "same answer", "mean KL", "KL over the preset's"),
            rows,
            self.notes,
        )

"""What a search says: records that are JSON on disk, with a schema version."""

from __future__ import annotations

from typing import Any, Literal

from ztdeploy.core.records import Record
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.report.tune.cost import Cost
from ztdeploy.report.tune.request import TuneRequest
from ztdeploy.target.evaluate.eval_report import Change, DataFacts, Mean, Share
from ztdeploy.target.measure.machine import Machine
from ztdeploy.target.measure.statistics import Interval

SCHEMA_VERSION: Literal[2] = 2
KIND: Literal["ztdeploy-tune"] = "ztdeploy-tune"
State = Literal["complete", "pruned", "failed"]


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
    start: bool  #: what a preset does
    kl: float | None  #: on the tuning half, or on the images it saw before it was given up
    images: int
    cost: float | None
    lost: float | None  #: points of top-1 below dense's, where there are labels
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
    """Of two means of KL over the same images, drawn in pairs."""

    value: float
    interval: Interval


class Compared(Record):
    """What was found for one cost, with what it is held against there."""

    limit: float
    share: float  #: of dense's cost
    searched: bool  #: False: the winner's shape at another cost, which no trial had
    tuned: Score
    preset: Score
    tome: Score
    to_preset: Ratio
    to_tome: Ratio

    @property
    def name(self) -> str:
        """Of its schedule's file."""
        return self.tuned.schedule.name


class Importance(Record):
    parameter: str
    share: float


class Measured(Record):
    """A winner's engine on this machine."""

    schedule: str
    predicted_ms: float
    measured_ms: float


class TuneReport(Record):
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
    compared: tuple[Compared, ...]  #: the first one is the winner
    dense_top1: Share | None
    measured: tuple[Measured, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def winner(self) -> Compared:
        return self.compared[0]

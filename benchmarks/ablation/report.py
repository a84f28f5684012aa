"""What an ablation says: records that are JSON on disk, with a schema version."""

from __future__ import annotations

from typing import Literal

from benchmarks.ablation.request import AblateRequest
from benchmarks.ablation.topic_names import Topic
from ztdeploy.core.records import Record
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.report.tune.records import ModelFacts
from ztdeploy.target.evaluate.eval_report import Change, DataFacts, Mean, Share
from ztdeploy.target.measure.machine import Machine

SCHEMA_VERSION: Literal[2] = 2
KIND: Literal["ztdeploy-ablate"] = "ztdeploy-ablate"


class RowScore(Record):
    """One way to prune, against dense on the same images."""

    label: str
    schedule: PruningSchedule
    draw: int | None  #: which random draw, where tokens are dropped at random
    gmacs: float
    kl: Mean  #: KL(dense || row), nats
    agreement: Share  #: images with dense's answer
    top1: Share | None  #: where the images are labelled
    change: Change | None  #: of top-1, likewise
    difference: Mean | None  #: KL less the reference row's, image by image; None for the reference itself
    step: Mean | None  #: KL less that of the row above, where each row adds something to that


class Table(Record):
    topic: Topic
    title: str
    question: str
    reference: str  #: the label of the row that others are compared with
    rows: tuple[RowScore, ...]
    findings: tuple[str, ...]  #: what is shown, and what is not

    @property
    def reference_row(self) -> RowScore:
        return next(row for row in self.rows if row.label == self.reference)


class RankingPoint(Record):
    """A ranking after some iterations, against the one after the most."""

    iterations: int
    overlap: Mean  #: share of the tokens kept by the one that the other keeps as well
    correlation: Mean  #: Spearman's, over the patch tokens


class BlockRanking(Record):
    block: int  #: from 1
    points: tuple[RankingPoint, ...]
    settled: int  #: iterations from which on the overlap stays at least `Convergence.settled_overlap`


class Convergence(Record):
    """Of the ranking by weighted page rank, on the dense model's attention, behind every block."""

    most: int  #: iterations that all others are compared with
    kept: int  #: of the patch tokens
    patches: int
    settled_overlap: float
    blocks: tuple[BlockRanking, ...]
    findings: tuple[str, ...]


class AblateReport(Record):
    kind: Literal["ztdeploy-ablate"] = KIND
    schema_version: Literal[2] = SCHEMA_VERSION
    created: str
    request: AblateRequest
    model: ModelFacts
    machine: Machine
    data: DataFacts
    share: float  #: of dense's multiply-adds that all rows shall have
    keep_ratio: float  #: of the default schedule at that cost
    dense_top1: Share | None  #: where the images are labelled
    tables: tuple[Table, ...]
    convergence: Convergence | None  #: with the table of iterations

"""What a sweep says: one benchmark per group of configurations that are compared, and what the variants are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ztdeploy.core.cascade import CASCADE
from ztdeploy.core.manifest import Fidelity
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.records import Record
from ztdeploy.core.setting import Setting
from ztdeploy.core.verdict import Verdict
from ztdeploy.target.measure.bench_report import BenchReport, Comparison, ConfigurationReport, Failure, RunStatus
from ztdeploy.target.measure.report_file import load_report

SCHEMA_VERSION: Literal[2] = 2
KIND: Literal["ztdeploy-sweep"] = "ztdeploy-sweep"
#: What an operator does. "pruning" is everything inside a pruning layer, whatever it does there.
Kind = Literal["linear", "attention", "norm", "activation", "elementwise", "data movement", "pruning", "other"]


class SweepRequest(Record):
    """What to build and measure. Empty tuples and None stand for the defaults that are described."""

    model: ModelSource | None = None  #: None: the variants of `bundle` as they are
    bundle: Path | None = None
    profile: str | None = None
    methods: tuple[str, ...] = ()
    keep_ratios: tuple[float, ...] = ()  #: 1.0 is the dense model, which is always there
    image_sizes: tuple[ImageSize, ...] = ()  #: one build of the model for each; by default its own
    batches: tuple[int, ...] = ()  #: by default the profile's smallest
    threads: tuple[int, ...] = ()  #: by default what the profile says
    preset: str = "default"
    warmup_s: float = 0.5  #: per configuration
    duration_s: float = 4.0  #: per configuration, over all rounds
    rounds: int = 8
    details: bool = True  #: also profile operators and measure the token staircase
    data: Path | None = None  #: images that the engines are evaluated on, as `eval` does; None: on none
    limit: int | None = None  #: of these images, of every class alike; by default all
    seed: int = 0


class BundleUsed(Record):
    """The bundle that the variants of one image size came from."""

    image_size: ImageSize
    path: str
    digest: str  #: of the engines, the blocks and the weights that were measured


class VariantFacts(Record):
    """What is known of a variant without running it."""

    name: str
    method: str
    keep_ratio: float | None
    image_size: ImageSize
    gmacs: float  #: per image, pruning layers not counted; of a cascade the mean over the images
    pruning_gmacs: float
    tokens_per_block: tuple[int, ...]  #: that each block is given; empty for a cascade
    fidelity: Fidelity | None = None


class Part(Record):
    """A share of one call."""

    block: int | None  #: from 0; None: in front of the first block or behind the last
    kind: Kind
    ms: float


class OperatorTime(Record):
    operator: str
    count: int  #: nodes in the graph
    ms: float  #: of all of them, in one call


class BlockAttention(Record):
    """How the runtime computes a block's attention."""

    block: int  #: from 0
    fused: bool
    operators: tuple[str, ...]  #: what computes it
    reason: str  #: why it is not fused; empty where it is


class OperatorProfile(Record):
    """Where the time of one configuration goes, by the runtime's own account; timing every operator slows them down."""

    variant: str
    image_size: ImageSize
    batch: int
    threads: int | None
    calls: int  #: that the figures are medians of
    call_ms: float  #: one profiled call as a whole: all parts, and `between_ms`
    parts: tuple[Part, ...]
    operators: tuple[OperatorTime, ...]
    attention: tuple[BlockAttention, ...]
    between_ms: float = 0.0  #: of a call that no operator ran: the runtime's own work, and that of taking these times

    @property
    def setting(self) -> Setting:
        return Setting(self.image_size, self.batch, self.threads)


class TokenStep(Record):
    tokens: int
    block_ms: float  #: median time of one transformer block at that many tokens


class Staircase(Record):
    """How the time of a block grows with its tokens, on this machine."""

    image_size: ImageSize
    batch: int
    threads: int | None
    points: tuple[TokenStep, ...]  #: ascending
    treads: tuple[int, ...]  #: the token counts right below a jump: a `k` slightly above one of them should snap down
    rounds: int = 0  #: that the times are medians of

    @property
    def setting(self) -> Setting:
        return Setting(self.image_size, self.batch, self.threads)


class SweepReport(Record):
    kind: Literal["ztdeploy-sweep"] = KIND
    schema_version: Literal[2] = SCHEMA_VERSION
    progress: RunStatus
    request: SweepRequest
    variants: tuple[VariantFacts, ...]
    runs: tuple[BenchReport, ...]  #: one per group; a group's configurations took turns with its dense one
    planned: int  #: configurations that were asked for
    failures: tuple[Failure, ...] = ()  #: what could not be built, or not be measured at all
    bundles: tuple[BundleUsed, ...] = ()
    profiles: tuple[OperatorProfile, ...] = ()
    staircases: tuple[Staircase, ...] = ()
    notes: tuple[str, ...] = ()  #: what of profiles and staircases cannot be had, and why
    verdicts: tuple[Verdict, ...] = ()  #: one per setting, once the sweep is over

    def facts(self, name: str, image_size: ImageSize) -> VariantFacts:
        return next(one for one in self.variants if (one.name, one.image_size) == (name, image_size))


@dataclass(frozen=True)
class Row:
    """One configuration of a sweep, for a table or a plot."""

    facts: VariantFacts
    measured: ConfigurationReport  #: the dense one's turns come from all groups that it took part in
    comparison: Comparison | None  #: with dense in the same group; None for dense itself, or where there is none

    @property
    def dense(self) -> bool:
        return len(set(self.facts.tokens_per_block)) == 1

    @property
    def cascade(self) -> bool:
        return self.facts.method == CASCADE

    def typical_ms(self, *, mean: bool) -> float:
        """The median latency of one call, or the mean, by which a cascade counts; of a row that was measured."""
        assert self.measured.latency is not None
        return self.measured.latency.mean_ms if mean else self.measured.latency.p50_ms


def rows(report: SweepReport) -> list[Row]:
    """Every configuration once: by image size, batch, threads; then dense first, then by method and falling ratio."""
    found: dict[tuple[Setting, str], Row] = {}
    for run in report.runs:
        for one in run.configurations:
            key = (one.setting._replace(image_size=run.bundle.image_size), one.variant)
            measured = pooled(found[key].measured, one) if key in found else one
            found[key] = Row(report.facts(one.variant, run.bundle.image_size), measured, run.comparison_of(one))
    methods = list(dict.fromkeys(one.method for one in report.variants))

    def place(row: Row) -> tuple[object, ...]:
        setting = (row.facts.image_size, row.measured.batch, row.measured.threads or 0)
        return (*setting, not row.dense, methods.index(row.facts.method), -(row.facts.keep_ratio or 0))

    return sorted(found.values(), key=place)


def pooled(first: ConfigurationReport, second: ConfigurationReport) -> ConfigurationReport:
    """One configuration that was measured twice, as if it had been measured once; the second's rounds come last."""
    if first.latency is None or second.latency is None:
        return first if second.latency is None else second
    offset = 1 + max(turn.round for turn in first.turns)
    later = [turn.model_copy(update={"round": turn.round + offset}) for turn in second.turns]
    peaks = [peak for peak in (first.peak_rss_mb, second.peak_rss_mb) if peak is not None]
    return first.with_turns([*first.turns, *later], max(peaks, default=None))


def read_any_report(path: Path) -> BenchReport | SweepReport:
    """A report whose kind is not known beforehand.

    Raises:
        InputError: neither a benchmark's nor a sweep's report, damaged, or of another schema version.
    """
    expected = "a report of 'ztdeploy bench --out' or 'ztdeploy sweep'"
    models: tuple[type[BenchReport | SweepReport], ...] = (BenchReport, SweepReport)
    return load_report(path, expected, *models)

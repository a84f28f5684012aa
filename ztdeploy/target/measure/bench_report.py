"""What a benchmark says: records that are JSON on disk, with a schema version, and every raw sample in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from ztdeploy.core.arguments import MIN_AGREEMENT
from ztdeploy.core.brief import Brief, Shown
from ztdeploy.core.cascade import Guarantee
from ztdeploy.core.errors import ZtdeployError
from ztdeploy.core.files import write
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.records import Record, to_json
from ztdeploy.core.setting import Setting
from ztdeploy.core.verdict import Verdict
from ztdeploy.target.measure.machine import Machine, State
from ztdeploy.target.measure.replay_report import ROW_HEADS, LoadReplay, runs_as_rows
from ztdeploy.target.measure.report_file import check_overwritable, holds_kind, load_report
from ztdeploy.target.measure.statistics import Interval, Summary, summarise

SCHEMA_VERSION: Literal[1] = 1
KIND: Literal["ztdeploy-bench"] = "ztdeploy-bench"
#: Images at most that a cascade is measured on, which lie decoded in memory: 154 MB at 224 pixels.
MOST_IMAGES = 1024
#: How far a measurement came. "running" where the process was killed later on, if it does not run any more.
RunStatus = Literal["running", "complete", "interrupted"]
Outcome = Literal["faster", "slower", "no difference shown", "too few rounds"]


class BenchRequest(Record):
    """What to measure and for how long. Empty tuples and None stand for the defaults that are described."""

    bundle: Path
    keep_ratios: tuple[float, ...] = ()
    variants: tuple[str, ...] = ()
    all_variants: bool = False  #: instead of the bundle's default variant, where none is named
    profile: str | None = None  #: by default the first whose engines run here
    batches: tuple[int, ...] = ()  #: images per call; by default the profile's smallest batch
    threads: tuple[int, ...] = ()  #: by default what the profile says, within what the process may use
    warmup_s: float = 1.0  #: per configuration, before the first round
    duration_s: float | None = None  #: per configuration, over all rounds; by default 10
    iterations: int | None = None  #: calls per configuration, over all rounds, instead of a duration
    rounds: int = 10
    reference: bool = True  #: measure the dense variant as well, at the same batch and threads
    seed: int = 0  #: of the order of turns and of the bootstrap
    min_agreement: float = MIN_AGREEMENT  #: what a verdict asks of a variant that was evaluated
    governor: bool = False  #: replay a load with a governor and with static variants, instead
    latency_ms: float | None = None  #: the p95 that the governor holds
    min_fidelity: float | None = None  #: its floor on recorded fidelity
    load: Path | None = None  #: the file of the load, or a shipped load's name; by default one core, half of the time
    cascade: bool = False  #: measure the cascade as well, and all static variants where none is named
    data: Path | None = None  #: images that the cascade runs on


class BundleFacts(Record):
    path: str
    created: str
    model: str
    timm_name: str
    image_size: ImageSize
    weights: str  #: where they come from
    profile: str
    backend: str
    runtime: str  #: name and version, which an engine is bound to


class ColdStart(Record):
    """From nothing to the first result, in milliseconds; one start, with files in the page cache or not, as it was."""

    process_ms: float | None  #: from the order to start a process to the first line of Python; None: nobody said when
    import_ms: float  #: of NumPy, the runtime and ztdeploy
    load_ms: float  #: of the engine, its hashes not checked
    first_ms: float  #: the first call, which may still allocate

    @property
    def total_ms(self) -> float:
        return (self.process_ms or 0.0) + self.import_ms + self.load_ms + self.first_ms


class Turn(Record):
    """One configuration's part of one round."""

    round: int  #: from 0
    place: int  #: within the round, from 0
    samples_ms: tuple[float, ...]  #: each call, in order
    wall_s: float  #: with the calls that are not counted
    own_cpu_s: float  #: what our own processes used meanwhile, of all usable cores together
    busy_cpu_s: float | None  #: what all processes used
    stolen_s: float | None  #: what a hypervisor gave to other machines
    clock_mhz: float | None  #: of the fastest usable core, right after the last call
    gpu_clock_mhz: float | None
    answered: tuple[int, ...] = ()  #: of the cascade: how many images each stage answered in these calls


class Failure(Record):
    """Why a configuration has no samples, or fewer than the others."""

    message: str
    exit_code: int

    @classmethod
    def of(cls, error: ZtdeployError, what: str = "") -> Failure:
        """
        Args:
            what: could not be built or measured, where the error does not say it.
        """
        return cls(message=f"{what}: {error}" if what else str(error), exit_code=error.exit_code)


class ConfigurationReport(Record):
    """One variant, or the cascade, at one batch and number of threads, in a process of its own."""

    variant: str
    keep_ratio: float | None
    batch: int
    threads: int | None  #: None: the runtime is not one that takes a number of threads
    gmacs: float  #: per image; of the cascade the mean
    model_mb: float  #: the weights that its graph reads
    engine_mb: float  #: the engine's own files
    shared_weights_mb: float  #: the bundle's weights file, where the engine reads it
    cold_start: ColdStart | None = None
    latency: Summary | None = None  #: over all turns, per call
    images_per_s: float | None = None  #: batch over mean latency
    peak_rss_mb: float | None = None
    turns: tuple[Turn, ...] = ()
    failure: Failure | None = None

    @property
    def samples_by_round(self) -> dict[int, tuple[float, ...]]:
        return {turn.round: turn.samples_ms for turn in self.turns}

    @property
    def answered(self) -> tuple[int, ...]:
        """Of the cascade: how many images each stage answered in the timed calls; empty otherwise."""
        return tuple(map(sum, zip(*(turn.answered for turn in self.turns), strict=True)))

    @property
    def reached(self) -> tuple[int, ...]:
        """Of the cascade: how many images each stage ran on in the timed calls; empty otherwise."""
        return tuple(sum(self.answered[stage:]) for stage in range(len(self.answered)))

    @property
    def setting(self) -> Setting:
        return Setting(None, self.batch, self.threads)

    def with_turns(self, turns: Sequence[Turn], peak_rss_mb: float | None) -> ConfigurationReport:
        """The same configuration with these turns, and what follows from them."""
        latency = summarise([sample for turn in turns for sample in turn.samples_ms]) if turns else None
        return self.model_copy(
            update={
                "turns": tuple(turns),
                "latency": latency,
                "images_per_s": self.batch * 1000 / latency.mean_ms if latency else None,
                "peak_rss_mb": peak_rss_mb,
            }
        )


class Comparison(Record):
    """One configuration against the reference at the same batch and threads."""

    variant: str
    reference: str
    batch: int
    threads: int | None
    speedup: float  #: the median of the rounds' ratios, which are ratios of medians, or of means for the cascade
    interval: Interval | None  #: None: too few rounds
    ratios: tuple[float, ...]  #: one a round
    work_ratio: float  #: the reference's GMACs over its own
    outcome: Outcome
    verdict: str


class CascadeFacts(Record):
    """The cascade as its build calibrated it, and the images that it was measured on."""

    stages: tuple[str, ...]  #: variants, the cheapest first
    shares: tuple[float, ...]  #: per stage: share of the calibration images that it runs on
    guarantee: Guarantee
    data: str  #: what the images are called that it was measured on
    images: int  #: how many they are


class SameLatency(Record):
    """The static variant that takes as long per call as the cascade does on average."""

    batch: int
    threads: int | None
    mean_ms: float  #: the cascade's
    between: tuple[str, ...]  #: two variants that it was interpolated between, or the nearest one
    gmacs: float
    agreement: float | None  #: with the baseline; None: not known of one of the variants
    sentence: str


class Caution(Record):
    """Something about the machine that makes figures worse than they look."""

    kind: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


class BenchReport(Shown, Record):
    kind: Literal["ztdeploy-bench"] = KIND
    schema_version: Literal[1] = SCHEMA_VERSION
    progress: RunStatus
    request: BenchRequest
    bundle: BundleFacts
    machine: Machine
    before: State
    after: State
    quiet_cores: float | None  #: how many cores others kept busy before anything was started
    configurations: tuple[ConfigurationReport, ...]
    comparisons: tuple[Comparison, ...]
    warnings: tuple[Caution, ...] = Field(default=())
    replay: LoadReplay | None = None  #: of a load with a governor; there are no configurations then
    verdicts: tuple[Verdict, ...] = ()  #: one per batch and number of threads; empty in reports of older versions
    cascade: CascadeFacts | None = None  #: None: it was not measured
    same_latency: tuple[SameLatency, ...] = ()  #: one per batch and number of threads that the cascade was measured at
    on: str | None = None  #: the board's name, where 'bench --on' measured on one

    @property
    def measured(self) -> tuple[ConfigurationReport, ...]:
        """Those that have samples."""
        return tuple(one for one in self.configurations if one.latency is not None)

    def comparison_of(self, one: ConfigurationReport) -> Comparison | None:
        """How a configuration compares with its reference."""
        key = (one.variant, one.batch, one.threads)
        found = (other for other in self.comparisons if (other.variant, other.batch, other.threads) == key)
        return next(found, None)

    @property
    def failures(self) -> tuple[ConfigurationReport, ...]:
        return tuple(one for one in self.configurations if one.failure is not None)

    def brief(self) -> Brief:
        """The machine, and a row for each configuration with its latency and speed-up."""
        unfinished = [] if self.progress == "complete" else [f"The measurement is {self.progress}."]
        if self.replay is not None:
            of = f"{Path(self.bundle.path).resolve().name} ({self.bundle.profile}, {self.bundle.runtime}) under load"
            said = "".join(f"; {one.sentence}" for one in self.verdicts)
            return Brief(f"{of}{said}", ROW_HEADS, runs_as_rows(self.replay.runs), unfinished)
        rows = []
        for one in self.configurations:
            found, setting = self.comparison_of(one), str(one.setting)
            if one.latency is None:
                rows.append((one.variant, setting, "-", "-", "not measured" if one.failure else "-"))
                continue
            interval = f" ({found.interval:.2f})" if found and found.interval else ""
            speedup = f"{found.speedup:.2f}{interval}" if found else "-"
            typical = one.latency.mean_ms if self.cascade else one.latency.p50_ms
            rows.append((one.variant, setting, f"{typical:.2f} ms", f"{one.images_per_s or 0:.1f}", speedup))
        failed = [one.failure.message for one in self.configurations if one.failure is not None]
        return Brief(
            f"{Path(self.bundle.path).resolve().name} ({self.bundle.profile}, {self.bundle.runtime}) on "
            f"{self.machine.processor}, {len(self.measured)} of {len(rows)} configurations measured"
            f"{''.join(f'; {one.sentence}' for one in self.verdicts)}",
            ("variant", "setting", "mean" if self.cascade else "median", "images/s", "speed-up"),
            rows,
            [*unfinished, *failed, *(one.sentence for one in self.same_latency), *map(str, self.warnings)],
        )


def write_report(report: BenchReport, out: Path) -> None:
    """Write a report, whole or not at all, in place of an earlier one.

    Raises:
        OutputError: the file exists and is no such report, or cannot be written.
    """
    check_report_path(out)
    write(out, to_json(report) + "\n")


def read_report(path: Path) -> BenchReport:
    """
    Raises:
        InputError: not a report, damaged, or of another schema version.
    """
    return load_report(path, "a file that 'ztdeploy bench --out' wrote", BenchReport)


def check_report_path(out: Path) -> None:
    """
    Raises:
        OutputError: see `check_overwritable`.
    """
    check_overwritable(out, "report of 'ztdeploy bench'", lambda: holds_kind(out, KIND))

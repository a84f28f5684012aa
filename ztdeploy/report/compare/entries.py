"""What two reports are compared by: every configuration of a report of either kind, with what tells it from the others.

Reports are files from elsewhere: what arithmetic would stumble over is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from ztdeploy.core.errors import InputError, did_you_mean
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.records import Record
from ztdeploy.core.text import printable
from ztdeploy.target.measure.bench_report import BenchReport, Comparison, ConfigurationReport
from ztdeploy.target.measure.sweep_report import SweepReport, rows


class Setting(Record):
    """What makes two configurations the same; a field that is not asked about is None."""

    model: str | None = None  #: timm's name
    image_size: ImageSize | None = None
    variant: str | None = None
    batch: int | None = None
    threads: int | None = None  #: also None on a runtime that takes no number of threads
    backend: str | None = None  #: of the profile

    def words(self, fields: Collection[str]) -> list[str]:
        """Such as ["batch 1", "2 threads"]: of these fields, but for the variant, those that have a value."""
        plural = "s" if self.threads != 1 else ""
        words = {
            "model": f"{self.model}",
            "image_size": f"{self.image_size} px",
            "batch": f"batch {self.batch}",
            "threads": f"{self.threads} thread{plural}",
            "backend": f"{self.backend}",
        }
        return [text for name, text in words.items() if name in fields and getattr(self, name) is not None]

    def label(self, fields: Collection[str]) -> str:
        """Such as "keep-0.70 at batch 1, 2 threads": only these fields."""
        variant = self.variant if self.variant and "variant" in fields else "all"
        rest = ", ".join(self.words(fields))
        return f"{variant} at {rest}" if rest else variant

    def __str__(self) -> str:
        return self.label(FIELDS)


FIELDS = tuple(Setting.model_fields)
#: What is said of a configuration even where all have it in common.
_ALWAYS = ("variant", "batch", "threads")


@dataclass(frozen=True)
class Entry:
    """One configuration of a report."""

    setting: Setting
    dense: bool
    measured: ConfigurationReport
    comparison: Comparison | None  #: with dense, in the same rounds

    @property
    def round_medians_ms(self) -> tuple[float, ...]:
        return tuple(median(turn.samples_ms) for turn in self.measured.turns)

    @property
    def round_speedups(self) -> tuple[float, ...]:
        return self.comparison.ratios if self.comparison else ()


def parse_match(text: str) -> tuple[str, ...]:
    """Fields as typed, such as "variant,image-size".

    Raises:
        InputError: no such field, or none.
    """
    typed = [part.strip() for part in text.split(",") if part.strip()]
    known = [name.replace("_", "-") for name in FIELDS]
    for name in typed:
        if name not in known:
            raise InputError(f"--match '{name}'", "what a configuration is told apart by", did_you_mean(name, known))
    if not typed:
        raise InputError(f"--match {text!r}", "one field or more", f"choose from: {', '.join(known)}")
    return tuple(name for name in FIELDS if name.replace("_", "-") in typed)


def telling_fields(settings: Collection[Setting]) -> tuple[str, ...]:
    """What these settings are told apart by, and what is always said of one."""
    return tuple(
        name for name in FIELDS if name in _ALWAYS or len({getattr(setting, name) for setting in settings}) > 1
    )


def bench_runs(report: BenchReport | SweepReport) -> tuple[BenchReport, ...]:
    return report.runs if isinstance(report, SweepReport) else (report,)


def entries(report: BenchReport | SweepReport, name: str, match: Sequence[str] = FIELDS) -> dict[Setting, Entry]:
    """Every configuration by what is asked about it, in the report's order; also those without a sample.

    Args:
        name: the report's, for messages.
        match: names of `Setting`'s fields.

    Raises:
        InputError: figures that no measurement gives, or two configurations that `match` does not tell apart.
    """
    check_figures(report, name)
    found: dict[Setting, Entry] = {}
    for entry in _of_sweep(report) if isinstance(report, SweepReport) else _of_bench(report):
        setting = entry.setting.model_copy(update={field: None for field in FIELDS if field not in match})
        if setting in found:
            raise InputError(
                f"{name} holds several configurations that are {setting}",
                "one of each",
                f"match by more than {', '.join(match)}",
            )
        found[setting] = Entry(setting, entry.dense, entry.measured, entry.comparison)
    return found


def check_figures(report: BenchReport | SweepReport, name: str) -> None:
    """
    Raises:
        InputError: samples, ratios or sizes that are not above 0, rounds that occur twice, a variant nobody describes.
    """
    described = {(one.name, one.image_size) for one in report.variants} if isinstance(report, SweepReport) else None
    for run in bench_runs(report):
        for one in run.configurations:
            samples = [sample for turn in one.turns for sample in turn.samples_ms]
            sizes = (one.peak_rss_mb or 0.0, one.engine_mb, one.model_mb)
            sound = all(map(_positive, (one.gmacs, one.batch, *samples)))
            sound &= all(math.isfinite(size) and size >= 0 for size in sizes)
            sound &= all(turn.samples_ms for turn in one.turns)
            sound &= len({turn.round for turn in one.turns}) == len(one.turns)
            sound &= (one.latency is None) == (not one.turns)
            sound &= described is None or (one.variant, run.bundle.image_size) in described
            _check(sound, name, one.variant)
        for comparison in run.comparisons:
            figures = (comparison.speedup, comparison.work_ratio, *comparison.ratios)
            _check(bool(comparison.ratios) and all(map(_positive, figures)), name, comparison.variant)


def _of_bench(report: BenchReport) -> Iterator[Entry]:
    compared = {(one.variant, one.batch, one.threads): one for one in report.comparisons}
    references = {one.reference for one in report.comparisons}
    for one in report.configurations:
        setting = _setting(report, one, report.bundle.image_size)
        dense = one.variant in references or one.keep_ratio == 1
        yield Entry(setting, dense, one, compared.get((one.variant, one.batch, one.threads)))


def _of_sweep(report: SweepReport) -> Iterator[Entry]:
    for row in rows(report):
        setting = _setting(report.runs[0], row.measured, row.facts.image_size)
        yield Entry(setting, row.dense, row.measured, row.comparison)


def _setting(run: BenchReport, one: ConfigurationReport, image_size: ImageSize) -> Setting:
    return Setting(
        model=printable(run.bundle.timm_name),
        image_size=image_size,
        variant=printable(one.variant),
        batch=one.batch,
        threads=one.threads,
        backend=printable(run.bundle.backend),
    )


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _check(sound: bool, name: str, variant: str) -> None:
    if not sound:
        raise InputError(
            f"{name} holds figures of '{variant}' that no measurement gives", "a report as written", "measure again"
        )

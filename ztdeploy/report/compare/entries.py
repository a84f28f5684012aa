"""What two reports are compared by: every configuration of a report of either kind, with what tells it from the others.

Reports are files from elsewhere: what arithmetic would stumble over is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from ztdeploy.core.errors import InputError
from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.records import Record
from ztdeploy.core.setting import Setting
from ztdeploy.core.text import printable
from ztdeploy.target.measure.bench_report import BenchReport, Comparison, ConfigurationReport
from ztdeploy.target.measure.sweep_report import SweepReport, rows


class Identity(Record):
    """What makes two configurations the same; a field that is not asked about is None."""

    model: str | None = None  #: timm's name
    image_size: ImageSize | None = None
    variant: str | None = None
    batch: int | None = None
    threads: int | None = None  #: also None on a runtime that takes no number of threads
    backend: str | None = None  #: of the profile

    def only(self, fields: Collection[str]) -> Identity:
        return self.model_copy(update={name: None for name in FIELDS if name not in fields})

    @property
    def setting(self) -> Setting:
        return Setting(self.image_size, self.batch, self.threads)

    def __str__(self) -> str:
        """Such as "keep-0.70 at batch 1, 2 threads"."""
        rest = ", ".join(words for words in (self.model, str(self.setting), self.backend) if words)
        return f"{self.variant or 'all'} at {rest}" if rest else self.variant or "all"


FIELDS = tuple(Identity.model_fields)
#: What is said of a configuration even where all have it in common.
_ALWAYS = ("variant", "batch", "threads")


@dataclass(frozen=True)
class Compared:
    """One configuration of a report."""

    identity: Identity
    dense: bool
    measured: ConfigurationReport
    comparison: Comparison | None  #: with the baseline model, in the same rounds

    @property
    def round_medians_ms(self) -> tuple[float, ...]:
        return tuple(median(turn.samples_ms) for turn in self.measured.turns)


def telling_fields(identities: Collection[Identity], always: Collection[str] = _ALWAYS) -> tuple[str, ...]:
    """What these are told apart by, and what is always said of one."""
    return tuple(name for name in FIELDS if name in always or len({getattr(one, name) for one in identities}) > 1)


def bench_runs(report: BenchReport | SweepReport) -> tuple[BenchReport, ...]:
    return report.runs if isinstance(report, SweepReport) else (report,)


def entries(report: BenchReport | SweepReport, name: str, match: Sequence[str] = FIELDS) -> dict[Identity, Compared]:
    """Every configuration by what is asked about it, in the report's order; also those without a sample.

    Args:
        name: the report's, for messages.
        match: names of `Identity`'s fields.

    Raises:
        InputError: figures that no measurement gives, or two configurations that `match` does not tell apart.
    """
    check_figures(report, name)
    found: dict[Identity, Compared] = {}
    for size, dense, measured, comparison in _configurations(report):
        bundle = bench_runs(report)[0].bundle
        identity = Identity(
            model=printable(bundle.timm_name),
            image_size=size,
            variant=printable(measured.variant),
            batch=measured.batch,
            threads=measured.threads,
            backend=printable(bundle.backend),
        ).only(match)
        if identity in found:
            raise InputError(
                f"{name} holds several configurations that are {identity}",
                "one of each",
                f"match by more than {', '.join(match)}",
            )
        found[identity] = Compared(identity, dense, measured, comparison)
    return found


def _configurations(
    report: BenchReport | SweepReport,
) -> list[tuple[ImageSize, bool, ConfigurationReport, Comparison | None]]:
    """Of each its image size, whether it is the baseline model, its figures, and how they compare with that."""
    if isinstance(report, SweepReport):
        return [(row.facts.image_size, row.dense, row.measured, row.comparison) for row in rows(report)]
    size, references = report.bundle.image_size, {one.reference for one in report.comparisons}
    return [
        (size, one.variant in references or one.keep_ratio == 1, one, report.comparison_of(one))
        for one in report.configurations
    ]


def check_figures(report: BenchReport | SweepReport, name: str) -> None:
    """
    Raises:
        InputError: samples, ratios or sizes that are not above 0, rounds that occur twice, a variant nobody describes.
    """
    described = {(one.name, one.image_size) for one in report.variants} if isinstance(report, SweepReport) else None
    for run in bench_runs(report):
        for one in run.configurations:
            sound = described is None or (one.variant, run.bundle.image_size) in described
            _check(sound and _is_sound(one), name, one.variant)
        for comparison in run.comparisons:
            figures = (comparison.speedup, comparison.work_ratio, *comparison.ratios)
            _check(bool(comparison.ratios) and all(map(_positive, figures)), name, comparison.variant)


def _is_sound(one: ConfigurationReport) -> bool:
    samples = [sample for turn in one.turns for sample in turn.samples_ms]
    return (
        all(map(_positive, (one.gmacs, one.batch, *samples)))
        and all(math.isfinite(size) and size >= 0 for size in (one.peak_rss_mb or 0.0, one.engine_mb, one.model_mb))
        and all(turn.samples_ms for turn in one.turns)
        and len({turn.round for turn in one.turns}) == len(one.turns)
        and (one.latency is None) == (not one.turns)
    )


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _check(sound: bool, name: str, variant: str) -> None:
    if not sound:
        raise InputError(
            f"{name} holds figures of '{variant}' that no measurement gives", "a report as written", "measure again"
        )

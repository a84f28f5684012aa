"""A sweep as its pages show it: by setting, since figures compare only within one; and its name in words. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from ztdeploy.core.setting import Setting
from ztdeploy.report.kit.numbers import counted
from ztdeploy.report.kit.plots.series import Series
from ztdeploy.target.measure.bench_report import BenchReport
from ztdeploy.target.measure.sweep_report import Row, SweepReport, VariantFacts, rows


@dataclass(frozen=True)
class Panel:
    """Configurations of one setting, the baseline first, then by method and falling keep ratio."""

    setting: Setting
    rows: tuple[Row, ...]

    @property
    def label(self) -> str:
        return str(self.setting)

    @property
    def dense(self) -> Row | None:
        return next((row for row in self.measured if row.dense), None)

    @property
    def pruned(self) -> tuple[Row, ...]:
        """Those that were measured and compared with the baseline."""
        return tuple(row for row in self.measured if not row.dense and row.comparison)

    @property
    def by_mean(self) -> bool:
        """Whether latencies are means: a cascade takes different times for different images."""
        return any(row.cascade for row in self.measured)

    @property
    def measured(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.measured.latency)


@dataclass(frozen=True)
class View:
    """What every part and every plot of a sweep's page is made from."""

    report: SweepReport
    min_agreement: float

    @cached_property
    def panels(self) -> list[Panel]:
        return panels(self.report)

    @cached_property
    def series(self) -> Series:
        """Colours and shapes of the methods of pruned variants, in the report's order."""
        return Series(tuple(dict.fromkeys(one.method for one in self.report.variants if not is_dense(one))))


def panels(report: SweepReport) -> list[Panel]:
    def setting(row: Row) -> Setting:
        return Setting(row.facts.image_size, row.measured.batch, row.measured.threads)

    return [Panel(key, tuple(found)) for key, found in groupby(rows(report), key=setting)]


def is_dense(variant: VariantFacts) -> bool:
    """As `Row.dense` has it."""
    return len(set(variant.tokens_per_block)) == 1


def title(report: SweepReport) -> str:
    """Such as "vit_digits on Raspberry Pi 5"."""
    return f"{model(report)} on {machine(report.runs[0])}" if report.runs else model(report)


def subtitle(report: SweepReport) -> str:
    """Profile, runtime, day, and images."""
    if not report.runs:
        return "Nothing was measured."
    run = report.runs[0]
    answers = f"; answers on {images(report)}" if images(report) else ""
    return f"Profile {run.bundle.profile}, {run.bundle.runtime}, {run.before.at[:10]}{answers}"


def images(report: SweepReport) -> str:
    """What fidelity was found out on, such as "360 images of 'digits' (sha256 1a2b3c4d)"; empty where nothing was."""
    known = [one.fidelity for one in report.variants if one.fidelity]
    return ", ".join(
        dict.fromkeys(
            counted(one.images, "image") + (f" of '{one.data}' (sha256 {one.data_sha256[:8]})" if one.data else "")
            for one in known
        )
    )


def model(report: SweepReport) -> str:
    if report.runs:
        return report.runs[0].bundle.model
    request = report.request
    return request.model.name if request.model else request.bundle.name if request.bundle else "sweep"


def machine(run: BenchReport) -> str:
    """The board's name where it has one, then a GPU's where the engines run there, else the processor's."""
    there = run.machine
    on_gpu = all(one.threads is None for one in run.configurations) and there.gpus
    return there.board or (there.gpus[0].name if on_gpu else there.processor)

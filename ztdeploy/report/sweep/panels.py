"""A sweep by setting: one panel per image size, batch and number of threads, since only within one things compare."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from ztdeploy.core.setting import Setting
from ztdeploy.target.measure.sweep_report import Row, SweepReport, VariantFacts, rows


@dataclass(frozen=True)
class Panel:
    """Configurations of one setting, dense first, then by method and falling keep ratio."""

    setting: Setting
    rows: tuple[Row, ...]

    @property
    def label(self) -> str:
        return str(self.setting)

    @property
    def dense(self) -> Row | None:
        return next((row for row in self.rows if row.dense and row.measured.latency), None)

    @property
    def pruned(self) -> tuple[Row, ...]:
        """Those that were measured and compared with dense."""
        return tuple(row for row in self.rows if not row.dense and row.comparison and row.measured.latency)

    @property
    def measured(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.measured.latency)


def panels(report: SweepReport) -> list[Panel]:
    def setting(row: Row) -> Setting:
        return Setting(row.facts.image_size, row.measured.batch, row.measured.threads)

    return [Panel(key, tuple(found)) for key, found in groupby(rows(report), key=setting)]


def methods(report: SweepReport) -> tuple[str, ...]:
    """Those of pruned variants, in the report's order: what colours and shapes are given to."""
    return tuple(dict.fromkeys(one.method for one in report.variants if not is_dense(one)))


def is_dense(variant: VariantFacts) -> bool:
    """As `Row.dense` has it."""
    return len(set(variant.tokens_per_block)) == 1

"""Reading a report whose kind is not known beforehand."""

from __future__ import annotations

from pathlib import Path

from ztdeploy.target.measure import bench_report, sweep_report
from ztdeploy.target.measure.bench_report import BenchReport
from ztdeploy.target.measure.report_file import kind_of, load_report, no_report, parse_report
from ztdeploy.target.measure.sweep_report import SweepReport

_EXPECTED = "a report of 'ztdeploy bench --out' or 'ztdeploy sweep'"


def read_any_report(path: Path) -> BenchReport | SweepReport:
    """
    Raises:
        InputError: neither a benchmark's nor a sweep's report, damaged, or of another schema version.
    """
    data = load_report(path, _EXPECTED)
    kind = kind_of(data)
    if kind == sweep_report.KIND:
        return parse_report(data, path, "sweep", sweep_report.SCHEMA_VERSION, SweepReport)
    if kind == bench_report.KIND:
        return parse_report(data, path, "report", bench_report.SCHEMA_VERSION, BenchReport)
    raise no_report(data, path, _EXPECTED)

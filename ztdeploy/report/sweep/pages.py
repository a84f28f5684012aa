"""What is written beside a sweep's JSON: a page, a table, Markdown. `write_pages` is the job on one screen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from ztdeploy.core.errors import InputError
from ztdeploy.core.files import write
from ztdeploy.report.compare.entries import check_figures
from ztdeploy.report.sweep.csv_table import csv_text
from ztdeploy.report.sweep.markdown import markdown
from ztdeploy.report.sweep.page import page
from ztdeploy.report.sweep.verdict import LEAST_AGREEMENT, verdicts
from ztdeploy.report.sweep_folder import REPORT
from ztdeploy.target.measure.sweep_report import SweepReport, read_any_report

PAGE, TABLE, MARKDOWN = "report.html", "sweep.csv", "report.md"
#: No time, size or ratio is anywhere near; beyond it, arithmetic overflows.
_LARGEST = 1e15


def write_pages(report: SweepReport, folder: Path, *, least_agreement: float = LEAST_AGREEMENT) -> list[Path]:
    """Write every page, each whole or not at all, in place of earlier ones.

    Args:
        report: of a sweep in whatever state, and from wherever.
        least_agreement: see `verdict`.

    Returns:
        The files' paths, the page first.

    Raises:
        InputError: figures that no measurement gives.
        OutputError: a file cannot be written.
    """
    check_drawable(report)
    found = verdicts(report, least_agreement)
    texts = {
        PAGE: page(report, found, least_agreement),
        TABLE: csv_text(report),
        MARKDOWN: markdown(report, found),
    }
    for name, text in texts.items():
        write(folder / name, text)
    return [folder / name for name in texts]


def read_sweep(path: Path) -> tuple[SweepReport, Path]:
    """A sweep's report and the folder that it lies in.

    Args:
        path: the folder, or the report itself.

    Raises:
        InputError: no report of a sweep, or a damaged one.
    """
    file = path / REPORT if path.is_dir() else path
    report = read_any_report(file)
    if not isinstance(report, SweepReport):
        raise InputError(f"'{file}' is a report of 'ztdeploy bench'", "a sweep's", "give the folder of a sweep")
    return report, file.parent


def check_drawable(report: SweepReport) -> None:
    """
    Raises:
        InputError: figures that no measurement gives.
    """
    check_figures(report, "the sweep")
    if not all(math.isfinite(number) and abs(number) < _LARGEST for number in _numbers(report)):
        raise InputError("the sweep holds figures that no measurement gives", "a report as written", "measure again")


def _numbers(value: object) -> Iterator[float]:
    """Every number in a record, however deep."""
    if isinstance(value, (float, int)):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _numbers(getattr(value, name))
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, dict):
        yield from _numbers(list(value.values()))

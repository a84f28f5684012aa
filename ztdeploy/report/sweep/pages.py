"""What is written beside a sweep's JSON: a page, a table, Markdown. `write_pages` is the job on one screen."""

from __future__ import annotations

import json
from pathlib import Path

from ztdeploy.core.arguments import MIN_AGREEMENT
from ztdeploy.core.errors import InputError
from ztdeploy.core.files import write
from ztdeploy.report.compare.entries import check_figures
from ztdeploy.report.sweep.csv_table import csv_text
from ztdeploy.report.sweep.markdown import markdown
from ztdeploy.report.sweep.page import page
from ztdeploy.report.sweep.panels import View
from ztdeploy.report.sweep.verdict import verdicts
from ztdeploy.report.sweep_folder import REPORT
from ztdeploy.target.measure.sweep_report import SweepReport, read_any_report

PAGE, TABLE, MARKDOWN = "report.html", "sweep.csv", "report.md"
#: No time, size or ratio is anywhere near; beyond it, arithmetic overflows.
_LARGEST = 1e15


def write_pages(report: SweepReport, folder: Path, *, min_agreement: float = MIN_AGREEMENT) -> list[Path]:
    """Write every page, each whole or not at all, in place of earlier ones.

    Args:
        report: of a sweep in whatever state, and from wherever.
        min_agreement: see `ztdeploy.target.verdict`.

    Returns:
        The files' paths, the page first.

    Raises:
        InputError: figures that no measurement gives.
        OutputError: a file cannot be written.
    """
    check_figures(report, "the sweep")
    text = json.dumps(report.model_dump(mode="json"))
    json.loads(text, parse_float=_check_number, parse_int=_check_number, parse_constant=_check_number)
    texts = {
        PAGE: page(View(report, min_agreement)),
        TABLE: csv_text(report),
        MARKDOWN: markdown(report, verdicts(report, min_agreement)),
    }
    for name, content in texts.items():
        write(folder / name, content)
    return [folder / name for name in texts]


def _check_number(text: str) -> None:
    """
    Raises:
        InputError: a number of the report that no measurement gives.
    """
    if not abs(float(text)) < _LARGEST:
        raise InputError("the sweep holds figures that no measurement gives", "a report as written", "measure again")


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

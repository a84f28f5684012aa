"""ztdeploy report"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.options import number_option, path_argument, path_option
from ztdeploy.cli.output import answer, note
from ztdeploy.core import arguments

if TYPE_CHECKING:
    from ztdeploy.cli.results import ReportResult
    from ztdeploy.target.measure.sweep_report import SweepReport


def register(app: typer.Typer) -> None:
    app.command(help="Write the page, table and Markdown of a sweep again, and say what to deploy.")(report)


def report(
    sweep: Annotated[Path, path_argument("Folder of a sweep, or its sweep.json.")],
    out: Annotated[Path | None, path_option("--out", "-o", help="Folder. (default: that of the sweep)")] = None,
    least_agreement: Annotated[
        float,
        number_option(
            arguments.SHARE,
            "--least-agreement",
            help="Least share of images with the baseline's answer, or mean cosine to it, for a recommendation.",
        ),
    ] = 0.95,
) -> None:
    from ztdeploy.cli.sweep import show_verdicts
    from ztdeploy.report.sweep.pages import read_sweep, write_pages

    found, folder = read_sweep(sweep)
    written = write_pages(found, out or folder, least_agreement=least_agreement)
    answer(lambda: _result(found, least_agreement, written), lambda: show_verdicts(found, least_agreement))
    for path in written:
        note(f"wrote {path}")


def _result(sweep: SweepReport, least_agreement: float, written: list[Path]) -> ReportResult:
    from ztdeploy.cli.results import ReportResult
    from ztdeploy.cli.sweep import verdict_lines

    return ReportResult(verdicts=verdict_lines(sweep, least_agreement), written=tuple(map(str, written)))

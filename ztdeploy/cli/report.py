"""ztdeploy report"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.help import OUTPUT, QUALITY, SEARCH
from ztdeploy.cli.options import argument, option, path
from ztdeploy.cli.output import answer, note
from ztdeploy.core.arguments import SHARE

if TYPE_CHECKING:
    from ztdeploy.cli.results import ReportResult
    from ztdeploy.target.measure.sweep_report import SweepReport


def register(app: typer.Typer) -> None:
    app.command(
        help="Write the pages of a sweep again, and say what to deploy.",
        rich_help_panel=SEARCH,
        epilog="""
# Say what to deploy, and write the pages of a sweep again.
ztdeploy report sweep-quickstart
# Recommend only what keeps 99 % of the answers, and write elsewhere.
ztdeploy report sweep-quickstart --least-agreement 0.99 --out strict
""",
    )(report)


def report(
    sweep: Annotated[Path, argument("SWEEP", path, "Folder of a sweep, or its sweep.json.")],
    out: Annotated[Path | None, option("-o, --out DIR", path, OUTPUT, "Folder. [default: that of the sweep]")] = None,
    least_agreement: Annotated[
        float, option("--least-agreement RATIO", SHARE, QUALITY, "Share of answers, or cosine, for a recommendation.")
    ] = 0.95,
) -> None:
    from ztdeploy.cli.sweep import show_verdicts
    from ztdeploy.report.sweep.pages import read_sweep, write_pages

    found, folder = read_sweep(sweep)
    written = write_pages(found, out or folder, least_agreement=least_agreement)
    answer(lambda: _result(found, least_agreement, written), lambda: show_verdicts(found, least_agreement))
    for one in written:
        note(f"wrote {one}")


def _result(sweep: SweepReport, least_agreement: float, written: list[Path]) -> ReportResult:
    from ztdeploy.cli.results import ReportResult
    from ztdeploy.cli.sweep import verdict_lines

    return ReportResult(verdicts=verdict_lines(sweep, least_agreement), written=tuple(map(str, written)))

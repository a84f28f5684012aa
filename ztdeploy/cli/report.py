"""ztdeploy report"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztdeploy.cli.help import OUTPUT, SEARCH
from ztdeploy.cli.options import MinAgreementOption, argument, option, path
from ztdeploy.cli.output import answer, note
from ztdeploy.core.arguments import MIN_AGREEMENT

if TYPE_CHECKING:
    from ztdeploy.cli.results import ReportResult
    from ztdeploy.target.measure.sweep_report import SweepReport


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=SEARCH)(report)


def report(
    sweep: Annotated[Path, argument("SWEEP", path, "Folder of a sweep, or its sweep.json.")],
    out: Annotated[Path | None, option("-o, --out DIR", path, OUTPUT, "Folder. [default: that of the sweep]")] = None,
    min_agreement: MinAgreementOption = MIN_AGREEMENT,
) -> None:
    """Write the pages of a sweep again, and say what to deploy.

    Examples:
        # Say what to deploy, and write the pages of a sweep again.
        ztdeploy report sweep-quickstart
        # Recommend only what keeps 99 % of the answers, and write elsewhere.
        ztdeploy report sweep-quickstart --min-agreement 0.99 --out strict
    """
    from ztdeploy.cli.sweep import show_verdicts
    from ztdeploy.report.sweep.pages import read_sweep, write_pages

    found, folder = read_sweep(sweep)
    written = write_pages(found, out or folder, min_agreement=min_agreement)
    answer(lambda: _result(found, min_agreement, written), lambda: show_verdicts(found, min_agreement))
    for one in written:
        note(f"wrote {one}")


def _result(sweep: SweepReport, min_agreement: float, written: list[Path]) -> ReportResult:
    from ztdeploy.cli.results import ReportResult
    from ztdeploy.cli.sweep import verdict_lines

    return ReportResult(verdicts=verdict_lines(sweep, min_agreement), written=tuple(map(str, written)))

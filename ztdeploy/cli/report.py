"""ztdeploy report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ztdeploy.cli.options import number_option, path_argument, path_option
from ztdeploy.cli.output import note
from ztdeploy.core import arguments


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
    show_verdicts(found, least_agreement)
    for path in written:
        note(f"wrote {path}")

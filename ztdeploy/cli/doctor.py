"""ztdeploy doctor"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from ztdeploy.cli.help import LOOK_UP
from ztdeploy.cli.output import answer, table

if TYPE_CHECKING:
    from ztdeploy.jobs.doctor import Findings


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=LOOK_UP)(doctor)


def doctor() -> None:
    """Say what this machine can do, and what to install.

    Examples:
        ztdeploy doctor
        ztdeploy doctor --json
    """
    from ztdeploy.jobs.doctor import examine

    found = examine()
    answer(found, lambda: _show(found))


def _show(found: Findings) -> None:
    rows = [(one.subject, one.state, one.found, one.remedy) for one in found.findings]
    table("This machine", [("what", "left"), ("state", "left"), ("found", "left"), ("to do", "left")], rows)

"""ztdeploy doctor"""

from __future__ import annotations

from dataclasses import asdict

import typer

from ztdeploy.cli.output import JsonFlag, print_json, table


def register(app: typer.Typer) -> None:
    app.command(help="What this machine can do, and what to install for the rest.")(doctor)


def doctor(json: JsonFlag = False) -> None:
    from ztdeploy.jobs.doctor import examine

    findings = examine()
    if json:
        print_json([asdict(finding) for finding in findings])
        return
    rows = [(finding.subject, finding.state, finding.found, finding.remedy) for finding in findings]
    table("This machine", [("what", "left"), ("state", "left"), ("found", "left"), ("to do", "left")], rows)

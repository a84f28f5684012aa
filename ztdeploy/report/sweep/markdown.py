"""A sweep as Markdown, for a pull request or a wiki. Pure; names come from files, so nothing of them is markup."""

from __future__ import annotations

from collections.abc import Sequence

from ztdeploy.core.text import markdown_text
from ztdeploy.report.kit.sheet import markdown_table
from ztdeploy.report.sweep.columns import chosen
from ztdeploy.report.sweep.panels import panels, subtitle, title
from ztdeploy.report.sweep.trust import all_failures, limits
from ztdeploy.report.sweep.verdict import PanelVerdict
from ztdeploy.target.measure.sweep_report import SweepReport

_HEADS = ("variant", "method", "keep", "p50 ms", "p90 ms", "images/s", "speed-up", "95 % interval", "less work")


def markdown(report: SweepReport, verdicts: Sequence[PanelVerdict]) -> str:
    """The verdict first, then what limits trust, a table per setting, and failures."""
    lines = [f"## {markdown_text(title(report))}", "", markdown_text(subtitle(report)), ""]
    for verdict in verdicts:
        where = f"{verdict.panel.label}: " if len(verdicts) > 1 else ""
        lines += [
            f"**{markdown_text(where + verdict.verdict.sentence)}** {markdown_text(' '.join(verdict.sentences))}",
            "",
        ]
    lines += _listed("How far to trust it:", limits(report))
    for panel in panels(report):
        heads = [*_HEADS, *(["mean ms", "worst ms"] if panel.by_mean else [])]
        lines += [f"### {panel.label}", "", *markdown_table(chosen(panel.rows, *heads), panel.rows), ""]
    return "\n".join(lines + _listed("Failures:", [one.message for one in all_failures(report)]))


def _listed(heading: str, found: Sequence[str]) -> list[str]:
    return [heading, "", *(f"- {markdown_text(line)}" for line in found), ""] if found else []

"""A sweep as Markdown, for a pull request or a wiki. Pure; names come from files, so nothing of them is markup."""

from __future__ import annotations

from collections.abc import Sequence

from ztdeploy.core.text import markdown_text
from ztdeploy.report.kit.figures import decimals_for, fixed, short, span, times
from ztdeploy.report.sweep.costs import fidelity_figures, fidelity_headings
from ztdeploy.report.sweep.identity import subtitle, title
from ztdeploy.report.sweep.panels import Panel, panels
from ztdeploy.report.sweep.trust import all_failures, limits
from ztdeploy.report.sweep.verdict import Verdict
from ztdeploy.target.measure.sweep_report import Row, SweepReport

_COLUMNS = ("variant", "method", "keep", "p50, ms", "p90, ms", "images/s", "speed-up", "95 % interval", "less work")


def markdown(report: SweepReport, verdicts: Sequence[Verdict]) -> str:
    """The verdict first, then what limits trust, a table per setting, and failures."""
    lines = [f"## {markdown_text(title(report))}", "", markdown_text(subtitle(report)), ""]
    for verdict in verdicts:
        where = f"{verdict.panel.label}: " if len(verdicts) > 1 else ""
        lines += [f"**{markdown_text(where + verdict.headline)}** {markdown_text(' '.join(verdict.sentences))}", ""]
    cautions = limits(report)
    if cautions:
        lines += ["How far to trust it:", "", *(f"- {markdown_text(line)}" for line in cautions), ""]
    for panel in panels(report):
        lines += [*_table(panel), ""]
    failures = all_failures(report)
    if failures:
        lines += ["Failures:", "", *(f"- {markdown_text(one.message)}" for one in failures), ""]
    return "\n".join(lines)


def _table(panel: Panel) -> list[str]:
    known = fidelity_headings(panel.rows)
    columns = (*_COLUMNS, *known)
    rule = ["---", "---", *["---:"] * (len(columns) - 2)]
    latencies = [row.measured.latency for row in panel.measured]
    decimals = decimals_for([one.p50_ms for one in latencies if one])
    lines = [f"### {panel.label}", "", f"| {' | '.join(columns)} |", f"| {' | '.join(rule)} |"]
    return lines + [f"| {' | '.join(_cells(row, decimals, known))} |" for row in panel.rows]


def _cells(row: Row, decimals: int, known: Sequence[str]) -> list[str]:
    one, found = row.measured, row.comparison
    return [
        markdown_text(row.facts.name),
        "dense" if row.dense else markdown_text(row.facts.method),
        "-" if row.facts.keep_ratio is None else f"{row.facts.keep_ratio:.2f}",
        fixed(one.latency.p50_ms if one.latency else None, decimals),
        fixed(one.latency.p90_ms if one.latency else None, decimals),
        short(one.images_per_s),
        times(found.speedup, found.interval) if found else "",
        span(found.interval) if found else "",
        times(found.work_ratio) if found else "",
        *(text for text, _ in fidelity_figures(row.facts.fidelity, known)),
    ]

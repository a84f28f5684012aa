"""The plots and the table of each setting."""

from __future__ import annotations

from pkgutil import resolve_name

from ztdeploy.report.kit.figure import folded, legend, plots, section
from ztdeploy.report.kit.markup import Markup, element
from ztdeploy.report.kit.numbers import counted
from ztdeploy.report.kit.sheet import table
from ztdeploy.report.sweep.columns import columns, details
from ztdeploy.report.sweep.panels import Panel, View
from ztdeploy.report.sweep.plots import PLOTS
from ztdeploy.report.sweep.verdict import verdict_of


def settings(view: View) -> list[Markup | None]:
    """A section per setting, and how many configurations were asked for and have no place in any table."""
    missing = view.report.planned - sum(len(panel.rows) for panel in view.panels)
    text = f"{counted(missing, 'configuration')} more were asked for and not measured."
    return [
        *(_setting(view, panel) for panel in view.panels),
        element("p", text, class_="quiet") if missing > 0 else None,
    ]


def _setting(view: View, panel: Panel) -> Markup:
    used = list(dict.fromkeys(row.facts.method for row in panel.pruned))
    keys = [(view.series.key(None), "baseline"), *((view.series.key(name), name) for name in used)]
    verdict = verdict_of(view.report, panel, view.min_agreement) if panel.measured else None
    choice = verdict.choice if verdict is not None and verdict.verdict.decision == "deploy" else None
    chosen = next((position for position, row in enumerate(panel.rows) if row is choice), None)
    return section(
        f"At {panel.label}",
        legend(keys) if used else None,
        plots(*(resolve_name(place)(panel, view) for place in PLOTS.values())),
        table(f"Every configuration at {panel.label}", columns(panel.rows), panel.rows, chosen=chosen),
        folded("Tail latency, memory, cold start", table(f"Details at {panel.label}", details(), panel.rows)),
    )

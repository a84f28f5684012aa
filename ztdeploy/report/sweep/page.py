"""The HTML page of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from ztdeploy.report.kit.document import document
from ztdeploy.report.kit.markup import element
from ztdeploy.report.sweep.identity import title
from ztdeploy.report.sweep.panels import panels
from ztdeploy.report.sweep.parts.comparison import setting_section, unmeasured
from ztdeploy.report.sweep.parts.evidence import failures_section, machine_section, notes_section, warnings_section
from ztdeploy.report.sweep.parts.inside import staircase_section, time_section, tokens_section
from ztdeploy.report.sweep.parts.summary import summary
from ztdeploy.report.sweep.verdict import Verdict
from ztdeploy.target.measure.sweep_report import SweepReport
from ztdeploy.version import __version__


def page(report: SweepReport, verdicts: Sequence[Verdict], least_agreement: float) -> str:
    """The whole document, which is well-formed XML as well."""
    found = panels(report)
    by_setting = {verdict.panel.setting: verdict for verdict in verdicts}
    main = element(
        "main",
        summary(report, verdicts),
        [setting_section(report, one, by_setting.get(one.setting), least_agreement) for one in found],
        unmeasured(report, found),
        tokens_section(report),
        time_section(report),
        staircase_section(report),
        failures_section(report),
        warnings_section(report),
        machine_section(report),
        notes_section(),
        element("footer", f"Written by ztdeploy {__version__} from sweep.json, which holds every single sample."),
    )
    return document(title(report), main)

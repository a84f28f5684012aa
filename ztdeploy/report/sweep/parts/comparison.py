"""The plots and the table of each setting."""

from __future__ import annotations

from collections.abc import Sequence

from ztdeploy.report.kit.figure import figure, legend, plots
from ztdeploy.report.kit.figures import counted, short, span, times
from ztdeploy.report.kit.markup import Markup, element, fragment
from ztdeploy.report.kit.plots.series import Series
from ztdeploy.report.kit.sheet import Cell, column, number, sheet
from ztdeploy.report.sweep.costs import fidelity_figures, fidelity_headings
from ztdeploy.report.sweep.panels import Panel, methods
from ztdeploy.report.sweep.plots.fidelity import pareto_plot
from ztdeploy.report.sweep.plots.ratios import ideal_plot, latency_plot, speedup_plot
from ztdeploy.report.sweep.plots.rounds import rounds_plot
from ztdeploy.report.sweep.verdict import Verdict
from ztdeploy.target.measure.sweep_report import Row, SweepReport

_TONES = {"faster": "good", "slower": "bad"}


def setting_section(report: SweepReport, panel: Panel, verdict: Verdict | None, least_agreement: float) -> Markup:
    """All configurations at one image size, batch and number of threads."""
    series = Series(methods(report))
    used = list(dict.fromkeys(row.facts.method for row in panel.pruned))
    keys = [(series.key(None), "dense"), *((series.key(name), name) for name in used)]
    choice = verdict.choice if verdict is not None and verdict.decision == "deploy" else None
    return element(
        "section",
        element("h2", f"At {panel.label}"),
        legend(keys) if used else None,
        plots(
            figure("Latency", "Median of all calls; whiskers hold the middle half.", latency_plot(panel, series)),
            figure("Speed-up", "Whiskers: 95 % interval over rounds.", speedup_plot(panel, series)),
            figure(
                "What less work should give, and does",
                "On the dashed line, time would follow GMACs. Numbers: keep ratios.",
                ideal_plot(panel, series),
            ),
            *_fidelity(panel, series, least_agreement),
            figure("Noise", "A dot per round; bar: 95 % interval; stroke: median.", rounds_plot(panel, series)),
        ),
        _table(panel, choice),
    )


def _fidelity(panel: Panel, series: Series, least_agreement: float) -> list[Markup | None]:
    if not any(row.facts.fidelity for row in panel.pruned):
        return [_no_fidelity()] if panel.pruned else []
    return [
        figure(
            "Latency against answers lost",
            "Lower left is better; the line is what nothing else beats on both.",
            pareto_plot(panel, series, "disagreement", least_agreement),
        ),
        figure(
            "Latency against divergence",
            "Of outputs from dense's, which moves before answers change.",
            pareto_plot(panel, series, "kl", least_agreement),
        ),
        figure(
            "Latency against accuracy",
            "Top-1 on labelled images, less than dense's; left of 0 it is more.",
            pareto_plot(panel, series, "top-1", least_agreement),
        ),
        figure(
            "Latency against cosine",
            "Of embeddings or features to dense's, of the same images.",
            pareto_plot(panel, series, "cosine", least_agreement),
        ),
    ]


def _no_fidelity() -> Markup:
    """What would stand here, and how to get it."""
    caption = element("figcaption", "Latency against fidelity", element("span", "What pruning costs in answers."))
    text = "Not known: nothing was evaluated. '--data' compares answers with dense's on images of your own."
    return element("figure", caption, element("div", element("p", text), class_="blank"))


def _table(panel: Panel, choice: Row | None) -> Markup | None:
    rows = panel.rows
    latencies = [row.measured.latency for row in rows]
    times_ms = [
        column([getattr(one, name) if one else None for one in latencies])
        for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms")
    ]
    times_ms.append(column([one.mad_ms if one else None for one in latencies], digits=2))
    heads = ["variant", "method", "keep", "p50 ms", "p90", "p95", "p99", "MAD", "images/s"]
    known = fidelity_headings(rows)
    heads += ["speed-up", "95 % interval", *known, "less work", "GMACs"]
    heads += ["peak MB", "engine MB", "cold start ms", "calls"]
    cells = []
    for position, row in enumerate(rows):
        figures = [found[position] for found in times_ms]
        cells.append([*_names(row), *figures, *_speed(row), *_fidelity_cells(row, known), *_sizes(row)])
    chosen = next((position for position, row in enumerate(rows) if row is choice), None)
    return sheet(f"Every configuration at {panel.label}", heads, cells, chosen=chosen)


def _names(row: Row) -> list[Cell]:
    ratio = row.facts.keep_ratio
    return [
        Cell(row.facts.name, heading=True),
        Cell("dense" if row.dense else row.facts.method),
        number("-" if ratio is None else f"{ratio:.2f}", ratio),
    ]


def _speed(row: Row) -> list[Cell]:
    one, found = row.measured, row.comparison
    tone = _TONES.get(found.outcome, "doubt") if found else ""
    return [
        number(short(one.images_per_s, 4), one.images_per_s),
        number(times(found.speedup, found.interval) if found else "", found.speedup if found else None, tone),
        number(span(found.interval) if found else "", None),
    ]


def _sizes(row: Row) -> list[Cell]:
    one, found = row.measured, row.comparison
    cold = one.cold_start.total_ms if one.cold_start else None
    return [
        number(times(found.work_ratio) if found else "", found.work_ratio if found else None),
        number(short(row.facts.gmacs), row.facts.gmacs),
        number(short(one.peak_rss_mb), one.peak_rss_mb),
        number(short(one.engine_mb), one.engine_mb),
        number("-" if cold is None else f"{cold:.0f}", cold),
        number(str(one.latency.samples) if one.latency else _failed(row), one.latency.samples if one.latency else None),
    ]


def _failed(row: Row) -> str:
    return "failed" if row.measured.failure else "-"


def _fidelity_cells(row: Row, headings: Sequence[str]) -> list[Cell]:
    return [number(text, value) for text, value in fidelity_figures(row.facts.fidelity, headings)]


def unmeasured(report: SweepReport, found: Sequence[Panel]) -> Markup:
    """Configurations that were asked for and have no place in any table."""
    missing = report.planned - sum(len(panel.rows) for panel in found)
    if missing <= 0:
        return fragment()
    return element("p", f"{counted(missing, 'configuration')} more were asked for and not measured.", class_="quiet")

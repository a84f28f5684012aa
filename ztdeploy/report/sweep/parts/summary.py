"""The top of the page: what was measured, the verdict, how far to trust it, key figures."""

from __future__ import annotations

from collections.abc import Sequence

from ztdeploy.report.kit.figure import trust, verdict
from ztdeploy.report.kit.markup import Markup, element, fragment
from ztdeploy.report.kit.numbers import counted, short, span, times
from ztdeploy.report.sweep.panels import Panel, View, machine, model, subtitle, title
from ztdeploy.report.sweep.trust import limits
from ztdeploy.report.sweep.verdict import candidates, compared, verdicts


def summary(view: View) -> Markup:
    report, found = view.report, verdicts(view.report, view.min_agreement)
    header = element("header", element("h1", title(report)), element("p", subtitle(report), class_="lead"))
    boxes = [
        verdict(one.verdict.decision, one.verdict.sentence, one.sentences, one.verdict.setting or None) for one in found
    ]
    fine = "Nothing was seen on the machine that speaks against these figures."
    return fragment(header, boxes, trust(limits(report), fine), _cards(view))


def _cards(view: View) -> Markup | None:
    report = view.report
    if not report.runs:
        return None
    run, found = report.runs[0], view.panels
    there = run.machine
    cores = counted(len(there.usable_cores), "core")
    day, clock = run.before.at[:10], run.before.at[11:16]
    cards = [
        _card("Machine", machine(run), f"{there.architecture}, {cores} in use", words=True),
        _card("Model", model(report), f"weights: {run.bundle.weights}", words=True),
        *_figures(found),
        _card("Measured", day, f"at {clock} UTC, {counted(len(report.runs), 'run')}", words=True),
        _card("Runtime", run.bundle.runtime, _versions(there.versions), words=True),
    ]
    return element("dl", cards, class_="cards")


def _figures(found: Sequence[Panel]) -> list[Markup]:
    """Of the first setting that has a figure of the baseline, and the best of all settings."""
    several, cards = len(found) > 1, []
    dense = next(((panel, panel.dense) for panel in found if panel.dense), None)
    if dense is not None and dense[1].measured.latency is not None:
        latency = dense[1].measured.latency
        where = f", {dense[0].label}" if several else ""
        cards.append(_card("Baseline, p50", f"{short(latency.p50_ms)} ms", f"MAD {short(latency.mad_ms, 2)} ms{where}"))
    pruned = [(panel, row) for panel in found for row in candidates(panel)]
    if pruned:
        panel, row = max(pruned, key=lambda pair: compared(pair[1]).speedup)
        best = compared(row)
        where = f", {panel.label}" if several else ""
        more = f"{row.facts.name}, {span(best.interval)}{where}" if best.interval else f"{row.facts.name}{where}"
        cards.append(_card("Best speed-up", times(best.speedup, best.interval), more))
    return cards


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if name in ("ztdeploy", "numpy"))


def _card(name: str, value: str, more: str, *, words: bool = False) -> Markup:
    kind = "words" if words else None
    parts = (element("dt", name), element("dd", value, class_=kind), element("dd", more, class_="more"))
    return element("div", parts, class_="card")

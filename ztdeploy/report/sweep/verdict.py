"""What to deploy at each setting of a sweep: the rule's sentence, and what stands beside it on the page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ztdeploy.core.arguments import MIN_AGREEMENT
from ztdeploy.core.verdict import Verdict
from ztdeploy.report.kit.numbers import cosine, counted, decimals_for, fixed, map_words, percent, short, span, times
from ztdeploy.report.sweep.panels import Panel, panels
from ztdeploy.target.measure.bench_report import Comparison
from ztdeploy.target.measure.sweep_report import Row, SweepReport
from ztdeploy.target.verdict import CONTROLS, JudgedVariant, conclude, quality_of_fidelity


@dataclass(frozen=True)
class PanelVerdict:
    """Of one setting."""

    panel: Panel
    verdict: Verdict
    sentences: tuple[str, ...]  #: what it saves, and what choosing costs
    choice: Row | None = None  #: what the verdict is about: what to deploy, or else what might be


def verdicts(report: SweepReport, min_agreement: float = MIN_AGREEMENT) -> list[PanelVerdict]:
    """One per setting that anything was measured at."""
    return [verdict_of(report, panel, min_agreement) for panel in panels(report) if panel.measured]


def verdict_of(report: SweepReport, panel: Panel, min_agreement: float) -> PanelVerdict:
    """See the rule of `ztdeploy.target.verdict`."""
    choices = candidates(panel)
    found = conclude(
        [_candidate(row, panel.dense) for row in choices],
        timed=True,
        min_agreement=min_agreement,
        evaluate="sweep again with --data DIR",
        random_weights=report.request.model is not None and report.request.model.weights == "random",
    )
    choice = next((row for row in choices if row.facts.name == found.variant), None)
    if not choices:
        lines = [_nothing(panel)]
    else:
        row = choice or max(choices, key=lambda one: compared(one).speedup)
        lines = [_saves(panel, row), *_fidelity(row), *_overhead(panel, row)]
    setting = panel.label if sum(1 for one in panels(report) if one.measured) > 1 else ""
    return PanelVerdict(panel, found.model_copy(update={"setting": setting}), tuple(lines), choice)


def candidates(panel: Panel) -> list[Row]:
    """What may be deployed: not the controls."""
    return [row for row in panel.pruned if row.facts.method not in CONTROLS]


def compared(row: Row) -> Comparison:
    """A row's comparison with the baseline, which all of a panel's pruned rows have."""
    assert row.comparison is not None
    return row.comparison


def _candidate(row: Row, dense: Row | None) -> JudgedVariant:
    found, own, worst = compared(row), row.measured.latency, ""
    if row.cascade and own and dense and dense.measured.latency:
        worst = f"{own.max_ms:.3g} ms, {own.max_ms / dense.measured.latency.p50_ms:.2f} times the baseline's median"
    return JudgedVariant(row.facts.name, found.work_ratio, found, quality_of_fidelity(row.facts.fidelity), worst)


def _nothing(panel: Panel) -> str:
    names = ", ".join(row.facts.name for row in panel.measured)
    return f"Measured: {names}. A comparison takes the baseline and a pruned variant of a method that looks at tokens."


def _saves(panel: Panel, row: Row) -> str:
    ideal = times(compared(row).work_ratio)
    return (
        f"{row.facts.name} takes {_latencies(panel, row)}, {_faster(row)}, for {ideal} less work{_gmacs(panel, row)}."
    )


def _gmacs(panel: Panel, row: Row) -> str:
    return f" ({short(row.facts.gmacs)} instead of {short(panel.dense.facts.gmacs)} GMACs)" if panel.dense else ""


def _latencies(panel: Panel, row: Row) -> str:
    """Such as "12.3 ms a call instead of 20.1 ms"."""
    own = row.typical_ms(mean=row.cascade)
    what = " on average" if row.cascade else ""
    if not panel.dense:
        return f"{short(own)} ms a call{what}"
    dense = panel.dense.typical_ms(mean=row.cascade)
    decimals = decimals_for([own, dense])
    return f"{fixed(own, decimals)} ms a call{what} instead of {fixed(dense, decimals)} ms"


def _faster(row: Row) -> str:
    """Such as "1.55x (1.52 to 1.58)"."""
    found = compared(row)
    return (
        f"{times(found.speedup, found.interval)} ({span(found.interval)})" if found.interval else times(found.speedup)
    )


def _fidelity(row: Row) -> Sequence[str]:
    """What the verdict's sentence leaves out."""
    found = row.facts.fidelity
    if found is None:
        return []
    if found.error is not None:
        return [f"Its maps are near to the baseline's: {map_words(found)}, on {counted(found.images, 'image')}."]
    if found.agreement is None:
        return [f"Its mean cosine to the baseline is {cosine(found.cosine)}, on {counted(found.images, 'image')}."]
    top1 = ""
    if found.top1 is not None and found.dense_top1 is not None:
        top1 = f"; top-1 {percent(found.top1)} instead of {percent(found.dense_top1)}"
    same = f"It gives the baseline's answer on {percent(found.agreement)} of {counted(found.images, 'image')}"
    return [f"{same}, KL {short(found.kl)} nats{top1}."]


def _overhead(panel: Panel, row: Row) -> list[str]:
    """How fast dropping the same tokens would be, if choosing them were free."""
    free = [
        other
        for other in panel.pruned
        if other.facts.method == "slice" and other.facts.tokens_per_block == row.facts.tokens_per_block
    ]
    return [f"If choosing tokens were free, it would be {_faster(other)}: that is 'slice'." for other in free[:1]]

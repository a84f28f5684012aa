"""What to deploy, in words. Pure.

The rules, for each setting by itself:

1. A variant **pays** where the interval of its speed-up lies above 1.
2. `slice` and `random` drop tokens without looking at them: they show what choosing costs, and are never recommended.
3. Where fidelity is known: deploy the fastest variant that pays and whose answers agree with the baseline's on at
   least `least_agreement` of the images; of embeddings and features, whose mean cosine to the baseline's is at least
   that. Where none does: deploy the baseline.
4. Where it is not known: recommend nothing. Name the fastest and the mildest ratio that pay; fidelity decides.
5. Where nothing pays: pruning does not pay here, if every interval ends at 1 or below; otherwise no gain was shown.

"Fastest" is the highest speed-up, which is taken round by round, and not the lowest latency, which machine noise moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ztdeploy.report.kit.numbers import cosine, counted, decimals_for, fixed, percent, short, span, times
from ztdeploy.report.sweep.panels import Panel, panels
from ztdeploy.target.measure.bench_report import Comparison, Outcome
from ztdeploy.target.measure.sweep_report import Row, SweepReport

#: Share of images with the baseline's answer, from which on a variant may be recommended.
LEAST_AGREEMENT = 0.95
CONTROLS = ("slice", "random")
Decision = Literal["deploy", "dense", "open", "no gain", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """Of one setting."""

    panel: Panel
    decision: Decision
    headline: str  #: a sentence
    sentences: tuple[str, ...]  #: what it saves, what it costs
    choice: Row | None = None  #: what to deploy, or else the fastest that pays


def verdicts(report: SweepReport, least_agreement: float = LEAST_AGREEMENT) -> list[Verdict]:
    """One per setting that anything was measured at."""
    found = [verdict_of(panel, least_agreement) for panel in panels(report) if panel.measured]
    if report.request.model is None or report.request.model.weights != "random":
        return found
    random = "The weights are random: these are figures of speed alone."
    return [Verdict(one.panel, one.decision, one.headline, (*one.sentences, random), one.choice) for one in found]


def verdict_of(panel: Panel, least_agreement: float) -> Verdict:
    choices = candidates(panel)
    if not choices:
        return Verdict(panel, "unknown", "There is nothing to compare.", (_nothing(panel),))
    paying = [row for row in choices if compared(row).outcome == "faster"]
    if not paying:
        return _no_gain(panel, choices)
    if any(row.facts.fidelity for row in paying):
        return _by_fidelity(panel, paying, least_agreement)
    return _open(panel, paying)


def candidates(panel: Panel) -> list[Row]:
    """What may be deployed: not the controls."""
    return [row for row in panel.pruned if row.facts.method not in CONTROLS]


def compared(row: Row) -> Comparison:
    """A row's comparison with the baseline, which all of a panel's pruned rows have."""
    assert row.comparison is not None
    return row.comparison


def _by_fidelity(panel: Panel, paying: Sequence[Row], least: float) -> Verdict:
    known = [(row, row.facts.fidelity) for row in paying if row.facts.fidelity]
    good = [row for row, fidelity in known if fidelity.likeness >= least]
    unknown = len(paying) - len(known)
    left_out = [f"Fidelity of {unknown} more that pay is not known."] if unknown else []
    if not good:
        nearest = max(known, key=lambda pair: pair[1].likeness)[0]
        enough = f"matched its answers on {percent(least)} of the images"
        if nearest.facts.fidelity is not None and nearest.facts.fidelity.agreement is None:
            enough = f"came to a mean cosine of {short(least)} to its outputs"
        headline = f"Deploy the baseline. No faster variant {enough}."
        lines = (f"Nearest is {nearest.facts.name}.", *_costs(panel, nearest), *left_out)
        return Verdict(panel, "dense", headline, lines)
    choice = max(good, key=lambda row: compared(row).speedup)
    fidelity = choice.facts.fidelity
    assert fidelity is not None
    like = f"its answer on {percent(fidelity.agreement)} of"
    if fidelity.agreement is None:
        like = f"a mean cosine of {cosine(fidelity.cosine)} to it on"
    images = counted(fidelity.images, "image")
    headline = f"Deploy {choice.facts.name}: {_faster(choice)} as fast as the baseline, with {like} {images}."
    return Verdict(panel, "deploy", headline, (_saves(panel, choice), *_costs(panel, choice), *left_out), choice)


def _open(panel: Panel, paying: Sequence[Row]) -> Verdict:
    fastest = max(paying, key=lambda row: compared(row).speedup)
    mildest = max(paying, key=lambda row: (row.facts.keep_ratio or 0, compared(row).speedup))
    headline = f"Pruning pays here: {fastest.facts.name} is {_faster(fastest)} as fast as the baseline."
    lines = [_saves(panel, fastest)]
    if mildest is not fastest:
        lines.append(
            f"The mildest that pays is {mildest.facts.name}: {_faster(mildest)}, {_latencies(panel, mildest)}."
        )
    lines += [
        *_overhead(panel, fastest),
        "Fidelity is not known, so nothing is recommended yet: sweep again with --data.",
    ]
    return Verdict(panel, "open", headline, tuple(lines), fastest)


def _no_gain(panel: Panel, choices: Sequence[Row]) -> Verdict:
    outcomes = [compared(row).outcome for row in choices]
    if set(outcomes) == {"slower"}:
        headline = "Pruning does not pay here."
    elif set(outcomes) == {"too few rounds"}:
        headline = "Too few rounds to say whether pruning pays here."
    else:
        headline = "No gain from pruning was shown here."
    words: dict[Outcome, str] = {
        "slower": "no faster than the baseline over the whole interval",
        "no difference shown": "not told apart from the baseline",
        "too few rounds": "measured in too few rounds for an interval",
    }
    counts = [f"{outcomes.count(outcome)} {text}" for outcome, text in words.items() if outcome in outcomes]
    best = max(choices, key=lambda row: compared(row).speedup)
    lines = (
        f"Of {counted(len(choices), 'variant')}: {'; '.join(counts)}.",
        f"The best is {best.facts.name}: {_faster(best)}, {_latencies(panel, best)}.",
        *_overhead(panel, best),
    )
    return Verdict(panel, "unknown" if set(outcomes) == {"too few rounds"} else "no gain", headline, lines)


def _nothing(panel: Panel) -> str:
    names = ", ".join(row.facts.name for row in panel.measured)
    return f"Measured: {names}. A comparison takes the baseline and a pruned variant of a method that looks at tokens."


def _saves(panel: Panel, row: Row) -> str:
    ideal = compared(row).work_ratio
    return f"{row.facts.name} takes {_latencies(panel, row)}, for {times(ideal)} less work{_gmacs(panel, row)}."


def _gmacs(panel: Panel, row: Row) -> str:
    return f" ({short(row.facts.gmacs)} instead of {short(panel.dense.facts.gmacs)} GMACs)" if panel.dense else ""


def _latencies(panel: Panel, row: Row) -> str:
    """Such as "12.3 ms a call instead of 20.1 ms"."""
    own, dense = row.measured.latency, panel.dense and panel.dense.measured.latency
    assert own is not None
    if not dense:
        return f"{short(own.p50_ms)} ms a call"
    decimals = decimals_for([own.p50_ms, dense.p50_ms])
    less = round(dense.p50_ms, decimals) - round(own.p50_ms, decimals)  # as the two beside it read
    word = "less" if less > 0 else "more"
    own_ms, dense_ms, by_ms = (fixed(one, decimals) for one in (own.p50_ms, dense.p50_ms, abs(less)))
    return f"{own_ms} ms a call instead of {dense_ms} ms" + (f", {by_ms} ms {word}" if less else "")


def _faster(row: Row) -> str:
    """Such as "1.55x (1.52 to 1.58)"."""
    found = compared(row)
    return (
        f"{times(found.speedup, found.interval)} ({span(found.interval)})" if found.interval else times(found.speedup)
    )


def _costs(panel: Panel, row: Row) -> list[str]:
    """What it costs in fidelity, and in choosing."""
    fidelity = row.facts.fidelity
    assert fidelity is not None
    if fidelity.agreement is None:
        text = f"Its mean cosine to the baseline is {cosine(fidelity.cosine)}, on {counted(fidelity.images, 'image')}"
        return [f"{text}.", *_overhead(panel, row)]
    text = (
        f"It gives the baseline's answer on {percent(fidelity.agreement)} of the images, KL {short(fidelity.kl)} nats"
    )
    if fidelity.top1 is not None and fidelity.dense_top1 is not None:
        text += f"; top-1 {percent(fidelity.top1)} instead of {percent(fidelity.dense_top1)}"
        if fidelity.change is not None:
            low, high = fidelity.change
            text += f" ({100 * low:+.1f} to {100 * high:+.1f} points)"
    return [f"{text}.", *_overhead(panel, row)]


def _overhead(panel: Panel, row: Row) -> list[str]:
    """How fast dropping the same tokens would be, if choosing them were free."""
    free = [
        other
        for other in panel.pruned
        if other.facts.method == "slice" and other.facts.tokens_per_block == row.facts.tokens_per_block
    ]
    return [f"If choosing tokens were free, it would be {_faster(other)}: that is 'slice'." for other in free[:1]]

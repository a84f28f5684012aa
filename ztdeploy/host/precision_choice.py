"""Choose among engines of different precision: the fastest whose answers change little. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ztdeploy.core.manifest import GateLimits, GateRow, TimingRecord
from ztdeploy.core.profile import Precision
from ztdeploy.target.measure.statistics import Interval, bootstrap_interval

#: How much can go wrong with rounding, by precision. int8 also depends on the other images of a call.
RISK: dict[Precision, int] = {"fp32": 0, "bf16": 1, "fp16": 1, "int8": 2}
#: Limits where the user gives none: how far the agreement with the fp32 baseline may fall below the agreement of the
#: same variant in fp32. The baseline itself is allowed more, because it changes only where it was unsure: on DeiT-Tiny,
#: int8 changes 3 % of its answers and leaves top-1 as it is.
MOST_LOST, MOST_LOST_BY_DENSE = 0.02, 0.05
#: The same limit for embeddings and features: how far their mean cosine to the fp32 baseline may fall.
MOST_COSINE_LOST = 0.01


@dataclass(frozen=True)
class Contender:
    """An engine that was evaluated and timed. The first contender is the requested profile, in fp32."""

    profile: str
    precision: Precision
    misses: tuple[str, ...]  #: why its answers change too much; empty if they do not
    rounds_ms: tuple[tuple[float, ...], ...]  #: times of calls in ms, by round; all take part in the same rounds


def by_risk(profiles: Sequence[tuple[str, Precision]]) -> list[str]:
    """Names of profiles in order of rising risk; those of equal risk keep their order."""
    return [name for name, precision in sorted(profiles, key=lambda one: RISK[one[1]])]


def misses(rows: Sequence[GateRow], asked: Sequence[GateRow], limits: GateLimits) -> tuple[str, ...]:
    """Why a precision changes too many answers: the baseline fails, or a variant that passes in fp32 does.

    Args:
        rows: results of the candidate, the baseline's among them.
        asked: results of the pruned variants in fp32.
    """
    fp32 = {row.variant: row for row in asked if not row.failed}
    judged = [row for row in rows if row.method == "dense" or row.variant in fp32]
    if limits != GateLimits():
        return tuple(f"{row.variant}: {text}" for row in judged for text in row.failed)
    texts = [(row.variant, _loss(row, fp32.get(row.variant))) for row in judged]
    return tuple(f"{variant}: {text}" for variant, text in texts if text is not None)


def _loss(row: GateRow, fp32: GateRow | None) -> str | None:
    """By how much a variant is worse than the same variant in fp32; None where that is within limits.

    Args:
        fp32: None for the baseline, whose fp32 engine is the reference itself.
    """
    if row.cosine is not None:
        lost = round((1.0 if fp32 is None or fp32.cosine is None else fp32.cosine) - row.cosine, 8)
        if lost > MOST_COSINE_LOST:
            return f"mean cosine is {lost:.4f} below fp32's, at most {MOST_COSINE_LOST:g} is allowed"
    if row.agreement is not None:
        most = MOST_LOST_BY_DENSE if row.method == "dense" else MOST_LOST
        lost = round(100 * ((1.0 if fp32 is None or fp32.agreement is None else fp32.agreement) - row.agreement), 6)
        if lost > 100 * most:
            return f"agreement is {lost:.1f} points below fp32's, at most {100 * most:g} are allowed"
    return None


def choose(contenders: Sequence[Contender]) -> list[str | None]:
    """Why each contender does not ship; None for the one that does.

    A riskier engine ships only where it is faster, beyond noise, than every less risky one that passes.

    Args:
        contenders: the requested profile, which passes, then the others in order of rising risk.
    """
    reasons: list[str | None] = [None]
    best = 0
    for position, one in enumerate(contenders[1:], 1):
        ahead = [other for other in contenders[:position] if not other.misses]
        unbeaten = next((other for other in reversed(ahead) if not _faster(one, other)), None)
        if one.misses:
            reasons.append("; ".join(one.misses))
        elif unbeaten is not None:
            reasons.append(f"not shown to be faster than {unbeaten.profile}: {_in_words(one, unbeaten)}")
        else:
            reasons.append(None)
            best = position
    for position, reason in enumerate(reasons):
        if reason is None and position != best:
            reasons[position] = (
                f"{contenders[best].profile} is faster: {_in_words(contenders[best], contenders[position])}"
            )
    return reasons


def timing(one: Contender, asked: Contender) -> TimingRecord:
    own, ratio = _span([median(calls) for calls in one.rounds_ms]), _span(_ratios(one, asked))
    return TimingRecord(
        median_ms=median(sample for calls in one.rounds_ms for sample in calls),
        interval=(own.low, own.high),
        speedup=median(_ratios(one, asked)),
        speedup_interval=(ratio.low, ratio.high),
    )


def _faster(one: Contender, other: Contender) -> bool:
    return _span(_ratios(one, other)).low > 1


def _ratios(one: Contender, other: Contender) -> list[float]:
    """Speed-up of `one` over `other`, round by round."""
    return [median(theirs) / median(own) for own, theirs in zip(one.rounds_ms, other.rounds_ms, strict=True)]


def _span(values: Sequence[float]) -> Interval:
    interval = bootstrap_interval(values)
    assert interval is not None, "enough rounds were measured"
    return interval


def _in_words(one: Contender, other: Contender) -> str:
    span = _span(_ratios(one, other))
    return f"{median(_ratios(one, other)):.2f}x ({span.low:.2f} to {span.high:.2f})"

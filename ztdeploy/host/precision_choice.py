"""Which of several engines of a model to ship: the fastest whose precision costs little. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ztdeploy.core.manifest import GateLimits, GateRow, TimingRecord
from ztdeploy.core.profile import Precision
from ztdeploy.target.measure.statistics import Interval, bootstrap_interval

#: What goes wrong with rounding, the least first. int8 also depends on the range of what else is in a call.
RISK: dict[Precision, int] = {"fp32": 0, "bf16": 1, "fp16": 1, "int8": 2}
#: Where no limit is given: by how much a smaller share of images than with the same variant in fp32 may get the answer
#: of dense in fp32. A pruned variant differs from dense anyway. Dense itself differs where it was unsure: on DeiT-Tiny,
#: int8 changes 3 % of the answers and leaves top-1 as it is.
MOST_LOST, MOST_LOST_BY_DENSE = 0.02, 0.05
#: The same of embeddings and features: how much lower their mean cosine to dense in fp32 may be.
MOST_COSINE_LOST = 0.01


@dataclass(frozen=True)
class Contender:
    """An engine that ran; the profile asked for is the first of them, and in fp32."""

    profile: str
    precision: Precision
    misses: tuple[str, ...]  #: what it costs too much, in words
    rounds_ms: tuple[tuple[float, ...], ...]  #: calls by round, the same rounds for all


def by_risk(profiles: Sequence[tuple[str, Precision]]) -> list[str]:
    """Names, the least risky first; else in their order."""
    return [name for name, precision in sorted(profiles, key=lambda one: RISK[one[1]])]


def misses(rows: Sequence[GateRow], asked: Sequence[GateRow], limits: GateLimits) -> tuple[str, ...]:
    """Why an engine's precision costs too much: a variant that ships in fp32 does not pass, or dense does not.

    Args:
        rows: the candidate's, dense as well.
        asked: the pruned variants' in fp32.
    """
    fp32 = {row.variant: row for row in asked if not row.failed}
    judged = [row for row in rows if row.method == "dense" or row.variant in fp32]
    if limits != GateLimits():
        return tuple(f"{row.variant}: {text}" for row in judged for text in row.failed)
    texts = [(row.variant, _loss(row, fp32.get(row.variant))) for row in judged]
    return tuple(f"{variant}: {text}" for variant, text in texts if text is not None)


def _loss(row: GateRow, fp32: GateRow | None) -> str | None:
    """By how much a variant is worse than the same in fp32, where that is too much.

    Args:
        fp32: None for dense, which is held against itself.
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
        contenders: the profile asked for, which passes, and then the less risky first.
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
    """How many times longer the other takes, round by round."""
    return [median(theirs) / median(own) for own, theirs in zip(one.rounds_ms, other.rounds_ms, strict=True)]


def _span(values: Sequence[float]) -> Interval:
    interval = bootstrap_interval(values)
    assert interval is not None, "enough rounds were measured"
    return interval


def _in_words(one: Contender, other: Contender) -> str:
    span = _span(_ratios(one, other))
    return f"{median(_ratios(one, other)):.2f}x ({span.low:.2f} to {span.high:.2f})"

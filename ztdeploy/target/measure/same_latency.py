"""The static variant that takes as long as a cascade does on average: what the same time buys without one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from ztdeploy.core.cascade import Guarantee
from ztdeploy.target.measure.bench_report import BenchReport, ConfigurationReport, SameLatency


def same_latencies(report: BenchReport, agreement: Mapping[str, float]) -> tuple[SameLatency, ...]:
    """One for each batch and number of threads at which the cascade and a static variant were measured.

    Args:
        agreement: of variants with the baseline, as far as it is known.
    """
    cascades = [one for one in report.measured if one.answered]
    static = [one for one in report.measured if not one.answered]
    found = [(own, [one for one in static if one.setting == own.setting]) for own in cascades]
    facts = report.cascade
    return tuple(same_latency(own, beside, agreement, facts.guarantee) for own, beside in found if beside and facts)


def same_latency(
    own: ConfigurationReport,
    static: Sequence[ConfigurationReport],
    agreement: Mapping[str, float],
    guarantee: Guarantee,
) -> SameLatency:
    """Interpolated between the two static variants whose mean latencies are next to the cascade's; the nearest one
    where the cascade is faster or slower than all of them.

    Args:
        own: the cascade, measured.
        static: at least one variant that was measured at the same batch and threads.
        agreement: see `same_latencies`.
    """
    mean = _mean_ms(own)
    ordered = sorted(static, key=_mean_ms)
    near = min(ordered, key=lambda one: abs(_mean_ms(one) - mean))
    pairs = (pair for pair in pairwise(ordered) if _mean_ms(pair[0]) <= mean <= _mean_ms(pair[1]))
    low, high = next(pairs, (near, near))
    apart = _mean_ms(high) - _mean_ms(low)
    share = (mean - _mean_ms(low)) / apart if apart else 0.0
    ends = agreement.get(low.variant), agreement.get(high.variant)
    agrees = None if ends[0] is None or ends[1] is None else (1 - share) * ends[0] + share * ends[1]
    return SameLatency(
        batch=own.batch,
        threads=own.threads,
        mean_ms=mean,
        between=(low.variant,) if low is high else (low.variant, high.variant),
        gmacs=(1 - share) * low.gmacs + share * high.gmacs,
        agreement=agrees,
        sentence=_words(own, low, high, agrees, guarantee),
    )


def _words(
    own: ConfigurationReport,
    low: ConfigurationReport,
    high: ConfigurationReport,
    agrees: float | None,
    guarantee: Guarantee,
) -> str:
    where = f"interpolated between {low.variant} and {high.variant}"
    if low is high:
        where = f"of which {low.variant} with {_mean_ms(low):.3g} ms is the nearest"
    known = "was not evaluated" if agrees is None else f"does so on {100 * agrees:.1f} %"
    return (
        f"at {own.setting} the cascade takes {_mean_ms(own):.3g} ms on average and {guarantee.words};"
        f" a static variant of that latency, {where}, {known}"
    )


def _mean_ms(one: ConfigurationReport) -> float:
    assert one.latency is not None
    return one.latency.mean_ms

"""What a ratio means, in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ztdeploy.target.measure.bench_report import Comparison, ConfigurationReport, Outcome
from ztdeploy.target.measure.statistics import FEWEST_ROUNDS, Interval, bootstrap_interval, round_ratios


def compare(own: ConfigurationReport, reference: ConfigurationReport, *, seed: int) -> Comparison | None:
    """One configuration against another, over the rounds that both took part in; None where there are none."""
    ratios = round_ratios(reference.samples_by_round, own.samples_by_round)
    if not ratios:
        return None
    speedup, interval = median(ratios), bootstrap_interval(ratios, seed=seed)
    outcome = outcome_of(interval)
    return Comparison(
        variant=own.variant,
        reference=reference.variant,
        batch=own.batch,
        threads=own.threads,
        speedup=speedup,
        interval=interval,
        ratios=tuple(ratios),
        work_ratio=reference.gmacs / own.gmacs,
        outcome=outcome,
        verdict=_words(own, reference, speedup, interval, ratios),
    )


def outcome_of(interval: Interval | None) -> Outcome:
    """An interval of a speed-up that ends at 1 or below shows that nothing is gained."""
    if interval is None:
        return "too few rounds"
    if interval.high <= 1:
        return "slower"
    return "no difference shown" if interval.contains(1) else "faster"


def setting(one: ConfigurationReport) -> str:
    """Such as "batch 1, 2 threads"."""
    if one.threads is None:
        return f"batch {one.batch}"
    return f"batch {one.batch}, {one.threads} thread{'s' if one.threads > 1 else ''}"


def _words(
    own: ConfigurationReport,
    reference: ConfigurationReport,
    speedup: float,
    interval: Interval | None,
    ratios: Sequence[float],
) -> str:
    where, rounds = setting(own), f"{len(ratios)} round{'s' if len(ratios) > 1 else ''}"
    if interval is None:
        return (
            f"{own.variant} ran {speedup:.2f}x as fast as {reference.variant} at {where}, in {rounds}: "
            f"too few to say more ({FEWEST_ROUNDS} are needed for an interval)"
        )
    digits = 3 if min(abs(interval.low - 1), abs(interval.high - 1)) < 0.01 else 2  # else 1.004 would read 1.00
    span = f"{speedup:.{digits}f}x ({interval.low:.{digits}f} to {interval.high:.{digits}f})"
    if interval.high <= 1:
        return (
            f"pruning does not pay here: {own.variant} runs {span} as fast as {reference.variant} at {where} ({rounds})"
        )
    if interval.contains(1):
        return (
            f"no difference between {own.variant} and {reference.variant} was shown at {where}: "
            f"the interval of {span} includes 1 ({rounds})"
        )
    return f"{own.variant} is {span} faster than {reference.variant} at {where} ({rounds})"

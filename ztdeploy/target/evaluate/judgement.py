"""Whether what pruning costs is within limits, and which keep ratio would be. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ztdeploy.core.manifest import GateLimits, GateRecord, GateRow
from ztdeploy.target.evaluate.eval_report import EvalReport, VariantScore


def judge(report: EvalReport, limits: GateLimits) -> GateRecord:
    """Hold every pruned variant of a report against the limits: the figures themselves, not their intervals."""
    rows = [row for row in judged_rows(report, limits) if row.method != "dense"]
    return GateRecord(
        profile=report.bundle.profile,
        dense_profile=report.dense.profile,
        data=report.data.name,
        data_sha256=report.data.digest,
        images=report.data.images,
        limits=limits,
        rows=tuple(rows),
        advice=tuple(advice(rows, limits)),
    )


def judged_rows(report: EvalReport, limits: GateLimits) -> list[GateRow]:
    """Every variant that was held against dense: also another profile's dense engine."""
    return [_row(score, limits) for score in report.variants[1:]]


def _row(score: VariantScore, limits: GateLimits) -> GateRow:
    against, likeness = score.against_dense, score.likeness
    change = against.change if against is not None else None
    row = GateRow(
        variant=score.variant,
        keep_ratio=score.keep_ratio,
        method=score.method,
        drop=None if change is None else -100 * change.value,
        agreement=None if against is None else against.agreement.value,
        kl=None if against is None else against.kl.value,
        cosine=None if likeness is None else likeness.mean.value,
        failed=(),
    )
    return row.model_copy(update={"failed": tuple(_missed(row, limits))})


def _missed(row: GateRow, limits: GateLimits) -> list[str]:
    missed = []
    if limits.max_drop is not None and row.drop is not None and row.drop > limits.max_drop:
        missed.append(f"top-1 falls by {row.drop:.2f} points, {row.drop - limits.max_drop:.2f} more than allowed")
    if limits.min_agreement is not None and row.agreement is not None and row.agreement < limits.min_agreement:
        lacking = limits.min_agreement - row.agreement
        missed.append(f"agreement is {row.agreement:.4f}, {lacking:.4f} less than asked for")
    if limits.max_kl is not None and row.kl is not None and row.kl > limits.max_kl:
        missed.append(f"mean KL is {row.kl:.4f}, {row.kl - limits.max_kl:.4f} more than allowed")
    if limits.min_cosine is not None and row.cosine is not None and row.cosine < limits.min_cosine:
        lacking = limits.min_cosine - row.cosine
        missed.append(f"mean cosine is {row.cosine:.4f}, {lacking:.4f} less than asked for")
    return missed


def advice(rows: Sequence[GateRow], limits: GateLimits) -> list[str]:
    """For every method with a variant that failed: the lowest keep ratio that passes, measured or estimated."""
    found = []
    for method in dict.fromkeys(row.method for row in rows if row.failed):
        own = {row.keep_ratio: row for row in rows if row.method == method and row.keep_ratio is not None}
        passing = [ratio for ratio, row in own.items() if not row.failed]
        failing = [ratio for ratio, row in own.items() if row.failed]
        if passing:
            found.append(f"{method}: keep ratio {min(passing):g} passes")
        estimate = _estimate(own[max(failing)], _next_above(own, max(failing)), limits) if failing else None
        if estimate is not None:
            found.append(f"{method}: about {estimate:.2f} might pass (an estimate by interpolation, not measured)")
    return found


def _next_above(rows: dict[float, GateRow], ratio: float) -> GateRow:
    """The variant of the next higher keep ratio, which passed; dense in the end."""
    above = [other for other in rows if other > ratio]
    if above:
        return rows[min(above)]
    return GateRow(
        variant="dense", keep_ratio=1.0, method="dense", drop=0.0, agreement=1.0, kl=0.0, cosine=1.0, failed=()
    )


def _estimate(failed: GateRow, passed: GateRow, limits: GateLimits) -> float | None:
    """Where a line between two keep ratios crosses the last limit, rounded up to 0.01; None where that is no news."""
    assert failed.keep_ratio is not None
    assert passed.keep_ratio is not None
    pairs = [
        (failed.drop, passed.drop, limits.max_drop),
        (_less(failed.agreement), _less(passed.agreement), _less(limits.min_agreement)),
        (failed.kl, passed.kl, limits.max_kl),
        (_less(failed.cosine), _less(passed.cosine), _less(limits.min_cosine)),
    ]
    crossings = [
        (cost - limit) / (cost - less)
        for cost, less, limit in pairs
        if cost is not None and less is not None and limit is not None and cost > limit
    ]
    ratio = failed.keep_ratio + max(crossings, default=1.0) * (passed.keep_ratio - failed.keep_ratio)
    rounded = math.ceil(round(100 * ratio, 6)) / 100
    return rounded if failed.keep_ratio < rounded < passed.keep_ratio else None


def _less(value: float | None) -> float | None:
    """What is the better the higher it is, as a cost."""
    return None if value is None else -value

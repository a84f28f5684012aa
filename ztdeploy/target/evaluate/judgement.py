"""Whether what pruning costs is within limits, and which keep ratio would be. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ztdeploy.core.manifest import GateLimits, GateRecord, GateRow
from ztdeploy.target.evaluate.eval_report import EvalReport, VariantScore

#: A figure, its limit, the sign that makes it a cost (which is the worse the higher it is), and what is said of a miss.
_LIMITS = (
    ("drop", "max_drop", 1, "top-1 falls by {:.2f} points, {:.2f} more than allowed"),
    ("agreement", "min_agreement", -1, "agreement is {:.4f}, {:.4f} less than asked for"),
    ("kl", "max_kl", 1, "mean KL is {:.4f}, {:.4f} more than allowed"),
    ("cosine", "min_cosine", -1, "mean cosine is {:.4f}, {:.4f} less than asked for"),
    ("error", "max_error", 1, "mean error is {:.4f}, {:.4f} more than allowed"),
    ("iou", "min_iou", -1, "mean IoU is {:.4f}, {:.4f} less than asked for"),
)
_DENSE = GateRow(
    variant="dense",
    keep_ratio=1.0,
    method="dense",
    drop=0.0,
    agreement=1.0,
    kl=0.0,
    cosine=1.0,
    error=0.0,
    iou=1.0,
    failed=(),
)


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
    against, likeness, maps = score.against_dense, score.likeness, score.maps
    change = against.change if against is not None else None
    row = GateRow(
        variant=score.variant,
        keep_ratio=score.keep_ratio,
        method=score.method,
        drop=None if change is None else -100 * change.value,
        agreement=None if against is None else against.agreement.value,
        kl=None if against is None else against.kl.value,
        cosine=None if likeness is None else likeness.mean.value,
        error=None if maps is None else maps.error.value,
        iou=None if maps is None or maps.iou is None else maps.iou.value,
        failed=(),
    )
    return row.model_copy(update={"failed": tuple(_missed(row, limits))})


def _missed(row: GateRow, limits: GateLimits) -> list[str]:
    return [words.format(getattr(row, figure), over) for figure, words, over in _excesses(row, limits) if over > 0]


def _excesses(row: GateRow, limits: GateLimits) -> Iterator[tuple[str, str, float]]:
    """Each figure that is known and limited: its name, the words for a miss, and by how much it is beyond its limit."""
    for figure, name, sign, words in _LIMITS:
        value, limit = getattr(row, figure), getattr(limits, name)
        if value is not None and limit is not None:
            yield figure, words, sign * (value - limit)


def advice(rows: Sequence[GateRow], limits: GateLimits) -> list[str]:
    """For every method with a variant that failed: the lowest keep ratio that passes, measured or estimated."""
    found = []
    for method in dict.fromkeys(row.method for row in rows if row.failed):
        own = {row.keep_ratio: row for row in rows if row.method == method and row.keep_ratio is not None}
        passing = [ratio for ratio, row in own.items() if not row.failed]
        failing = [ratio for ratio, row in own.items() if row.failed]
        if passing:
            found.append(f"{method}: keep ratio {min(passing):g} passes")
        if failing:
            above = min((ratio for ratio in own if ratio > max(failing)), default=None)
            passed = _DENSE if above is None else own[above]
            estimate = _estimate(own[max(failing)], passed, limits)
            if estimate is not None:
                found.append(f"{method}: about {estimate:.2f} might pass (an estimate by interpolation, not measured)")
    return found


def _estimate(failed: GateRow, passed: GateRow, limits: GateLimits) -> float | None:
    """Where a line between two keep ratios crosses the last limit, rounded up to 0.01; None where that is no news."""
    assert failed.keep_ratio is not None
    assert passed.keep_ratio is not None
    below = {figure: over for figure, _, over in _excesses(passed, limits)}
    crossings = [
        over / (over - below[figure]) for figure, _, over in _excesses(failed, limits) if over > 0 and figure in below
    ]
    ratio = failed.keep_ratio + max(crossings, default=1.0) * (passed.keep_ratio - failed.keep_ratio)
    rounded = math.ceil(round(100 * ratio, 6)) / 100
    return rounded if failed.keep_ratio < rounded < passed.keep_ratio else None

"""Figures with their intervals, as two cells of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztdeploy.target.evaluate.eval_report import Change, Mean, Quantile, Share
    from ztdeploy.target.measure.statistics import Interval

HEADING = "95 % interval"


def interval_words(interval: Interval, scale: float = 100, digits: int = 1, sign: str = "") -> str:
    return f"{scale * interval.low:{sign}.{digits}f} to {scale * interval.high:{sign}.{digits}f}"


def share_words(share: Share | Mean | None) -> tuple[str, str]:
    """In %."""
    return ("-", "-") if share is None else (f"{100 * share.value:.1f}", interval_words(share.interval))


def mean_words(mean: Mean | Quantile | None) -> tuple[str, str]:
    return ("-", "-") if mean is None else (f"{mean.value:.4f}", interval_words(mean.interval, 1, 4))


def change_words(change: Change | None) -> tuple[str, str]:
    """In points of %; empty where nothing is compared."""
    return ("", "") if change is None else (f"{100 * change.value:+.1f}", interval_words(change.interval, sign="+"))

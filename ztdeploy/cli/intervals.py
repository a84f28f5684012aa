"""Figures with their intervals, as two cells of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ztdeploy.target.evaluate.eval_report import Change, Mean, Quantile, Share

HEADING = "95 % interval"


def share_words(share: Share | Mean | None) -> tuple[str, str]:
    """In %."""
    return ("-", "-") if share is None else (f"{100 * share.value:.1f}", f"{share.interval.scaled(100):.1f}")


def mean_words(mean: Mean | Quantile | None) -> tuple[str, str]:
    return ("-", "-") if mean is None else (f"{mean.value:.4f}", f"{mean.interval:.4f}")


def change_words(change: Change | None) -> tuple[str, str]:
    """In points of %; empty where nothing is compared."""
    return ("", "") if change is None else (f"{100 * change.value:+.1f}", f"{change.interval.scaled(100):+.1f}")

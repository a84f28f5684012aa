"""Ratios in words."""

from __future__ import annotations

import pytest
from helpers.bench import configuration

from ztdeploy.core.preprocess_spec import ImageSize
from ztdeploy.core.setting import Setting
from ztdeploy.target.measure.comparing import compare, outcome_of
from ztdeploy.target.measure.statistics import Interval


def interval(low, high):
    return Interval(low=low, high=high, confidence=0.95)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (1.5, 1.54, "faster"),
        (1.001, 1.2, "faster"),
        (1.0, 1.2, "no difference shown"),
        (0.9, 1.1, "no difference shown"),
        (0.9, 1.0, "slower"),
        (1.0, 1.0, "slower"),
        (0.5, 0.6, "slower"),
    ],
)
def test_outcomes(low, high, outcome):
    assert outcome_of(interval(low, high)) == outcome


def test_without_an_interval_nothing_is_claimed():
    assert outcome_of(None) == "too few rounds"


def words(dense, own, **given):
    found = compare(configuration("keep-0.70", own, gmacs=0.5, **given), configuration("dense", dense, **given), seed=0)
    return found.outcome, found.verdict


def test_faster():
    dense, own = [[15.0], [15.4], [15.2], [15.2], [15.4], [15.0]], [[10.0]] * 6
    assert words(dense, own) == (
        "faster",
        "keep-0.70 is 1.52x (1.50 to 1.54) faster than dense at batch 1, 1 thread (6 rounds)",
    )
    assert words(dense, own, batch=8, threads=None)[1].endswith("faster than dense at batch 8 (6 rounds)")


def test_slower_does_not_pay():
    outcome, verdict = words([[9.0]] * 8, [[10.0]] * 8, threads=2)
    assert outcome == "slower"
    assert verdict.startswith("pruning does not pay here: keep-0.70 runs 0.90x (0.90 to 0.90) as fast as dense at ")
    assert verdict.endswith("at batch 1, 2 threads (8 rounds)")


def test_no_difference():
    outcome, verdict = words([[9.0], [11.0]] * 4, [[10.0]] * 8)
    assert outcome == "no difference shown"
    assert verdict.startswith("no difference between keep-0.70 and dense was shown at batch 1, 1 thread: ")
    assert "1.00x (0.90 to 1.10) includes 1" in verdict


def test_an_interval_that_almost_touches_one_has_more_digits():
    _, verdict = words([[10.04], [10.2]] * 5, [[10.0]] * 10)
    assert "(1.004 to 1.020) faster" in verdict


def test_few_rounds():
    outcome, verdict = words([[15.0]] * 3, [[10.0]] * 3)
    assert outcome == "too few rounds"
    assert "1.50x" in verdict
    assert "in 3 rounds: too few" in verdict
    assert "faster" not in verdict


def test_only_common_rounds_count():
    own, dense = configuration("keep-0.70", [[1.0]] * 2), configuration("dense", [[2.0]] * 7)
    found = compare(own, dense, seed=0)
    assert (found.ratios, found.speedup, found.interval) == ((2.0, 2.0), 2.0, None)
    assert compare(configuration("keep-0.70"), dense, seed=0) is None


def test_less_work():
    dense = configuration("dense", [[2.0]], gmacs=4.0)
    assert compare(configuration("keep-0.50", [[1.0]], gmacs=2.0), dense, seed=0).work_ratio == 2


def test_settings():
    assert str(configuration(batch=8, threads=2).setting) == "batch 8, 2 threads"
    assert str(configuration(threads=None).setting) == "batch 1"
    assert str(Setting(ImageSize(96, 384), 1, 1)) == "96x384 px, batch 1, 1 thread"

"""Figures from samples: against NumPy, and by what must hold for any samples."""

from __future__ import annotations

import random
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztdeploy.target.measure.statistics import (
    FEWEST_ROUNDS,
    bootstrap_interval,
    median_absolute_deviation,
    percentile,
    round_ratios,
    summarise,
)
from ztdeploy.target.measure.turns import turn_orders

milliseconds = st.floats(min_value=1e-3, max_value=1e5)
samples = st.lists(milliseconds, min_size=1, max_size=200)
rounds = st.dictionaries(st.integers(0, 30), st.lists(milliseconds, min_size=1, max_size=5), max_size=20)


@given(samples, st.floats(0, 100))
def test_percentiles_are_numpys(values, percent):
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-12)


@given(samples)
def test_the_deviation_is_numpys(values):
    expected = float(np.median(np.abs(np.array(values) - np.median(values))))
    assert median_absolute_deviation(values) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(samples, st.randoms())
def test_a_summary_is_ordered_and_does_not_depend_on_the_samples_order(values, generator):
    found = summarise(values)
    tails = [p for p in (found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms) if p is not None]
    assert [found.min_ms, *tails, found.max_ms] == sorted([found.min_ms, *tails, found.max_ms])
    assert found.min_ms <= found.mean_ms * (1 + 1e-12)
    assert found.mean_ms <= found.max_ms * (1 + 1e-12)
    assert 0 <= found.mad_ms <= found.max_ms - found.min_ms
    assert found.samples == len(values)
    mixed = list(values)
    generator.shuffle(mixed)
    assert summarise(mixed).p50_ms == found.p50_ms
    assert summarise(mixed).mean_ms == found.mean_ms


@given(samples, st.sampled_from([0.5, 2.0, 1024.0]))
def test_a_summary_scales_with_its_unit(values, factor):
    """Powers of two, so that nothing is rounded."""
    small, large = summarise(values), summarise([factor * value for value in values])
    for name in ("min_ms", "mean_ms", "p50_ms", "max_ms", "mad_ms"):
        assert getattr(large, name) == pytest.approx(factor * getattr(small, name), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("count", "known"), [(9, []), (10, ["p90"]), (19, ["p90"]), (20, ["p90", "p95"]), (99, ["p90", "p95"])]
)
def test_a_tail_that_few_samples_cannot_show_is_not_shown(count, known):
    found = summarise([float(n) for n in range(count)])
    assert [p for p in ("p90", "p95", "p99") if getattr(found, f"{p}_ms") is not None] == known


def test_a_hundred_samples_show_the_last_one_in_a_hundred():
    found = summarise([float(n) for n in range(101)])
    assert (found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms, found.mad_ms) == (50, 90, 95, 99, 25)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentiles_of_nothing_and_beyond(values, percent):
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


# Ratios and intervals.


@given(rounds)
def test_against_itself_nothing_is_faster(own):
    assert round_ratios(own, own) == [1.0] * len(own)


@given(rounds, rounds)
def test_ratios_are_taken_over_common_rounds_and_turn_over(first, second):
    there, back = round_ratios(first, second), round_ratios(second, first)
    assert len(there) == len(back) == len(first.keys() & second.keys())
    assert all(one * other == pytest.approx(1) for one, other in zip(there, back, strict=True))


def test_a_slow_round_does_not_change_a_ratio():
    reference = {0: [4.0], 1: [4.0], 2: [40.0]}
    assert round_ratios(reference, {0: [2.0], 1: [2.0], 2: [20.0]}) == [2, 2, 2]


@given(st.lists(milliseconds, min_size=FEWEST_ROUNDS, max_size=30), st.integers(0, 5))
@settings(max_examples=30)
def test_intervals_lie_around_the_median_and_can_be_repeated(values, seed):
    found = bootstrap_interval(values, seed=seed, resamples=2000)
    assert found is not None
    assert min(values) <= found.low <= median(values) <= found.high <= max(values)
    assert bootstrap_interval(values, seed=seed, resamples=2000) == found


@given(milliseconds, st.integers(FEWEST_ROUNDS, 20))
@settings(max_examples=10)
def test_equal_rounds_leave_no_doubt(value, count):
    found = bootstrap_interval([value] * count)
    assert (found.low, found.high, found.confidence) == (value, value, 0.95)


@pytest.mark.parametrize("count", range(FEWEST_ROUNDS))
def test_too_few_rounds_have_no_interval(count):
    assert bootstrap_interval([1.5] * count) is None


@pytest.mark.parametrize("count", [6, 10])
def test_intervals_cover_the_truth_as_often_as_they_say(count):
    """Roughly: the bootstrap of a median is narrow with few rounds (docs/explanation/measuring.md)."""
    generator, hits = np.random.default_rng(0), 0
    for seed in range(300):
        found = bootstrap_interval(list(1.5 + 0.02 * generator.standard_t(3, count)), seed=seed, resamples=1000)
        hits += found.contains(1.5)
    assert hits / 300 > 0.89


# Whose turn it is.


@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 3))
def test_everybody_has_a_turn_in_every_round(count, turns, seed):
    orders = turn_orders(count, turns, seed)
    assert len(orders) == turns
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert turn_orders(count, turns, seed) == orders


@given(st.integers(2, 12), st.integers(1, 10), st.integers(0, 3))
def test_nobody_always_follows_the_same_one_and_places_are_even(count, pairs, seed):
    orders = turn_orders(count, 2 * pairs, seed)
    before = {(order[place], order[place - 1]) for order in orders for place in range(1, count)}
    assert all((other, one) in before for one, other in before), "whoever follows another precedes it as often"
    for one in range(count):
        assert sum(order.index(one) for order in orders) == pairs * (count - 1)


def test_the_seed_decides():
    assert turn_orders(6, 4, 0) != turn_orders(6, 4, 1)
    random.seed(0)
    first = turn_orders(6, 4, 0)
    random.seed(1)
    assert turn_orders(6, 4, 0) == first, "the program's own generator is left alone"

"""Intervals of an evaluation, against independent ways to get at the same numbers."""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztdeploy.target.evaluate.statistics import mean_interval, paired_interval, tango_score
from ztdeploy.target.measure.statistics import wilson_interval
from ztdeploy.target.runtime.postprocess import divergences

Z = NormalDist().inv_cdf(0.975)
counts = st.integers(1, 3000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))
pairs = st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(0, 2000)).filter(lambda one: sum(one) > 0)


@given(counts)
def test_the_ends_of_wilsons_interval_are_where_the_score_test_turns(found: tuple[int, int]) -> None:
    count, total = found
    interval = wilson_interval(count, total)
    share = count / total
    assert 0 <= interval.low <= share <= interval.high <= 1
    for end in (interval.low, interval.high):
        if 0 < end < 1:
            assert abs(share - end) / math.sqrt(end * (1 - end) / total) == pytest.approx(Z, rel=1e-6)


def test_wilson_by_hand() -> None:
    """81 of 263: the example of Newcombe 1998 (Statistics in Medicine 17, 857-872), 0.2553 to 0.3662."""
    interval = wilson_interval(81, 263)
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("count", "total"), [(-1, 3), (4, 3), (0, 0)])
def test_wilson_refuses(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="images"):
        wilson_interval(count, total)


def likeliest_lost(gained: int, lost: int, total: int, delta: float) -> float:
    """By search over the trinomial's likelihood, not by its formula."""
    best, low, high = 0.0, max(0.0, -delta), (1 - delta) / 2
    for _ in range(6):
        grid = np.linspace(low, high, 2001)[1:-1]
        same = total - gained - lost
        with np.errstate(divide="ignore", invalid="ignore"):
            value = gained * np.log(grid + delta) + lost * np.log(grid) + same * np.log1p(-2 * grid - delta)
        best = float(grid[np.nanargmax(value)])
        step = grid[1] - grid[0]
        low, high = max(low, best - step), min(high, best + step)
    return best


@pytest.mark.parametrize(("gained", "lost", "same"), [(13, 37, 390), (1, 5, 14), (7, 7, 30), (3, 1, 0), (40, 2, 400)])
@pytest.mark.parametrize("delta", [-0.4, -0.1, -0.01, 0.02, 0.3])
def test_the_score_is_that_of_the_likeliest_model(gained: int, lost: int, same: int, delta: float) -> None:
    total = gained + lost + same
    q = likeliest_lost(gained, lost, total, delta)
    expected = (gained - lost - total * delta) / math.sqrt(total * (2 * q + delta - delta**2))
    assert tango_score(gained, lost, total, delta) == pytest.approx(expected, rel=1e-4)


@given(pairs)
def test_the_paired_interval_turns_where_the_score_does(found: tuple[int, int, int]) -> None:
    gained, lost, same = found
    total = gained + lost + same
    interval = paired_interval(gained, lost, total)
    change = (gained - lost) / total
    assert -1 <= interval.low <= change + 1e-12
    assert change - 1e-12 <= interval.high <= 1
    for end in (interval.low, interval.high):
        if -0.999 < end < 0.999:
            assert abs(tango_score(gained, lost, total, end)) == pytest.approx(Z, rel=1e-5)
    swapped = paired_interval(lost, gained, total)
    assert (-swapped.high, -swapped.low) == pytest.approx((interval.low, interval.high), abs=1e-9)


@given(pairs)
def test_it_leaves_out_zero_where_mcnemars_test_rejects(found: tuple[int, int, int]) -> None:
    gained, lost, _ = found
    statistic = (gained - lost) ** 2 / (gained + lost) if gained + lost else 0.0
    assert paired_interval(gained, lost, sum(found)).contains(0.0) == (statistic <= Z * Z)


@pytest.mark.parametrize(("gain", "loss"), [(0.05, 0.05), (0.1, 0.3), (0.02, 0.1), (0.25, 0.25)])
def test_how_often_it_holds_the_truth_by_exact_enumeration(gain: float, loss: float) -> None:
    """Every outcome of 40 images, weighed by its probability."""
    total, covered = 40, 0.0
    for gained, lost in product(range(total + 1), repeat=2):
        same = total - gained - lost
        if same < 0:
            continue
        ways = math.comb(total, gained) * math.comb(total - gained, lost)
        probability = ways * gain**gained * loss**lost * (1 - gain - loss) ** same
        if probability > 1e-9 and paired_interval(gained, lost, total).contains(gain - loss):
            covered += probability
    assert 0.93 < covered < 0.99


@pytest.mark.parametrize("bad", [(-1, 0, 3), (2, 2, 3), (0, 0, 0)])
def test_paired_refuses(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="images"):
        paired_interval(*bad)


def test_the_bootstrap_is_near_the_normal_interval_and_repeatable() -> None:
    values = np.random.default_rng(1).exponential(0.2, 3000)
    interval = mean_interval(values, seed=3)
    half = Z * values.std() / math.sqrt(len(values))
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 5)
    assert mean_interval(values, seed=3) == interval
    assert mean_interval(values, seed=4) != interval
    same = mean_interval(np.full(7, 0.25))
    assert (same.low, same.high) == (0.25, 0.25)


@given(st.integers(0, 10_000))
def test_divergence_is_a_sum_over_classes(seed: int) -> None:
    dense, variant = np.random.default_rng(seed).normal(0, 4, (2, 5, 7)).astype(np.float32)
    expected = []
    for one, other in zip(dense.tolist(), variant.tolist(), strict=True):
        p = [math.exp(x) / sum(map(math.exp, one)) for x in one]
        q = [math.exp(x) / sum(map(math.exp, other)) for x in other]
        expected.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    assert divergences(dense, variant) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert (divergences(dense, dense) == 0).all()

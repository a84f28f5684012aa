"""Steps are found where there are some, at the right place, and never made out of noise."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztdeploy.target.measure.staircase import FEWEST_ROUNDS, find_treads, token_counts

TOKENS = tuple(range(50, 198))


def rounds(times, *, noise=0.02, drift=0.1, outliers=0.0, count=20, seed=0):
    """A machine that drifts from round to round, whose calls are noisy and sometimes take twice as long."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        own = (
            np.asarray(times) * (1 + drift * generator.uniform()) * (1 + noise * generator.standard_normal(len(times)))
        )
        own = own * np.where(generator.uniform(size=len(times)) < outliers, 2, 1)
        found.append([float(time) for time in own])
    return found


def smooth(tokens=TOKENS):
    """Linear and a quadratic part, as of a block."""
    return [0.2 + 0.012 * n + 2e-5 * n * n for n in tokens]


def stairs(width, tokens=TOKENS):
    return [0.2 + 0.012 * width * -(-n // width) for n in tokens]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("outliers", [0.0, 0.05])
@pytest.mark.parametrize("flat", [True, False])
def test_noise_hardly_ever_makes_a_step(noise, outliers, flat):
    """It can, by chance: one staircase of 148 counts in forty at most."""
    times = [1.0] * len(TOKENS) if flat else smooth()
    wrong = [find_treads(TOKENS, rounds(times, noise=noise, outliers=outliers, seed=seed)) for seed in range(40)]
    assert sum(map(bool, wrong)) <= 1


@pytest.mark.parametrize("width", [8, 16, 32])
@pytest.mark.parametrize(("noise", "outliers"), [(0.0, 0.0), (0.005, 0.05)])
def test_clear_steps_are_found(width, noise, outliers):
    expected = [n for n in TOKENS[2:-3] if n % width == 0]
    found = find_treads(TOKENS, rounds(stairs(width), noise=noise, outliers=outliers, count=40))
    large = [n for n in expected if 0.012 * width * 0.7 > 0.06 * stairs(width)[n - TOKENS[0]]]
    assert set(large) <= set(found) <= set(expected)
    assert large


@settings(max_examples=30, deadline=None)
@given(st.integers(60, 180), st.floats(0.15, 1.0), st.integers(0, 10**6))
def test_one_step_is_found_where_it_is(place, height, seed):
    times = [time * (1 + height * (n > place)) for n, time in zip(TOKENS, smooth(), strict=True)]
    assert find_treads(TOKENS, rounds(times, noise=0.01, seed=seed)) == (place,)


def test_one_slow_count_is_no_step():
    """A count that a kernel does not like stands alone: both its neighbours are faster."""
    times = smooth()
    times[40] *= 1.5
    assert find_treads(TOKENS, rounds(times)) == ()


def test_a_step_down_is_none():
    times = [time * (0.7 if n > 128 else 1) for n, time in zip(TOKENS, smooth(), strict=True)]
    assert find_treads(TOKENS, rounds(times)) == ()


def test_too_little_to_say():
    times = [1.0] * 80 + [2.0] * 68
    assert find_treads(TOKENS, rounds(times, noise=0, count=FEWEST_ROUNDS)) == (TOKENS[79],)
    assert find_treads(TOKENS, rounds(times, noise=0, count=FEWEST_ROUNDS - 1)) == ()
    assert find_treads(TOKENS[:5], rounds([1, 1, 1, 2, 2], noise=0)) == ()
    assert find_treads((), []) == ()


@given(st.integers(1, 5000), st.integers(0, 600))
def test_counts(most, affordable):
    found = token_counts(most, affordable)
    assert found[-1] == most
    assert found[0] >= 1
    assert list(found) == sorted(set(found))
    assert len({above - below for below, above in pairwise(found)}) <= 1
    assert len(found) <= max(1, affordable) or len(found) <= 2


def test_every_count_where_that_can_be_afforded():
    assert token_counts(197, 1000) == tuple(range(49, 198))
    assert token_counts(197, 40) == tuple(range(49, 198, 4))
    assert token_counts(5, 100) == (5,)

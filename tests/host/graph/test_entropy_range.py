"""The threshold of least divergence: against one found bin by bin, and what the histogram may not forget."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztdeploy.host.graph.ranges import BINS, LEVELS, Magnitudes, divergence


def by_hand(counts: list[float], bins: int) -> float:
    """Level by level, as it is described."""
    true = counts[:bins]
    coarse = [0.0] * bins
    for level in range(LEVELS):
        own = [at for at in range(bins) if at * LEVELS // bins == level]
        filled = [at for at in own if counts[at] > 0]
        for at in filled:
            coarse[at] = sum(counts[one] for one in own) / len(filled)
    true = [*true[:-1], true[-1] + sum(counts[bins:])]
    whole, kept = sum(true), sum(coarse)
    return sum(p / whole * math.log(p / whole / max(q / kept, 1e-12)) for p, q in zip(true, coarse, strict=True) if p)


@pytest.mark.parametrize("bins", [LEVELS, 200, 1000, BINS])
def test_divergence_is_that_of_a_slow_one(bins: int) -> None:
    counts = np.random.default_rng(bins).poisson(40 * np.exp(-np.arange(BINS) / 300)).astype(float)
    assert divergence(counts, bins) == pytest.approx(by_hand(counts.tolist(), bins), rel=1e-3)


def test_far_outliers_are_cut_off_and_a_flat_distribution_is_not() -> None:
    rng = np.random.default_rng(0)
    tailed, flat = Magnitudes(), Magnitudes()
    tailed.add(np.concatenate([rng.normal(size=100_000), [60.0, -80.0]]))
    flat.add(rng.uniform(-3, 3, 100_000))
    assert 2 < tailed.threshold() < 20
    assert flat.threshold() == pytest.approx(3, rel=0.01)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.integers(1, 39))
def test_nothing_is_forgotten_when_the_range_grows(values: list[float], cut: int) -> None:
    parts = [part for part in (values[:cut], values[cut:]) if part]
    found = Magnitudes()
    for part in parts:
        found.add(np.array(part, np.float32))
    assert found.counts.sum() == len(values)
    most = max(map(abs, values))
    assert found.threshold() <= 2 * most or most == 0
    assert found.top >= most

"""Ticks, scales, and labels that touch nothing."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztdeploy.report.kit.numbers import decimals_for, short, span, times
from ztdeploy.report.kit.plots.labels import Box, along, beside, spread
from ztdeploy.report.kit.plots.scale import Scale, linear, nice_ticks, padded, steps
from ztdeploy.report.sweep.plots.fidelity import front
from ztdeploy.target.measure.statistics import Interval

FINITE = st.floats(min_value=-1e12, max_value=1e12, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-9)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 48, (0, 10, 20, 30, 40, 50)),
        (1, 2.14, (1, 1.25, 1.5, 1.75, 2, 2.25)),
        (0, 0.31, (0, 0.1, 0.2, 0.3, 0.4)),
        (0, 5, (0, 1, 2, 3, 4, 5)),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@given(FINITE, FINITE)
def test_ticks_enclose_what_they_are_for(first: float, second: float) -> None:
    low, high = sorted((first, second))
    ticks = nice_ticks(low, high)
    room = 1e-6 * max(abs(low), abs(high), 1e-9)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + room
    assert ticks[-1] >= high - room
    assert all(one < two for one, two in itertools.pairwise(ticks))


@given(st.lists(FINITE, min_size=1, max_size=20))
def test_a_scale_keeps_order_and_stays_inside(values: list[float]) -> None:
    scale = linear(values, 240, 20)
    places = [scale(value) for value in values]
    assert all(math.isfinite(place) and 20 - 0.01 <= place <= 240 + 0.01 for place in places)
    assert (scale(scale.low), scale(scale.high)) == pytest.approx((240, 20))
    for one, two in zip(sorted(values), sorted(values)[1:], strict=False):
        assert scale(one) >= scale(two), "y grows upwards"


def test_labels_of_ticks_have_the_decimals_they_need() -> None:
    assert Scale(0, 50, 0, 1, (0, 10, 20)).labels == ("0", "10", "20")
    assert Scale(0, 1, 0, 1, (0, 0.25, 0.5)).labels == ("0.00", "0.25", "0.50")
    assert padded([1.0, 0.9, 0.5], 0, 1).labels == ("0.5", "0.9", "1.0")


def test_one_value_alone_still_has_a_scale() -> None:
    assert padded([0.7], 0, 100)(0.7) == 50
    assert linear([0], 0, 100)(0) == 0


@pytest.mark.parametrize("values", [(1.96, 1.96 + 4e-16), (0.0, 3e-13)])
def test_values_that_hardly_differ_have_a_scale(values: tuple[float, float]) -> None:
    scale = linear(values, 0, 100)
    assert all(0 <= scale(value) <= 100 for value in values)


def test_labels_touch_nothing() -> None:
    area = Box(0, 0, 200, 200)
    points = [(100.0, 100.0, "0.9"), (106.0, 100.0, "0.8"), (100.0, 104.0, "0.7"), (103.0, 102.0, "0.6")]
    placed = beside(points, area)
    assert 1 <= len(placed) <= 4
    assert len({(one.x, one.y) for one in placed}) == len(placed)
    assert beside([(199.0, 100.0, "0.9")], area)[0].anchor == "end", "no room on the right"
    assert beside([(5.0, 5.0, "0.9")], Box(0, 0, 10, 10)) == []
    wall = along([(112.0, 0.0), (112.0, 200.0)])
    assert beside([(100.0, 100.0, "0.9")], area, wall)[0].anchor == "end", "a line is on the right"


@given(st.lists(st.floats(0, 200), min_size=1, max_size=10))
def test_spread_keeps_order_and_distance(places: list[float]) -> None:
    moved = spread(places, 12, 0, 200)
    assert all(0 <= place <= 200 + 1e-9 for place in moved)
    ordered = sorted(moved)
    assert all(two - one >= 12 - 1e-9 for one, two in itertools.pairwise(ordered))
    assert sorted(range(len(places)), key=lambda i: places[i]) == sorted(range(len(places)), key=lambda i: moved[i])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    found = front(points)
    for point in points:
        beaten = any(o != point and o[0] <= point[0] and o[1] <= point[1] for o in points)
        assert (point in found) == (not beaten)
    corners = steps(found)
    assert all(one[0] == two[0] or one[1] == two[1] for one, two in itertools.pairwise(corners))


def test_figures_as_text() -> None:
    assert [short(value) for value in (48.13, 0.01234, 1234.5, 0, None)] == ["48.1", "0.0123", "1234", "0", "-"]
    assert decimals_for([12.3, 1.23, None, 0]) == 2
    narrow = Interval(low=1.004, high=1.2, confidence=0.95)
    assert (times(1.1), times(1.1, narrow), span(narrow), span(None)) == ("1.10x", "1.100x", "1.004 to 1.200", "-")

"""Points and what becomes of them: presets are among them, budgets are kept, nothing is lost in between."""

from __future__ import annotations

import optuna
import pytest
from helpers.ablations import SMALL
from helpers.architectures import DEIT_TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from ztdeploy.core.cost import gmacs, plan_gmacs
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.options import MethodOptions
from ztdeploy.core.plan import plan
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.jobs.tune.space import (
    BEND,
    ITERATIONS,
    Point,
    choose,
    fitted,
    hints,
    latest_first,
    least_cost,
    parameters,
    starts,
)
from ztdeploy.report.tune.records import TUNABLE

DENSE = gmacs(DEIT_TINY, (DEIT_TINY.tokens,) * DEIT_TINY.depth)


def price(schedule: PruningSchedule) -> float:
    return plan_gmacs(DEIT_TINY, plan(schedule, DEIT_TINY))


@pytest.mark.parametrize("keep_ratio", [0.85, 0.758, 0.7])
def test_the_late_preset_is_a_start(keep_ratio: float) -> None:
    preset = default_schedule(keep_ratio, DEIT_TINY, method="novelty-merge")
    found = [fitted(point, DEIT_TINY, price, price(preset)) for point in starts(("novelty-merge",), DEIT_TINY.depth, 7)]
    drops = [[(layer.block, layer.drop) for layer in one.layers] for one in found if one]
    assert [(layer.block, layer.drop) for layer in preset.layers] in drops


POINTS = st.builds(
    Point,
    method=st.sampled_from(TUNABLE),
    first=st.integers(1, 6),
    every=st.integers(0, 2),
    slope=st.floats(-BEND, BEND),
    bend=st.floats(-BEND, BEND),
    tail=st.floats(-BEND, BEND),
    similarity=st.floats(0.1, 1),
    iterations=st.sampled_from(list(ITERATIONS)),
)


@settings(max_examples=60, deadline=None)
@given(POINTS, st.floats(0.65, 0.95))
def test_a_budget_is_kept_and_used(point: Point, share: float) -> None:
    found = fitted(point, DEIT_TINY, price, share * DENSE)
    assert found is not None
    assert share * DENSE * 0.99 < price(found) <= share * DENSE
    assert found.layers[0].block >= point.first


@settings(max_examples=40, deadline=None)
@given(POINTS)
def test_a_point_comes_back_from_its_parameters(point: Point) -> None:
    point = point.model_copy(update={} if "merge" in point.method else {"options": MethodOptions(head_filter=False)})
    if point.method == "novelty-merge":
        point = point.model_copy(update={"similarity": 0.5, "iterations": "default"})
    trial = optuna.trial.FixedTrial(parameters(point, TUNABLE))
    assert choose(trial, TUNABLE, DEIT_TINY.depth, 7) == point


def test_what_cannot_be_kept() -> None:
    assert fitted(Point(method="novelty-merge", first=7), DEIT_TINY, price, 0.3 * DENSE) is None
    least = least_cost(TUNABLE, DEIT_TINY, price, 1)
    assert latest_first(TUNABLE, DEIT_TINY, price, 0.99 * least) == 0
    latest = latest_first(TUNABLE, DEIT_TINY, price, 0.5 * DENSE)
    assert (
        least_cost(TUNABLE, DEIT_TINY, price, latest) <= 0.5 * DENSE < least_cost(TUNABLE, DEIT_TINY, price, latest + 1)
    )


def test_hints_are_points_that_presets_are_not() -> None:
    found = hints(TUNABLE, DEIT_TINY.depth, 7)
    assert {point.method for point in found} == {"novelty-merge"}
    assert not set(map(str, found)) & set(map(str, starts(TUNABLE, DEIT_TINY.depth, 7)))
    for point in found:
        assert choose(optuna.trial.FixedTrial(parameters(point, TUNABLE)), TUNABLE, DEIT_TINY.depth, 7) == point


def test_small_models_have_starts() -> None:
    for point in starts(TUNABLE, SMALL.depth, 3):
        assert 1 <= point.first <= 3

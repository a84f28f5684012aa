"""The statistics of a cascade, against exact fractions and by simulation."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from helpers.errors import refused
from numpy.typing import NDArray

from ztdeploy.core.cascade import CascadeGoal
from ztdeploy.core.errors import ImageError
from ztdeploy.target.adaptive.calibrate import StageAnswers, choose, reported_bound, where_images_end
from ztdeploy.target.adaptive.guarantee import (
    chance_of_at_most,
    fewest_images,
    lower_bound,
    most_failures,
    quantiles,
    threshold_for,
    unlike,
)

LEVEL = Fraction(1, 20)


def exactly(failures: int, images: int, rate: Fraction) -> Fraction:
    """The probability of at most so many failures."""
    return sum((comb(images, k) * rate**k * (1 - rate) ** (images - k) for k in range(failures + 1)), Fraction(0))


@pytest.mark.parametrize(("failures", "images"), [(0, 1), (0, 59), (3, 40), (5, 360), (39, 40), (40, 40)])
def test_bounds_are_those_of_clopper_and_pearson(failures: int, images: int) -> None:
    """At the bound, so few failures have a probability of 5 %."""
    bound = lower_bound(failures, images)
    if failures == images:
        assert bound < 1e-12
        return
    below, above = (Fraction(bound + by).limit_denominator(10**6) for by in (-1e-4, 1e-4))
    assert exactly(failures, images, 1 - below) < LEVEL < exactly(failures, images, 1 - above)
    for rate in (0.001, 0.02, 0.5):
        wanted = float(exactly(failures, images, Fraction(rate).limit_denominator(10**6)))
        assert chance_of_at_most(failures, images, rate) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("agreement", [0.9, 0.95, 0.98, 0.99])
def test_how_many_failures_and_how_few_images_suffice(agreement: float) -> None:
    few = fewest_images(agreement)
    assert (most_failures(few - 1, agreement), most_failures(few, agreement)) == (-1, 0)
    allowed = most_failures(500, agreement)
    assert lower_bound(allowed, 500) >= agreement > lower_bound(allowed + 1, 500)


def test_a_threshold_keeps_as_many_images_as_may_stay() -> None:
    confidence = np.array([0.1, 0.2, 0.3, 0.4, 0.4, 0.5, 0.6], np.float32)
    agrees = np.array([False, True, False, True, False, True, True])

    def failing(threshold: float) -> int:
        return int((~agrees & (confidence >= threshold)).sum())

    for allowed in range(4):
        threshold = threshold_for(confidence, agrees, allowed)
        assert failing(threshold) <= allowed
        lower = confidence[confidence < threshold]
        assert not len(lower) or failing(float(lower.max())) > allowed
    assert threshold_for(confidence, np.zeros(7, np.bool_), 0) > 0.6
    assert threshold_for(confidence, agrees, 3) == pytest.approx(0.1)


def drawn(random: np.random.Generator, images: int, stages: int, steps: int | None) -> StageAnswers:
    """Stages whose images are wrong with a probability that falls with confidence; as many values as there are
    `steps`, so that many images are as confident as others."""
    confidence = random.beta(3, 1, (stages - 1, images))
    if steps is not None:
        confidence = np.ceil(confidence * steps) / steps
    wrong = random.random((stages - 1, images)) < 0.35 * (1 - confidence) + 0.01
    agrees = np.concatenate([~wrong, np.ones((1, images), np.bool_)])
    return StageAnswers(agrees, confidence.astype(np.float32))


def agreement_at(measured: StageAnswers, thresholds: tuple[float, ...]) -> float:
    ends = where_images_end(measured.confidence, thresholds)
    return float(measured.agrees[ends, np.arange(len(ends))].mean())


@pytest.mark.parametrize("goal", [CascadeGoal(agreement=0.97), CascadeGoal(max_rerun=0.3)], ids=["asked", "share"])
@pytest.mark.parametrize(("stages", "steps"), [(2, None), (2, 8), (3, None)])
def test_the_bound_holds_for_thresholds_chosen_on_the_same_images(
    goal: CascadeGoal, stages: int, steps: int | None
) -> None:
    """Of 400 calibrations at most 5 %, and what 400 draws of that may give (binomial, 99.9 %): 34."""
    random = np.random.default_rng(1)
    everything = drawn(random, 200_000, stages, steps)
    known = dict[tuple[float, ...], float]()
    missed = 0
    for _ in range(400):
        some = random.choice(200_000, 150, replace=False)
        measured = StageAnswers(everything.agrees[:, some], everything.confidence[:, some])
        thresholds = choose(measured, goal)
        failures = round(150 * (1 - agreement_at(measured, thresholds)))
        rounded = tuple(round(one, 3) for one in thresholds)  # so that the same need not be counted again
        if rounded not in known:
            known[rounded] = agreement_at(everything, thresholds)
        missed += known[rounded] < reported_bound(failures, 150, goal)
    assert missed <= 34


def test_a_share_of_images_that_may_go_on_is_kept() -> None:
    measured = drawn(np.random.default_rng(2), 500, 2, None)
    ends = where_images_end(measured.confidence, choose(measured, CascadeGoal(max_rerun=0.2)))
    assert (ends == 1).mean() == pytest.approx(0.2)


def test_too_few_images_name_how_many_it_takes() -> None:
    measured = drawn(np.random.default_rng(3), 148, 2, None)
    goal = CascadeGoal(agreement=0.98)
    refused(lambda: choose(measured, goal), "148 images", "at least 149", kind=ImageError)


def confidences(random: np.random.Generator, count: int, sharpness: float) -> NDArray[np.float64]:
    return random.beta(sharpness, 1, count)


def test_images_are_unlike_where_they_are_less_confident() -> None:
    random = np.random.default_rng(4)
    alarms = {5.0: 0, 2.5: 0, 9.0: 0}
    for _ in range(300):
        known = quantiles(confidences(random, 300, 5.0))
        for sharpness in alarms:
            alarms[sharpness] += unlike(confidences(random, 200, sharpness), known, 300)
    assert alarms[5.0] <= 9  # 1 %, and what chance makes of that
    assert alarms[9.0] == 0
    assert alarms[2.5] >= 290

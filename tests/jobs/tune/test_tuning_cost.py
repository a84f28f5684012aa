"""Cost models: multiply-adds are those of the schedule, and a fit finds the times that it was made of."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.ablations import SMALL
from helpers.errors import refused

from ztdeploy.core.cost import plan_gmacs
from ztdeploy.core.errors import InputError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.plan import plan
from ztdeploy.core.schedule import PruningSchedule
from ztdeploy.jobs.tune.cost import block_ms, fit, least_squares, price_of
from ztdeploy.jobs.tune.request import parse_budget
from ztdeploy.report.tune.records import Budget, GmacsCost
from ztdeploy.target.measure.sweep_report import Staircase, TokenStep

STAIRCASE = Staircase(
    image_size=28,
    batch=1,
    threads=1,
    points=tuple(TokenStep(tokens=n, block_ms=0.1 + 0.02 * n) for n in range(2, 51, 2)),
    treads=(),
)


def test_multiply_adds() -> None:
    schedule = default_schedule(0.6, SMALL, method="zero-tprune")
    assert price_of(GmacsCost(), SMALL)(schedule) == plan_gmacs(SMALL, plan(schedule, SMALL))


def test_a_fit_finds_what_times_were_made_of() -> None:
    probes = [
        default_schedule(ratio, SMALL, method="novelty-merge", preset=preset).model_copy(
            update={"name": f"probe-{preset}-{ratio}"}
        )
        for ratio in (0.8, 0.6, 0.5)
        for preset in ("default", "paper")
    ]

    def time(schedule: PruningSchedule) -> float:
        """Written out anew, of a block that takes 0.1 + 0.02 N ms."""
        found = plan(schedule, SMALL)
        blocks = sum(1.2 * (0.1 + 0.02 * tokens) for tokens in found.tokens_per_block)
        return 0.4 + blocks + sum(0.05 + 3e-6 * layer.tokens_in**2 for layer in found.layers)

    times = {one.name: time(one) for one in (PruningSchedule(name="dense"), *probes)}
    found = fit(STAIRCASE, probes, times, ("novelty-merge",), SMALL)
    assert (found.fitted, found.worst_fit) == (7, pytest.approx(0, abs=1e-9))
    other = default_schedule(0.7, SMALL, method="novelty-merge")
    assert price_of(found, SMALL)(other) == pytest.approx(time(other), rel=1e-6)


def test_least_squares_against_another_solver() -> None:
    nnls = pytest.importorskip("scipy.optimize").nnls
    generator = np.random.default_rng(0)
    for _ in range(50):
        features, times = generator.normal(size=(7, 4)), generator.uniform(1, 2, 7)
        expected, _ = nnls(features / times[:, None], np.ones(7))
        assert least_squares(features, times) == pytest.approx(expected, abs=1e-8)


def test_blocks_between_and_below_what_was_measured() -> None:
    assert block_ms(STAIRCASE, 13) == pytest.approx(0.36)
    assert block_ms(STAIRCASE, 50) == pytest.approx(1.1)
    assert 0 < block_ms(STAIRCASE, 1) < block_ms(STAIRCASE, 2)
    rising = STAIRCASE.model_copy(
        update={"points": tuple(TokenStep(tokens=n, block_ms=ms) for n, ms in enumerate((1.0, 3.0, 2.0, 4.0), 1))}
    )
    assert [block_ms(rising, n) for n in (1, 2, 3, 4)] == [1.0, 2.0, 2.0, 4.0], "no time falls as tokens grow"


def test_budgets() -> None:
    assert parse_budget(" gmacs = 3.0") == Budget(kind="gmacs", value=3)
    limits = {text: parse_budget(text).limit(10.0) for text in ("reduction=0.35", "speedup=2", "latency_ms=7")}
    assert limits == {"reduction=0.35": 6.5, "speedup=2": 5, "latency_ms=7": 7}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3.0", "a name and a number"),
        ("gmac=3", "did you mean 'gmacs'"),
        ("gmacs=many", "a number behind"),
        ("reduction=1", "between 0 and 1"),
        ("speedup=1", "above 1"),
        ("latency_ms=nan", "above 0"),
        ("latency_ms=inf", "above 0"),
    ],
)
def test_budgets_that_are_none(text: str, words: str) -> None:
    refused(lambda: parse_budget(text), words, kind=InputError)

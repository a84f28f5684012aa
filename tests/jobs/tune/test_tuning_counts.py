"""Counts learnt by exchange: equal compute, never worse than the start, near the known best, the same each time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from helpers.architectures import DEIT_TINY
from helpers.errors import refused
from numpy.typing import NDArray
from optuna.trial import TrialState

import ztdeploy
from ztdeploy.core.errors import ImageError, InputError
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.model_source import ModelSource
from ztdeploy.core.schedule import Architecture, PruningSchedule
from ztdeploy.host.models.catalogue import ASSETS
from ztdeploy.jobs.tune.cost import price_of
from ztdeploy.jobs.tune.counts import check_counts, exchanges, learn_counts, schedule_with
from ztdeploy.jobs.tune.images import Answers
from ztdeploy.jobs.tune.request import FEWEST_FOR_COUNTS, check_request
from ztdeploy.jobs.tune.search import KL, PRICE, SCHEDULE, Search
from ztdeploy.jobs.tune.space import counts_of, fitted, point_like
from ztdeploy.report.tune.records import Budget, Cost, GmacsCost, LatencyCost, TuneRequest
from ztdeploy.target.measure.sweep_report import Staircase, TokenStep

DIGITS = ASSETS / "digits"
SHARE = 0.65


def price(schedule: PruningSchedule) -> float:
    return price_of(GmacsCost(), DEIT_TINY)(schedule)


def request(**more: Any) -> TuneRequest:
    given = {"budget": Budget(kind="reduction", value=1 - SHARE), "search": "counts", **more}
    return TuneRequest(model=ModelSource(name="vit_digits"), data=DIGITS, **given)


def gmacs_of(drops: NDArray[Any], architecture: Architecture) -> float:
    """Multiply-adds counted matrix by matrix, for a model of one prefix token."""
    d, mlp, total = architecture.embed_dim, architecture.mlp_dim, 0
    left = architecture.patch_tokens - np.concatenate([[0], np.cumsum(drops)])
    for block, tokens in enumerate(1 + left):
        rows = architecture.read_tokens if block == architecture.depth - 1 and architecture.read_tokens else tokens
        total += 3 * tokens * d * d + 2 * rows * tokens * d + rows * d * d + 2 * rows * d * mlp
    ends = architecture.patch_tokens * architecture.patch_dim * d + d * architecture.num_classes
    return float((total + ends) / 1e9)


class KnownLoss:
    """A judge by whom each block's missing tokens cost a known KL, more for some images than for others."""

    def __init__(self, costs: NDArray[np.float64], images: int = 90) -> None:
        self.costs, self.images = costs, images
        self.hard = np.random.default_rng(0).gamma(1.0, 1.0, images)

    def loss(self, drops: NDArray[Any]) -> float:
        missing = np.cumsum(drops) / DEIT_TINY.patch_tokens
        return float(self.costs @ missing**2)

    def images_in(self, share: float) -> int:
        return round(share * self.images)

    def keep_layers(self, schedule: PruningSchedule, images: int) -> None:
        assert len(schedule.layers)
        assert images <= self.images

    def parts(self, schedule: PruningSchedule, images: int | None = None) -> Iterator[Answers]:
        kl = self.hard[:images] * self.loss(np.array(counts_of(schedule, DEIT_TINY.depth)))
        zeros = np.zeros(len(kl), np.int64)
        yield Answers(kl, zeros, zeros, kl.astype(np.float32))

    def lost(self, _best: object) -> None:
        return None


def learnt(costs: NDArray[np.float64], cost: Cost | None = None, **more: Any) -> tuple[Search, list[Any]]:
    subject: Any = SimpleNamespace(request=request(**more), architecture=DEIT_TINY)
    search = Search(subject, cost or GmacsCost())
    vars(search)["judge"] = KnownLoss(costs)
    study = optuna.create_study()
    learn_counts(study, search, lambda _done: None)
    return search, study.get_trials()


def best_of(costs: NDArray[np.float64]) -> float:
    """The lowest loss that any counts have at the budget, by Lagrange's multiplier: blocks are independent."""
    kept = np.arange(1, DEIT_TINY.patch_tokens + 1)
    whole = np.array([[gmacs_of(np.eye(11)[place] * (196 - k), DEIT_TINY) for k in kept] for place in range(11)])
    one = np.stack(
        [whole[place] - (whole[place + 1] if place < 10 else gmacs_of(np.zeros(11), DEIT_TINY)) for place in range(11)]
    )
    dense, low, high = gmacs_of(np.zeros(11), DEIT_TINY), 0.0, 10.0
    for _ in range(60):
        price = (low + high) / 2
        loss = costs[:, None] * ((196 - kept) / 196) ** 2 + price * one
        chosen = kept[loss.argmin(1)]
        spent = dense + sum(one[place, k - 1] for place, k in enumerate(chosen))
        low, high = (low, price) if spent <= SHARE * dense else (price, high)
    assert (np.diff(chosen) <= 0).all(), "tokens that are gone stay gone"
    return float(costs @ ((196 - chosen) / 196) ** 2)


#: By name, what missing tokens cost in each block; such that the best counts of blocks by themselves go together.
FALLING = {
    "late blocks are cheap": np.geomspace(2.0, 0.1, 11),
    "the first block is dear": np.array([3.0, *np.linspace(0.6, 0.5, 10)]),
}


@pytest.mark.parametrize("name", FALLING)
def test_counts_come_near_the_best_there_are(name: str) -> None:
    costs = FALLING[name]
    search, trials = learnt(costs, trials=150)
    complete = [one for one in trials if one.state == TrialState.COMPLETE]
    judge, kls = search.judge, [one.user_attrs[KL] for one in complete]
    assert isinstance(judge, KnownLoss)
    schedules = [PruningSchedule.model_validate(one.user_attrs[SCHEDULE]) for one in complete]
    counts = [np.array(counts_of(one, DEIT_TINY.depth)) for one in schedules]
    found = counts[int(np.argmin(kls))]
    assert best_of(costs) * 0.999 <= judge.loss(found) <= 1.03 * best_of(costs)
    assert judge.loss(found) <= min(judge.loss(one) for one in counts[: len(search.presets())])
    assert search.limit is not None
    for one, trial in zip(counts, complete, strict=True):
        assert gmacs_of(one, DEIT_TINY) == pytest.approx(trial.user_attrs[PRICE], rel=1e-9)
        assert gmacs_of(one, DEIT_TINY) <= search.limit * (1 + 1e-12)
    assert gmacs_of(found, DEIT_TINY) > 0.995 * search.limit


def test_layers_that_take_time_are_few() -> None:
    steps = tuple(TokenStep(tokens=n, block_ms=0.01 * n) for n in (1, 99, 197))
    staircase = Staircase(image_size=224, batch=1, threads=1, points=steps, treads=())
    layers = {}
    for layer_ms in (0.0, 0.5):
        cost = LatencyCost(staircase=staircase, ends_ms=0.0, layer_ms={"novelty-merge": layer_ms})
        search, trials = learnt(FALLING["late blocks are cheap"], cost, trials=60)
        best = min((one for one in trials if one.state == TrialState.COMPLETE), key=lambda one: float(one.value))
        assert search.limit is not None
        assert 0.98 * search.limit < best.user_attrs[PRICE] <= search.limit
        layers[layer_ms] = len(PruningSchedule.model_validate(best.user_attrs[SCHEDULE]).layers)
    assert layers[0.5] < layers[0.0] - 2


def test_the_same_exchanges_each_time() -> None:
    (_, one), (_, other) = (learnt(FALLING["late blocks are cheap"], trials=40) for _ in range(2))
    assert len(one) == 40
    assert [trial.user_attrs[SCHEDULE] for trial in one] == [trial.user_attrs[SCHEDULE] for trial in other]


@pytest.mark.parametrize(
    ("counts", "worth", "stake"),
    [
        ([0, 10, 10, 0], [4.0, 1.0, 2.0, 1.0], 4.0),
        ([30, 0, 0, 1], [9.0, 1.0, np.inf, -1.0], 8.0),
        ([5, 5, 5, 5], [1.0, 1.0, 1.0, 1.0], 8.0),
    ],
)
def test_an_exchange_keeps_the_cost(counts: list[float], worth: list[float], stake: float) -> None:
    """Of what saves the same everywhere, in all ways but the last, whose cost is for others to restore."""
    before, saved = np.array(counts, np.float64), np.ones(4)
    *ways, without = exchanges(before, saved, np.array(worth), stake)
    for after in ways:
        assert (after >= 0).all()
        assert np.abs(after - before).max() <= stake + 1e-9
        assert after.sum() == pytest.approx(before.sum(), abs=0.25)
        assert (after - before) @ np.minimum(np.array(worth), 99.0) <= 0, "from where it is dear to where it is cheap"
    assert np.count_nonzero(without) == np.count_nonzero(before) - 1


def test_counts_become_whole_tokens() -> None:
    like = default_schedule(0.7, DEIT_TINY)
    drops = np.array([0.4, 0.4, 0.4, 99.5, 0, 0, 0, 0, 0, 0, 500])
    found = counts_of(schedule_with(like, drops, 196), 12)
    np.testing.assert_array_equal(found, [0, 1, 0, 100, 0, 0, 0, 0, 0, 0, 94])


@pytest.mark.parametrize("counts", [[0, 1, 0, 30, 22, 26, 17, 19, 15, 10, 0], [195] + [0] * 10, [17] * 11])
def test_counts_come_back_from_their_point(counts: list[int]) -> None:
    like = schedule_with(default_schedule(0.7, DEIT_TINY), np.array(counts, np.float64), 196)
    found = fitted(point_like(like, counts_of(like, 12), DEIT_TINY), DEIT_TINY, price, price(like))
    assert found is not None
    assert counts_of(found, 12) == counts


@pytest.mark.parametrize(
    ("more", "fragments"),
    [
        ({"budget": None}, ["without --budget", "give --budget reduction=0.35"]),
        ({"sampler": "random"}, ["--sampler with --search counts", "leave out --sampler"]),
        ({"workers": 2}, ["--workers with --search counts"]),
        ({"storage": "sqlite:///s.db"}, ["--storage with --search counts"]),
        ({"cascade": 0.9, "budget": None}, ["without --budget"]),
        ({"limit": 100}, ["--limit 100 with --search counts", f"at least {2 * FEWEST_FOR_COUNTS}"]),
    ],
)
def test_what_counts_cannot_be_learnt_with(more: dict[str, Any], fragments: list[str]) -> None:
    refused(lambda: check_request(request(**more)), *fragments, kind=InputError)


def test_too_few_images_are_refused() -> None:
    check_counts(FEWEST_FOR_COUNTS)
    wanted = (f"at least {FEWEST_FOR_COUNTS}, which are {2 * FEWEST_FOR_COUNTS} in all", "give more images to --data")
    refused(lambda: check_counts(FEWEST_FOR_COUNTS - 1), "63 images in the tuning half", *wanted, kind=ImageError)


def test_a_trained_model_learns_counts(tmp_path: Path) -> None:
    """Of the report as everybody gets it; its own study leaves no file."""
    asked = {"budget": "reduction=0.4", "limit": 2 * FEWEST_FOR_COUNTS, "trials": 24, "out": tmp_path / "found"}
    report = ztdeploy.tune("vit_digits", DIGITS, search="counts", **asked)  # type: ignore[arg-type]
    assert report.request.search == "counts"
    assert len(report.trials) <= 24
    complete = [one for one in report.trials if one.state == "complete"]
    least = min(one.kl for one in complete if one.kl is not None)
    starts = [one.kl for one in report.trials if one.start and one.kl is not None]
    assert starts
    assert report.winner.tuned.tuning_kl == pytest.approx(least)
    assert least <= min(starts)
    assert {one.images for one in complete} == {FEWEST_FOR_COUNTS}
    assert any(one.images < FEWEST_FOR_COUNTS for one in report.trials), "blocks are tried on some of the images"
    assert report.winner.tuned.cost <= 0.6 * report.dense_cost < 1.05 * report.winner.tuned.cost
    assert "trials by exchanging counts" in (tmp_path / "found" / "tune.html").read_text(encoding="utf-8")
    assert not (tmp_path / "found" / "study.db").exists()

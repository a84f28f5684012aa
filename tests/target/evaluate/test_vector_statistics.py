"""Cosines, recall and their intervals, against brute force and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers.errors import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from ztdeploy.core.errors import InputError
from ztdeploy.target.evaluate import scoring
from ztdeploy.target.evaluate.answers import VectorAnswers, chosen, joined, keep_answers, kept_answers, spread
from ztdeploy.target.evaluate.scoring import (
    first_hits,
    likeness,
    neighbours,
    overlaps,
    recall_counts,
    recalls,
    with_company,
)
from ztdeploy.target.evaluate.statistics import quantile_interval
from ztdeploy.target.runtime.postprocess import cosines, unit_vectors

seeds = st.integers(0, 10_000)


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(seeds)
def test_a_cosine_is_a_quotient(seed: int) -> None:
    a, b = drawn(2, 3, 4, 5, seed=seed)
    found = cosines(a, b)
    for place in np.ndindex(3, 4):
        one, other = a[place].tolist(), b[place].tolist()
        dot = sum(x * y for x, y in zip(one, other, strict=True))
        expected = dot / math.sqrt(sum(x * x for x in one)) / math.sqrt(sum(x * x for x in other))
        assert found[place] == pytest.approx(expected, abs=1e-12)
    assert (np.abs(cosines(a, 3 * a) - 1) < 1e-12).all()


def test_vectors_of_zeros_and_of_any_size() -> None:
    zero, one = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    assert cosines(zero, one) == 0
    assert cosines(zero, zero) == 1
    assert cosines(one, -one) == -1
    assert cosines(one * 1e30, one * 1e-30) == pytest.approx(1)
    assert np.linalg.norm(unit_vectors(one * np.float32(3e38))) == pytest.approx(1)


def brute_force(queries: Any, gallery: Any, count: int) -> list[list[int]]:
    """By sorting all others, one image at a time."""
    found = []
    for image in range(len(queries)):
        likeness = {other: float(queries[image] @ gallery[other]) for other in range(len(gallery)) if other != image}
        found.append(sorted(likeness, key=lambda other: (-likeness[other], other))[:count])
    return found


@settings(max_examples=30)
@given(seeds, st.integers(2, 40), st.integers(1, 12))
def test_neighbours_are_those_of_a_search_through_all(seed: int, images: int, count: int) -> None:
    queries, gallery = unit_vectors(drawn(2, images, 6, seed=seed))
    count = min(count, images - 1)
    assert neighbours(queries, gallery, count).tolist() == brute_force(queries, gallery, count)


def test_neighbours_do_not_depend_on_how_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit_vectors(drawn(50, 8))
    at_once = neighbours(vectors, vectors, 7)
    monkeypatch.setattr(scoring, "_AT_ONCE", 120)
    assert (neighbours(vectors, vectors, 7) == at_once).all()


def accepted_of(seed: int, images: int) -> list[frozenset[int]]:
    generator = np.random.default_rng(seed)
    return [frozenset(generator.integers(0, 6, generator.integers(1, 3)).tolist()) for _ in range(images)]


@settings(max_examples=30)
@given(seeds, st.integers(12, 40))
def test_recall_and_overlap_are_those_counted_one_by_one(seed: int, images: int) -> None:
    vectors, accepted = unit_vectors(drawn(2, images, 4, seed=seed)), accepted_of(seed, images)
    dense, other = recalls(vectors, accepted, (1, 5, 10), seed=0)
    asking = [i for i in range(images) if any(accepted[i] & accepted[j] for j in range(images) if j != i)]
    dense_near = brute_force(vectors[0], vectors[0], 10)
    rows = [*((0, "own", one) for one in dense), *((1, one.gallery, one) for one in other)]
    assert [(one.gallery, one.k) for _, _, one in rows] == [
        *(("own", k) for k in (1, 5, 10)),
        *(("own", k) for k in (1, 5, 10)),
        *(("dense", k) for k in (1, 5, 10)),
    ]
    for query, gallery, one in rows:
        near = brute_force(vectors[query], vectors[query if gallery == "own" else 0], 10)
        right = [i for i in asking if any(accepted[i] & accepted[j] for j in near[i][: one.k])]
        before = [i for i in asking if any(accepted[i] & accepted[j] for j in dense_near[i][: one.k])]
        assert one.recall is not None
        assert (one.recall.count, one.recall.total) == (len(right), len(asking))
        shared = [len(set(near[i][: one.k]) & set(dense_near[i][: one.k])) / one.k for i in range(images)]
        if query:
            assert one.overlap is not None
            assert one.change is not None
            assert one.overlap.value == pytest.approx(sum(shared) / images)
            assert (one.change.gained, one.change.lost) == (
                len(set(right) - set(before)),
                len(set(before) - set(right)),
            )
        else:
            assert (one.overlap, one.change) == (None, None)


def test_images_without_company_ask_nothing() -> None:
    accepted = [frozenset({0}), frozenset({0, 3}), frozenset({1})]
    assert with_company(accepted).tolist() == [True, True, False]
    assert first_hits(np.array([[2, 1], [0, 2], [0, 1]]), accepted).tolist() == [1, 0, 2]
    assert overlaps(np.array([[1, 2]]), np.array([[2, 0]])).tolist() == [0.5]
    (alone,) = recalls(unit_vectors(drawn(1, 3, 4)), [frozenset({i}) for i in range(3)], (1,), seed=0)
    assert [one.recall for one in alone] == [None]


def test_counts_of_neighbours() -> None:
    assert recall_counts((), 360) == (1, 5, 10)
    assert recall_counts((), 6) == (1, 5)
    assert recall_counts((), 1) == ()
    assert recall_counts((7, 3, 3), 8) == (3, 7)
    refused(lambda: recall_counts((8,), 8), "--recall-at 8 with 8 images", "from 1 to 7", kind=InputError)
    refused(lambda: recall_counts((0,), 8), "--recall-at 0", kind=InputError)
    refused(lambda: recall_counts((1,), 1), "at least 2 images", kind=InputError)


def test_a_quantiles_interval_of_independent_values_is_that_of_order_statistics() -> None:
    """Of independent values the share below a quantile is binomial: 0.05 +- 1.96 sqrt(0.05 * 0.95 / n)."""
    values = np.random.default_rng(1).uniform(size=(4000, 1))
    interval = quantile_interval(values, 0.05)
    reach = 1.96 * math.sqrt(0.05 * 0.95 / 4000)
    assert (interval.low, interval.high) == pytest.approx(
        tuple(np.quantile(values, [0.05 - reach, 0.05 + reach])), abs=1e-4
    )
    one = quantile_interval(np.array([[0.5, 0.75]]), 0.05)
    assert (one.low, one.high) == (0.5, 0.75)


def test_positions_of_one_image_are_not_counted_as_independent() -> None:
    """Every image 100 times over says no more than once."""
    values = np.random.default_rng(2).uniform(size=(500, 1))
    assert quantile_interval(np.repeat(values, 100, axis=1), 0.05).high == pytest.approx(
        quantile_interval(values, 0.05).high, abs=2e-3
    )


def test_how_often_a_quantiles_interval_holds_the_truth() -> None:
    generator = np.random.default_rng(3)
    held = [quantile_interval(generator.uniform(size=(400, 1)), 0.05).contains(0.05) for _ in range(400)]
    assert 0.91 < np.mean(held) < 0.98


def features(images: int = 4, places: int = 9) -> VectorAnswers:
    generator = np.random.default_rng(5)
    return VectorAnswers(
        content=np.zeros((images, 32), np.uint8),
        problem=np.full(images, "", np.str_),
        cosine=generator.uniform(-1, 1, (2, images, places)).astype(np.float32),
        filled=np.stack(
            [np.zeros((images, places), bool), generator.permuted(np.tile(np.arange(9) < 3, (4, 1)), axis=1)]
        ),
        vectors=np.zeros((2, images, 0), np.float32),
        confidence=np.empty((images, 0), np.float32),
    )


def test_features_are_scored_by_position_and_by_what_stands_there() -> None:
    answers = features()
    found = likeness(answers, 1, list("abcd"), seed=0)
    values, filled = answers.cosine[1].astype(float), answers.filled[1]
    assert found.mean.value == pytest.approx(values.mean())
    assert found.p5.value == pytest.approx(np.percentile(values, 5))
    assert found.positions is not None
    assert found.positions.kept is not None
    assert found.positions.filled is not None
    assert found.positions.kept.value == pytest.approx(values[~filled].mean())
    assert found.positions.filled.value == pytest.approx(values[filled].mean())
    assert found.positions.filled_share == pytest.approx(1 / 3)
    place = found.positions.lowest
    assert values["abcd".index(place.image), place.position] == values.min() == found.lowest
    assert found.positions.mean == pytest.approx(values.mean(0))
    assert found.positions.filled_at == pytest.approx(filled.mean(0))
    assert found.furthest[0].image == "abcd"[int(values.mean(1).argmin())]


def test_answers_are_taken_apart_and_kept(tmp_path: Any) -> None:
    answers = features()
    some = chosen(answers, np.array([True, False, True, False]))
    wide = spread(some, ["", "torn", ""])
    assert wide.readable.tolist() == [True, False, True]
    assert (wide.cosine[:, 1] == 0).all()
    assert (wide.cosine[:, [0, 2]] == answers.cosine[:, [0, 2]]).all()
    both = joined([wide, answers])
    assert (len(both), both.cosine.shape) == (7, (2, 7, 9))
    keep_answers(both, tmp_path / "kept.npz")
    again = kept_answers(tmp_path / "kept.npz", VectorAnswers, 2, 7)
    assert again is not None
    assert (again.cosine == both.cosine).all()
    assert kept_answers(tmp_path / "kept.npz", VectorAnswers, 3, 7) is None

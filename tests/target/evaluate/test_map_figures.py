"""Figures of maps, against brute force and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ztdeploy.target.evaluate import maps
from ztdeploy.target.evaluate.answers import MapAnswers, keep_answers, kept_answers, map_answers
from ztdeploy.target.evaluate.maps import compare_maps, ranks
from ztdeploy.target.evaluate.scoring import map_nearness
from ztdeploy.target.runtime.interface import Outputs

seeds = st.integers(0, 10_000)


def drawn(seed: int, channels: int, rows: int = 5, columns: int = 7) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    dense = random.normal(size=(channels, rows, columns)).astype(np.float32) * 2
    return dense, dense + random.normal(size=dense.shape).astype(np.float32)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@given(seeds, st.integers(1, 3), st.sampled_from([0.1, 0.5, 0.9]))
def test_yes_or_no_is_compared_above_a_threshold(seed: int, channels: int, threshold: float) -> None:
    dense, variant = drawn(seed, channels)
    found = compare_maps(dense, variant, "sigmoid", threshold)
    errors, shares = [], []
    for ours, theirs in zip(dense, variant, strict=True):
        pairs = [(sigmoid(a), sigmoid(b)) for a, b in zip(ours.ravel(), theirs.ravel(), strict=True)]
        errors += [abs(a - b) for a, b in pairs]
        either = sum(max(pair) > threshold for pair in pairs)
        if either:
            shares.append(sum(min(pair) > threshold for pair in pairs) / either)
    assert found.error == pytest.approx(sum(errors) / len(errors))
    assert found.iou == pytest.approx(sum(shares) / len(shares) if shares else 1.0)
    assert (found.same, found.rank, found.cosine is None) == (None, None, channels == 1)


@given(seeds, st.integers(2, 6))
def test_classes_are_compared_by_position(seed: int, channels: int) -> None:
    dense, variant = drawn(seed, channels)
    found = compare_maps(dense, variant, "softmax")
    ours, theirs = ([int(np.argmax(one[:, row, column])) for row in range(5) for column in range(7)]
                    for one in (dense, variant))  # fmt: skip
    shares = []
    for which in set(ours):
        pairs = [(a == which, b == which) for a, b in zip(ours, theirs, strict=True)]
        shares.append(sum(map(all, pairs)) / sum(map(any, pairs)))
    assert found.iou == pytest.approx(sum(shares) / len(shares))
    assert found.same == pytest.approx(sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours))
    chances = [np.exp(one) / np.exp(one).sum(0) for one in (dense.astype(float), variant.astype(float))]
    assert found.error == pytest.approx(np.abs(chances[0] - chances[1]).mean())
    lengths = np.linalg.norm(dense, axis=0) * np.linalg.norm(variant, axis=0)
    assert found.cosine == pytest.approx(((dense * variant).sum(0) / lengths).mean(), abs=1e-5)


def places(values: Any) -> list[float]:
    """Ranks by counting."""
    return [float((values < one).sum() + ((values == one).sum() - 1) / 2) for one in values.ravel()]


@given(seeds, st.integers(1, 3))
def test_values_are_compared_within_their_range_and_by_rank(seed: int, channels: int) -> None:
    dense, variant = (np.round(one, 1) for one in drawn(seed, channels))  # with ties
    found = compare_maps(dense, variant, "none")
    errors = [
        np.abs(a.astype(float) - b).mean() / (float(a.max()) - float(a.min()))
        for a, b in zip(dense, variant, strict=True)
    ]
    expected = [np.corrcoef(places(a), places(b))[0, 1] for a, b in zip(dense, variant, strict=True)]
    assert found.error == pytest.approx(np.mean(errors))
    assert found.rank == pytest.approx(np.mean(expected))
    assert (found.iou, found.same) == (None, None)


def test_ranks_of_equal_values_are_averaged() -> None:
    assert ranks(np.array([3.0, 1, 3, 2, 3])).tolist() == [3, 0, 3, 1, 3]


def test_a_large_map_is_ranked_at_some_of_its_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, variant = drawn(1, 1, 60, 60)
    whole = compare_maps(dense, variant, "none").rank
    monkeypatch.setattr(maps, "_RANKED", 1000)
    assert compare_maps(dense, variant, "none").rank == pytest.approx(whole, abs=0.03)


def test_blank_and_constant_maps() -> None:
    blank, some = np.full((1, 4, 4), -9, np.float32), np.full((1, 4, 4), -9, np.float32)
    some[0, 0, 0] = 9
    assert compare_maps(blank, blank, "sigmoid").iou == 1
    assert compare_maps(blank, some, "sigmoid").iou == compare_maps(some, blank, "sigmoid").iou == 0
    flat, zero = np.full((1, 4, 4), 8, np.float32), np.zeros((1, 4, 4), np.float32)
    assert compare_maps(flat, flat + 2, "none").error == 0.25
    assert compare_maps(flat, flat + 2, "none").rank == 1
    assert compare_maps(zero, zero + 2, "none").error == 2
    assert compare_maps(zero, some, "none").rank == 0


@given(arrays.arrays(np.float32, (2, 3, 4), elements=st.floats(-(2.0**126), 2.0**126, width=32)), st.data())
def test_figures_of_finite_maps_are_numbers_and_the_same_map_is_near(dense: Any, data: Any) -> None:
    activation = data.draw(st.sampled_from(["softmax", "sigmoid", "none"]))
    found = compare_maps(dense, dense, activation)
    assert found.error == 0
    assert all(one in (None, 1) for one in (found.iou, found.same))
    assert found.rank in (None, pytest.approx(1))
    other = compare_maps(dense, dense[::-1, ::-1], activation)
    assert all(one is None or math.isfinite(one) for one in dict(other).values())


def test_what_is_kept_of_maps_becomes_means_and_the_worst_images(tmp_path: Any) -> None:
    dense = np.stack([drawn(seed, 1)[0] for seed in range(3)])
    own = dense + np.array([0, 3, 1], np.float32)[:, None, None, None]
    outputs = [Outputs(one, ()) for one in (dense, own)]
    keep_answers(map_answers(outputs, np.zeros((3, 32), np.uint8), "sigmoid", 0.4), tmp_path / "kept.npz")
    answers = kept_answers(tmp_path / "kept.npz", MapAnswers, 2, 3)
    assert answers is not None
    found = map_nearness(answers, 1, ["a", "b", "c"], 0)
    each = [compare_maps(*pair, "sigmoid", 0.4) for pair in zip(dense, own, strict=True)]
    assert found.error.value == pytest.approx(np.mean([one.error for one in each]))
    assert found.iou is not None
    assert found.iou.value == pytest.approx(np.mean([one.iou for one in each]))
    assert (found.rank, found.same) == (None, None)
    assert [one.image for one in found.furthest] == ["b", "c"], "the same map is not among the worst"

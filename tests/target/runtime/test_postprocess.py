"""From raw outputs to classes and patches, against numbers worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ztdeploy.target.runtime.postprocess import (
    chance,
    divergences,
    kept_patches,
    original_tokens,
    probabilities,
    same_answers,
    top_labels,
)

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
LOGITS = arrays.arrays(np.float32, arrays.array_shapes(min_dims=1, max_dims=2, max_side=6), elements=FLOATS)


def softmax(logits):
    return probabilities(logits, "softmax")


def test_softmax_of_known_numbers():
    np.testing.assert_allclose(softmax(np.log([1.0, 2.0, 5.0])), [1 / 8, 2 / 8, 5 / 8])
    np.testing.assert_allclose(softmax(np.array([[0.0, 0.0], [1000.0, 0.0]])), [[0.5, 0.5], [1, 0]])


@settings(deadline=None)
@given(LOGITS)
def test_softmax_sums_to_one_and_keeps_the_order(logits):
    probabilities = softmax(logits)
    assert probabilities.dtype == np.float64
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_allclose(probabilities.sum(-1), 1)
    order = np.argsort(logits, axis=-1, kind="stable")
    assert (np.diff(np.take_along_axis(probabilities, order, -1)) >= 0).all()


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=6), st.floats(-50, 50, width=32))
def test_softmax_does_not_depend_on_an_offset(logits, offset):
    logits = np.array(logits)
    np.testing.assert_allclose(softmax(logits + offset), softmax(logits), rtol=1e-9)


def test_the_best_classes_come_first():
    labels = top_labels(np.log(np.float32([0.2, 0.5, 0.1, 0.2])), ["a", "b", "c", "d"], 3)
    assert [(label.index, label.name) for label in labels] == [(1, "b"), (0, "a"), (3, "d")]
    np.testing.assert_allclose([label.probability for label in labels], [0.5, 0.2, 0.2], rtol=1e-6)


def test_equal_classes_keep_the_order_of_their_indices():
    assert [label.index for label in top_labels(np.zeros(200, np.float32), None, 200)] == list(range(200))


@pytest.mark.parametrize(("top", "count"), [(0, 0), (1, 1), (3, 3), (4, 3), (1000, 3)])
def test_at_most_as_many_classes_as_there_are(top, count):
    assert len(top_labels(np.float32([3, 1, 2]), None, top)) == count


def test_classes_without_names_are_numbered():
    assert top_labels(np.float32([0, 9]), None, 1)[0].name == "class 1"


def test_labels_hold_plain_python_numbers():
    """They become JSON."""
    label = top_labels(np.float32([0, 9]), ["no", "yes"], 1)[0]
    assert (type(label.index), type(label.probability)) == (int, float)


# -------------------- kept tokens

#: Two images; 1 prefix token and 6 patches. Layer 1 keeps 5 of 7 tokens, layer 2 keeps 3 of those 5.
FIRST = np.array([[0, 1, 3, 4, 6], [0, 2, 3, 5, 6]], np.int32)
SECOND = np.array([[0, 2, 4], [0, 1, 2]], np.int32)


def test_indices_are_traced_back_to_the_first_layers_tokens():
    chained = original_tokens([FIRST, SECOND])
    np.testing.assert_array_equal(chained[0], FIRST)
    np.testing.assert_array_equal(chained[1], [[0, 3, 6], [0, 2, 3]])


@pytest.mark.parametrize(
    ("image", "expected"), [(0, ([0, 2, 3, 5], [2, 5])), (1, ([1, 2, 4, 5], [1, 2]))], ids=["first", "second"]
)
def test_kept_patches_leave_prefix_tokens_out(image, expected):
    patches = kept_patches([FIRST, SECOND], image, prefix_tokens=1)
    assert [layer.tolist() for layer in patches] == list(expected)
    assert all(layer.dtype == np.int32 for layer in patches)


@pytest.mark.parametrize("prefix", [0, 2, 5])
def test_any_number_of_prefix_tokens(prefix):
    kept = np.array([[*range(prefix), prefix + 1, prefix + 4]])
    assert kept_patches([kept], 0, prefix)[0].tolist() == [1, 4]


def test_the_dense_model_keeps_nothing_to_speak_of():
    assert original_tokens([]) == []
    assert kept_patches([], 0, 1) == ()


@settings(deadline=None)
@given(st.data())
def test_each_layers_patches_are_among_the_ones_before(data):
    tokens, kept = list(range(data.draw(st.integers(2, 20)))), []
    for _ in range(data.draw(st.integers(1, 4))):
        count = data.draw(st.integers(1, len(tokens)))
        chosen = sorted(data.draw(st.permutations(range(len(tokens))))[:count])
        kept.append(np.array([chosen]))
        tokens = chosen
    layers = original_tokens(kept)
    for before, after in pairwise(layers):
        assert set(after[0]) <= set(before[0])
        assert len(set(after[0])) == after.shape[1]


def test_sigmoid_gives_each_output_a_chance_of_its_own() -> None:
    labels = top_labels(np.float32([-1, 2, 0, 800]), ["a", "b", "c", "d"], 3, "sigmoid")
    assert [label.name for label in labels] == ["d", "b", "c"]
    assert [label.probability for label in labels] == pytest.approx([1, 1 / (1 + np.exp(-2)), 0.5])
    assert [one.name for one in top_labels(np.float32([-1, 2, 0]), ["a", "b", "c"], 3, "sigmoid", threshold=0.6)] == [
        "b"
    ]


def test_values_have_no_probability() -> None:
    labels = top_labels(np.float32([-3.5, 12]), ["x", "y"], 2, "none")
    assert [(label.name, label.probability, label.value) for label in labels] == [("y", None, 12.0), ("x", None, -3.5)]
    assert [chance(label.probability, label.value) for label in labels] == ["12", "-3.5"]
    assert labels[0].plain == {"index": 1, "name": "y", "probability": None, "value": 12.0}


@pytest.mark.parametrize("logit", [8.0, 40.0, 3e38])
def test_nothing_is_ever_said_to_be_certain(logit: float) -> None:
    for activation in ("sigmoid", "softmax"):
        (label,) = top_labels(np.float32([logit, -logit]), None, 1, activation)  # type: ignore[arg-type]
        assert chance(label.probability, label.value) == ">99.9 %"
        assert chance(label.probability, label.value, 0) == ">99 %"


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.float32, (2, 3, 4), elements=st.floats(-300, 300, width=32)))
def test_sigmoids_divergence_is_that_of_softmax_over_yes_and_no(logits: np.ndarray) -> None:
    """Each output by itself is a softmax over its logit and 0."""
    two = np.stack([logits, np.zeros_like(logits)], -1).astype(np.float64)
    expected = divergences(two[0].reshape(-1, 2), two[1].reshape(-1, 2)).reshape(3, 4).mean(-1)
    np.testing.assert_allclose(divergences(logits[0], logits[1], "sigmoid"), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(probabilities(logits, "sigmoid"), softmax(two)[..., 0], rtol=1e-6, atol=1e-300)
    same = (softmax(two)[..., 0] > 0.5)[0] == (softmax(two)[..., 0] > 0.5)[1]
    clear = (np.abs(logits) > 1e-6).all((0, 2))
    assert (same_answers(logits[0], logits[1], "sigmoid") == same.all(-1))[clear].all()

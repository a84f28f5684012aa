"""Half-precision engines against fp32, each on its own choices: what is measured, and how much of it is allowed."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.errors import refused
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ztdeploy.core.errors import ParityError
from ztdeploy.core.manifest import GraphRecord, LayerParity, ParityRecord
from ztdeploy.target.runtime.interface import Outputs
from ztdeploy.target.runtime.parity import (
    DRIFT_FACTOR,
    DRIFT_OVERLAP,
    LOGIT_TOLERANCE,
    Reference,
    _overlap,
    compare_drift,
    measure_drift,
)
from ztdeploy.target.runtime.postprocess import original_tokens

NAME, BLOCKS = "keep-0.70 (board)", (2, 5)
IMAGES, TOKENS, CLASSES = 5, 20, 4
LOGITS = np.linspace(-1, 1, IMAGES * CLASSES, dtype=np.float32).reshape(IMAGES, CLASSES)
#: Every second of 20 tokens, of these every second: 0, 4, 8, ... of the image.
KEPT = (np.tile(np.arange(0, TOKENS, 2), (IMAGES, 1)), np.tile(np.arange(0, 10, 2), (IMAGES, 1)))


def reference(logits=LOGITS, kept=KEPT):
    return Reference(logits, tuple(kept), tuple(np.ones(len(logits)) for _ in kept), replayed=False)


def outputs(logits=LOGITS, kept=KEPT):
    return Outputs(logits.copy(), tuple(layer.copy() for layer in kept))


def off_by(*differences):
    """Logits of which image i is off by the i-th difference."""
    logits = LOGITS.copy()
    logits[: len(differences), 1] += np.asarray(differences, np.float32)
    return outputs(logits)


def graph(precision="fp16", median=None, overlaps=(1.0, 1.0)):
    """A graph's record, with the drift that was seen at build time or none."""
    layers = tuple(
        LayerParity(block=block, identical=0, ties=IMAGES, overlap=overlap)
        for block, overlap in zip(BLOCKS, overlaps, strict=True)
    )
    drift = median is not None and ParityRecord(
        images=IMAGES,
        max_logit_difference=100 * median,
        median_logit_difference=median,
        logit_tolerance=None,
        gap_tolerance=None,
        layers=layers,
        replayed=False,
    )
    return GraphRecord(
        file="graphs/x.onnx",
        opset=20,
        image_input="uint8",
        batch=None,
        precision=precision,
        weights_bytes=0,
        operators={},
        nodes=(),
        drift=drift or None,
    )


def measured(actual, wanted=None):
    return measure_drift(NAME, BLOCKS, actual, wanted or reference())


def compared(actual, record=None, wanted=None):
    return compare_drift(NAME, BLOCKS, actual, wanted or reference(), record or graph())


def failure(actual, *words, record=None, wanted=None):
    return refused(lambda: compared(actual, record, wanted), NAME, *words, kind=ParityError)


# -------------------- indices into the image


def test_indices_lead_back_to_the_image():
    first, second = original_tokens(KEPT)
    np.testing.assert_array_equal(first, KEPT[0])
    np.testing.assert_array_equal(second, np.tile(np.arange(0, TOKENS, 4), (IMAGES, 1)))


def test_without_pruning_layers_there_are_none():
    assert original_tokens(()) == []


@given(st.data())
def test_they_are_the_composition_of_all_choices(data):
    tokens, images = data.draw(st.integers(4, 30)), data.draw(st.integers(1, 3))
    kept, wanted = [], np.tile(np.arange(tokens), (images, 1))
    for _ in range(data.draw(st.integers(1, 4))):
        left = wanted.shape[1]
        count = data.draw(st.integers(1, left))
        rows = [sorted(data.draw(st.permutations(range(left)))[:count]) for _ in range(images)]
        kept.append(np.array(rows, np.int32))
        wanted = np.stack([tokens_of[row] for tokens_of, row in zip(wanted, kept[-1], strict=True)])
        np.testing.assert_array_equal(original_tokens(kept)[-1], wanted)
    assert all((np.diff(layer) > 0).all() for layer in original_tokens(kept))


@given(st.data())
def test_indices_of_a_broken_engine_are_no_crash(data):
    sizes = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    anything = st.integers(-(2**31), 2**31 - 1)
    kept = [data.draw(arrays.arrays(np.int32, (2, size), elements=anything)) for size in sizes]
    assert [layer.shape for layer in original_tokens(kept)] == [(2, size) for size in sizes]


# -------------------- how many are the same


def test_the_overlap_is_the_share_of_the_wanted_tokens():
    kept = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    assert _overlap(kept, kept) == 1
    assert _overlap(kept, np.array([[0, 1, 8, 9], [4, 5, 6, 7]])) == pytest.approx(0.75)
    assert _overlap(kept, kept + 100) == 0


def test_where_nothing_is_compared_nothing_differs():
    assert _overlap(np.empty((0, 4)), np.empty((0, 4))) == 1


@given(st.permutations(range(6)))
def test_order_does_not_matter_to_the_overlap(order):
    kept = np.array([[3, 1, 4, 0, 5, 9]])
    assert _overlap(kept[:, list(order)], kept) == 1


def test_equal_outputs_have_no_drift():
    record = measured(outputs())
    assert (record.images, record.max_logit_difference, record.median_logit_difference) == (IMAGES, 0, 0)
    assert [(one.block, one.identical, one.ties, one.overlap) for one in record.layers] == [(2, 5, 0, 1), (5, 5, 0, 1)]
    assert (record.replayed, record.logit_tolerance, record.gap_tolerance) == (False, None, None)
    assert not record.emulated


def test_drift_is_judged_by_the_median():
    record = measured(off_by(0.5, 0.25, 0.125))
    assert record.max_logit_difference == pytest.approx(0.5)
    assert record.median_logit_difference == pytest.approx(0.125)
    assert record.judged == record.median_logit_difference


def test_an_early_difference_does_not_cascade():
    """Token 0 goes instead of token 2: all that follow it have other positions, and are the same tokens."""
    actual = outputs()
    actual.kept[0][:, :2] = [1, 2]
    actual.kept[0][:, 2:] = np.arange(4, TOKENS, 2)
    record = measured(actual)
    assert [one.identical for one in record.layers] == [0, 0]
    assert [one.overlap for one in record.layers] == [pytest.approx(0.9), pytest.approx(0.8)]
    # One more token in front: positions behind it move by one, the image's tokens do not.
    wanted = (np.array([[0, 1, 2, 3]]), np.array([[1, 2, 3]]))
    shifted = (np.array([[1, 2, 3, 4]]), np.array([[0, 1, 2]]))
    logits = LOGITS[:1]
    record = measure_drift(NAME, BLOCKS, Outputs(logits, shifted), reference(logits, wanted))
    assert [one.overlap for one in record.layers] == [pytest.approx(0.75), 1]
    assert [one.identical for one in record.layers] == [0, 1]


def test_equal_positions_of_other_tokens_are_no_overlap():
    wanted = (np.array([[0, 1, 2, 3]]), np.array([[0, 1]]))
    other = (np.array([[4, 5, 6, 7]]), np.array([[0, 1]]))
    record = measure_drift(NAME, BLOCKS, Outputs(LOGITS[:1], other), reference(LOGITS[:1], wanted))
    assert [one.overlap for one in record.layers] == [0, 0]


def test_the_overlap_is_the_mean_over_the_images():
    actual = outputs()
    actual.kept[0][0] += 1  # odd tokens: none of the wanted
    assert measured(actual).layers[0].overlap == pytest.approx(0.8)
    assert measured(actual).layers[0].identical == 4
    assert measured(actual).layers[0].ties == 1


@given(
    arrays.arrays(np.float32, (IMAGES, CLASSES), elements=st.floats(-10, 10, width=32)),
    arrays.arrays(np.float32, (IMAGES, CLASSES), elements=st.floats(-10, 10, width=32)),
)
def test_drift_is_what_it_says(ours, theirs):
    record = measured(outputs(ours), reference(theirs))
    differences = np.abs(ours - theirs).max(-1)
    assert record.max_logit_difference == pytest.approx(differences.max())
    assert record.median_logit_difference == pytest.approx(np.median(differences))
    assert record.median_logit_difference <= record.max_logit_difference


def test_a_model_without_pruning_has_its_logits_only():
    record = measure_drift("dense", (), Outputs(LOGITS, ()), reference(kept=()))
    assert record.layers == ()
    assert compare_drift("dense", (), Outputs(LOGITS, ()), reference(kept=()), graph()).images == IMAGES


@pytest.mark.parametrize("shape", [(IMAGES, 7), (IMAGES, 9, 7)])
def test_vectors_are_compared_by_their_cosine_and_not_by_class(shape):
    """A largest number is no answer where numbers are no classes."""
    wanted, given_ = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    record = measure_drift("dense", (), Outputs(given_, ()), reference(wanted, kept=()), "embedding")
    dots = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(wanted.reshape(-1, 7), given_.reshape(-1, 7), strict=True)
    ]
    assert record.cosine == pytest.approx(np.mean(dots), abs=1e-6)
    assert (record.agreement, record.kl) == (None, None)
    assert measured(outputs()).cosine is None


# -------------------- what is no number


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["engine", "reference", "both"])
def test_what_is_no_number_fails_at_once(value, where):
    broken = LOGITS.copy()
    broken[3, 2] = value
    actual = outputs(broken if where != "reference" else LOGITS)
    wanted = reference(broken if where != "engine" else LOGITS)
    refused(lambda: measured(actual, wanted), NAME, "logits", "expected numbers", kind=ParityError)
    failure(actual, "logits", wanted=wanted)
    failure(actual, "logits", wanted=wanted, record=graph(median=1e9))


def test_shapes_must_be_those_of_the_reference():
    fewer = Outputs(LOGITS, (KEPT[0][:, 1:], KEPT[1]))
    refused(lambda: measured(fewer), NAME, "(5, 9)", "(5, 10)", kind=ParityError)
    failure(Outputs(LOGITS[:, 1:], KEPT), "(5, 3)")
    failure(Outputs(LOGITS, KEPT[:1]), "kept tokens")


# -------------------- what is allowed


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_without_a_known_drift_the_types_own_bounds_hold(precision):
    allowed = LOGIT_TOLERANCE[precision]
    record = compared(off_by(*IMAGES * [0.9 * allowed]), graph(precision))
    assert record.logit_tolerance == allowed
    assert record.judged == pytest.approx(0.9 * allowed, rel=1e-3)
    failure(
        off_by(*IMAGES * [1.1 * allowed]),
        "logits of the median image",
        f"at most {allowed:.2e}",
        record=graph(precision),
    )


def test_bounds_grow_with_the_logits_and_do_not_shrink():
    for scale, allowed in ((100.0, 3.0), (0.01, 0.03)):
        record = compared(outputs(LOGITS * np.float32(scale)), wanted=reference(LOGITS * np.float32(scale)))
        assert record.logit_tolerance == pytest.approx(allowed)


def test_one_image_far_off_passes():
    record = compared(off_by(50.0, 50.0))
    assert record.max_logit_difference == pytest.approx(50)
    assert record.median_logit_difference == 0


@pytest.mark.parametrize("far", [3, 4, IMAGES])
def test_most_images_far_off_fail(far):
    failure(off_by(*far * [50.0]), "logits of the median image differ by 5.00e+01")


@pytest.mark.parametrize(
    ("median", "allowed"),
    [
        (0.0, LOGIT_TOLERANCE["fp16"]),
        (LOGIT_TOLERANCE["fp16"] / DRIFT_FACTOR / 2, LOGIT_TOLERANCE["fp16"]),
        (0.1, DRIFT_FACTOR * 0.1),
        (2.0, DRIFT_FACTOR * 2.0),
    ],
)
def test_a_graph_that_is_known_to_drift_is_allowed_more(median, allowed):
    known = graph(median=median)
    assert compared(off_by(*IMAGES * [0.95 * allowed]), known).logit_tolerance == pytest.approx(allowed)
    failure(off_by(*IMAGES * [1.05 * allowed]), f"at most {allowed:.2e}", record=known)


@given(st.floats(0, 3), st.floats(0, 3))
def test_the_tolerance_is_the_larger_of_the_two(median, difference):
    allowed, actual = max(LOGIT_TOLERANCE["fp16"], DRIFT_FACTOR * median), off_by(*IMAGES * [difference])
    found = measured(actual).median_logit_difference
    if found > allowed:
        failure(actual, "median image", record=graph(median=median))
    else:
        record = compared(actual, graph(median=median))
        assert record.logit_tolerance == pytest.approx(allowed)
        assert record.median_logit_difference == found


# -------------------- which tokens


def replaced(layer, count):
    """An engine that keeps `count` other tokens of the image at one layer, in every image."""
    actual = outputs()
    actual.kept[layer][:, :count] += 1
    return actual


@pytest.mark.parametrize(("layer", "block", "size"), [(0, 2, 10), (1, 5, 5)])
def test_other_tokens_fail_and_name_the_layer(layer, block, size):
    message = failure(replaced(layer, size), f"blocks.{block}/prune", "at least 0.90")
    assert "logits" not in message


def test_the_first_layer_that_went_wrong_is_named():
    actual = outputs()
    for layer in actual.kept:
        layer += 1
    failure(actual, "blocks.2/prune keeps 0.00 of the reference's tokens")


@pytest.mark.parametrize(
    ("known", "count", "passes"), [(1.0, 1, True), (1.0, 2, False), (0.7, 3, True), (0.7, 5, False)]
)
def test_so_much_less_than_its_graph_may_an_engine_keep(known, count, passes):
    """Of ten tokens; the last layer is left out of it."""
    record = graph(median=0.1, overlaps=(known, DRIFT_OVERLAP))
    actual = replaced(0, count)
    if passes:
        assert compared(actual, record).layers[0].overlap == pytest.approx(1 - count / 10)
    else:
        failure(actual, "blocks.2/prune", f"at least {known - DRIFT_OVERLAP:.2f}", record=record)


def test_a_layer_that_nobody_knows_is_held_to_the_default():
    record = graph(median=0.1)
    assert record.drift is not None
    known = record.drift.model_copy(update={"layers": record.drift.layers[:1]})
    failure(replaced(1, 5), "blocks.5/prune", "at least 0.90", record=record.model_copy(update={"drift": known}))


def test_more_overlap_than_expected_is_fine():
    assert compared(outputs(), graph(median=0.1, overlaps=(0.2, 0.05))).layers[0].overlap == 1


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("index", [-1, TOKENS + 1, 2**31 - 1, -(2**31)])
def test_an_engine_whose_indices_are_out_of_range_fails_by_name(layer, index):
    kept = [one.astype(np.int32) for one in KEPT]
    kept[layer][:] = index
    failure(outputs(kept=kept), f"blocks.{BLOCKS[layer]}/prune", "of the reference's tokens")


def test_no_tokens_of_the_reference_are_invented_for_indices_out_of_range():
    kept = [one.astype(np.int32) for one in KEPT]
    kept[0][:, -1] = TOKENS + 100
    overlaps = [one.overlap for one in measured(outputs(kept=kept)).layers]
    assert overlaps == [pytest.approx(0.9), 1]

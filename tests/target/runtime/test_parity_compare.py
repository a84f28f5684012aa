"""The comparison that decides whether an engine ships: ties pass, anything else fails and is named."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from ztdeploy.core.errors import ParityError
from ztdeploy.target.runtime.interface import Outputs
from ztdeploy.target.runtime.parity import GAP_TOLERANCE, LOGIT_TOLERANCE, Reference, compare

IMAGES, CLASSES, BLOCKS = 3, 4, (2, 5)
LOGITS = np.linspace(-1, 1, IMAGES * CLASSES, dtype=np.float32).reshape(IMAGES, CLASSES)
KEPT = (np.array([[0, 1, 2, 3]] * IMAGES), np.array([[0, 2]] * IMAGES))
WIDE = 0.1  #: a gap at the cut that no rounding bridges
TINY = GAP_TOLERANCE / 10


def reference(*, gaps=(WIDE, WIDE), scale=1.0, replayed=False):
    """A gap per layer, the same for all images unless it is a list."""
    arrays = tuple(np.broadcast_to(np.asarray(gap, np.float64), (IMAGES,)).copy() for gap in gaps)
    return Reference(logits=scale * LOGITS, kept=KEPT, gaps=arrays, replayed=replayed)


def outputs(*, other=(), off_by=0.0, image=0, scale=1.0):
    """What an engine gives that keeps another token of `image` at each (layer, image) of `other`."""
    kept = tuple(layer.copy() for layer in KEPT)
    for layer, changed in other:
        kept[layer][changed, -1] += 7
    logits = scale * LOGITS.copy()
    logits[image, 1] += off_by
    return Outputs(logits, kept)


def failure(actual, wanted):
    with pytest.raises(ParityError) as caught:
        compare("keep-0.70 (cpu)", BLOCKS, actual, wanted)
    message = str(caught.value)
    assert message.startswith("keep-0.70 (cpu)")
    assert len(message.splitlines()) == 1
    return message


def passed(actual, wanted):
    return compare("keep-0.70 (cpu)", BLOCKS, actual, wanted)


# -------------------- what passes


@pytest.mark.parametrize("replayed", [False, True])
def test_equal_outputs_pass(replayed):
    record = passed(outputs(), reference(replayed=replayed))
    assert record.images == IMAGES
    assert record.max_logit_difference == 0
    assert [(layer.block, layer.identical, layer.ties) for layer in record.layers] == [(2, 3, 0), (5, 3, 0)]


def test_the_record_says_what_was_allowed():
    record = passed(outputs(off_by=2e-5), reference())
    assert record.max_logit_difference == pytest.approx(2e-5, rel=0.01)
    assert record.logit_tolerance == LOGIT_TOLERANCE["fp32"]
    assert record.gap_tolerance == GAP_TOLERANCE


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("gap", [0.0, TINY, GAP_TOLERANCE])
def test_another_token_at_a_tie_passes_and_is_counted(gap, replayed):
    record = passed(outputs(other=[(0, 1)]), reference(gaps=([WIDE, gap, WIDE], WIDE), replayed=replayed))
    assert (record.layers[0].identical, record.layers[0].ties) == (2, 1)


def test_behind_a_tie_an_image_is_left_out_where_the_reference_did_not_follow():
    """It went on with other tokens: nothing behind that layer can be compared."""
    actual = outputs(other=[(0, 1), (1, 1)], off_by=5.0, image=1)
    record = passed(actual, reference(gaps=([WIDE, TINY, WIDE], WIDE)))
    assert record.images == 2
    assert [(layer.identical, layer.ties) for layer in record.layers] == [(2, 1), (2, 0)]
    assert record.max_logit_difference == 0


def test_a_tie_at_the_last_layer_leaves_the_image_out_too():
    record = passed(outputs(other=[(1, 2)], off_by=5.0, image=2), reference(gaps=(WIDE, TINY)))
    assert record.images == 2


def test_behind_a_tie_an_image_is_compared_where_the_reference_followed():
    wanted = reference(gaps=([WIDE, TINY, WIDE], WIDE), replayed=True)
    record = passed(outputs(other=[(0, 1)]), wanted)
    assert record.images == IMAGES
    assert "logits" in failure(outputs(other=[(0, 1)], off_by=0.1, image=1), wanted)
    assert "blocks.5/prune" in failure(outputs(other=[(0, 1), (1, 1)]), wanted)


def test_the_tolerance_grows_with_the_logits():
    assert "logits" in failure(outputs(off_by=5e-3), reference())
    record = passed(outputs(off_by=5e-3, scale=100), reference(scale=100))
    assert record.logit_tolerance == pytest.approx(100 * LOGIT_TOLERANCE["fp32"])


def test_the_tolerance_does_not_shrink_with_small_logits():
    assert passed(outputs(scale=1e-3), reference(scale=1e-3)).logit_tolerance == LOGIT_TOLERANCE["fp32"]


@pytest.mark.parametrize(("off", "passes"), [(0.14, True), (0.16, False)])
def test_the_median_image_may_be_off_by_three_times_as_much_as_the_graphs(off, passes):
    """Below fp32, where one image alone may be off by more."""
    actual, wanted = Outputs(LOGITS + np.float32(off), KEPT), reference(replayed=True)
    graph = compare("graph", BLOCKS, Outputs(LOGITS + np.float32(0.05), KEPT), wanted, "int8")
    if passes:
        record = compare("engine", BLOCKS, actual, wanted, "int8", graph=graph)
        assert record.median_logit_difference == pytest.approx(off, rel=1e-3)
    else:
        with pytest.raises(ParityError, match=r"engine: logits of the median image differ by 1\.60e-01; .* 1\.50e-01"):
            compare("engine", BLOCKS, actual, wanted, "int8", graph=graph)
    one_off = LOGITS.copy()
    one_off[0, 0] += 0.19
    assert compare("one", BLOCKS, Outputs(one_off, KEPT), wanted, "int8", graph=graph).median_logit_difference == 0


def test_the_dense_model_is_compared_by_its_logits_alone():
    record = compare("dense", (), Outputs(LOGITS, ()), Reference(LOGITS, (), (), replayed=False))
    assert record.layers == ()
    assert record.images == IMAGES


# -------------------- what fails


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize(("layer", "block"), [(0, 2), (1, 5)])
def test_another_token_where_the_choice_was_clear_fails_and_names_the_layer(layer, block, replayed):
    message = failure(outputs(other=[(layer, 1), (layer, 2)]), reference(replayed=replayed))
    assert f"blocks.{block}/prune" in message
    assert "2 of 3 images" in message
    assert "1.0e-01" in message


def test_the_first_layer_that_went_wrong_is_named():
    assert "blocks.2/prune" in failure(outputs(other=[(0, 0), (1, 0)]), reference())


def test_just_above_the_tolerance_is_no_tie():
    gap = np.nextafter(GAP_TOLERANCE, 1)
    assert "blocks.2/prune" in failure(outputs(other=[(0, 0)]), reference(gaps=(gap, WIDE)))


def test_an_unknown_gap_is_no_tie():
    assert "blocks.2/prune" in failure(outputs(other=[(0, 0)]), reference(gaps=(np.nan, WIDE)))


def test_a_tie_in_one_image_excuses_no_other():
    wanted = reference(gaps=([TINY, WIDE, WIDE], WIDE))
    assert "1 of 3 images" in failure(outputs(other=[(0, 0), (0, 1)]), wanted)


def test_a_tie_at_one_layer_excuses_no_other_image_at_the_next():
    wanted = reference(gaps=([TINY, WIDE, WIDE], WIDE))
    assert "blocks.5/prune" in failure(outputs(other=[(0, 0), (1, 1)]), wanted)


@pytest.mark.parametrize("gap", [np.inf, np.nan, [np.inf, np.nan, WIDE], [np.nan, WIDE, np.inf]])
def test_a_gap_that_was_not_measured_is_no_number(gap):
    said = failure(outputs(other=[(0, 0), (0, 1), (0, 2)]), reference(gaps=(gap, WIDE)))
    assert "for 3 of 3 images" in said
    assert not re.search(r"\b(inf|nan)\b", said)
    measured = np.isfinite(gap).any()
    assert (f"smallest gap {WIDE:.1e}" if measured else "no gap was measured: the layer compared no scores") in said


@pytest.mark.parametrize("wrong", [2e-4, 1.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("replayed", [False, True])
def test_logits_out_of_tolerance_fail(wrong, replayed):
    message = failure(outputs(off_by=wrong), reference(replayed=replayed))
    assert "logits" in message
    assert "1.00e-04" in message


def test_logits_that_are_all_nan_fail():
    assert "logits" in failure(Outputs(np.full_like(LOGITS, np.nan), KEPT), reference())


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("both", [False, True])
def test_a_reference_that_overflowed_vouches_for_nothing(value, both):
    """An infinite logit would make the tolerance infinite."""
    logits = LOGITS.copy()
    logits[1, 2] = value
    wanted = Reference(logits, KEPT, reference().gaps, replayed=True)
    assert "logits" in failure(Outputs(logits.copy() if both else LOGITS, KEPT), wanted)


def test_nothing_left_to_compare_fails():
    wanted = reference(gaps=(TINY, WIDE))
    assert "every image is a tie" in failure(outputs(other=[(0, 0), (0, 1), (0, 2)]), wanted)


def test_one_image_that_is_no_tie_is_enough():
    record = passed(outputs(other=[(0, 0), (0, 1)]), reference(gaps=(TINY, WIDE)))
    assert record.images == 1


@pytest.mark.parametrize("kept", [(KEPT[0][:, :-1], KEPT[1]), (KEPT[0][:-1], KEPT[1]), KEPT[:1]])
def test_outputs_of_another_shape_fail(kept):
    with pytest.raises(ParityError):
        compare("keep-0.70 (cpu)", BLOCKS, Outputs(LOGITS, kept), reference())


def test_logits_of_another_shape_fail():
    with pytest.raises(ParityError, match="logits"):
        compare("keep-0.70 (cpu)", BLOCKS, Outputs(LOGITS[:, :-1], KEPT), reference())


class TestMerging:
    """Where tokens are merged, it matters also into which slots."""

    INTO = tuple(np.zeros((len(LOGITS), 2), np.int32) for _ in KEPT)

    def test_the_same_slots_pass_and_others_are_named(self) -> None:
        wanted = replace(reference(), into=self.INTO)
        assert compare("tome", BLOCKS, Outputs(LOGITS, KEPT, self.INTO), wanted).layers[0].identical == len(LOGITS)
        other = (self.INTO[0], self.INTO[1].copy())
        other[1][0, 1] = 1
        with pytest.raises(ParityError, match=rf"blocks\.{BLOCKS[1]}/prune"):
            compare("tome", BLOCKS, Outputs(LOGITS, KEPT, other), wanted)

    def test_an_engine_without_them_is_refused(self) -> None:
        with pytest.raises(ParityError, match="shapes"):
            compare("tome", BLOCKS, Outputs(LOGITS, KEPT), replace(reference(), into=self.INTO))

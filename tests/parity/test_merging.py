"""Merging, and the methods that merge, against the NumPy twin written from the paper's text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import reference_merging as reference
from helpers.models import images, layer_plan, tiny_vit
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ztdeploy.models.vit import VitAdapter
from ztdeploy.pruning import pruning_layer
from ztdeploy.pruning.layer import BlockTaps, Choice, Recorder
from ztdeploy.pruning.merging import merge_tokens, slot_of
from ztdeploy.pruning.pruned_model import PrunedModel
from ztdeploy.pruning.selection import complement
from ztdeploy.schedule import default_schedule

SETTINGS = settings(deadline=None, max_examples=60)
CLEAR = 1e-9
seeds = st.integers(0, 2**32 - 1)


class TestParts:
    @given(st.data())
    def test_the_complement_is_what_is_left(self, data: st.DataObject) -> None:
        tokens = data.draw(st.integers(1, 40))
        chosen = data.draw(st.lists(st.integers(0, tokens - 1), unique=True, max_size=tokens))
        left = complement(torch.tensor([chosen], dtype=torch.int64), tokens)
        assert left.tolist() == [[token for token in range(tokens) if token not in chosen]]

    @given(st.data())
    def test_a_tokens_slot_is_its_place_among_those_that_stay(self, data: st.DataObject) -> None:
        tokens = data.draw(st.integers(1, 20))
        gone = data.draw(st.lists(st.integers(0, tokens - 1), unique=True, max_size=tokens - 1))
        stay = [token for token in range(tokens) if token not in gone]
        slots = slot_of(torch.tensor([stay]), torch.tensor([gone], dtype=torch.int64))
        assert slots.tolist() == [list(range(len(stay)))]

    @SETTINGS
    @given(seed=seeds, tokens=st.integers(2, 16), sized=st.booleans(), data=st.data())
    def test_any_choice_is_merged_as_by_loops(self, seed: int, tokens: int, sized: bool, data: st.DataObject) -> None:
        kept = sorted(data.draw(st.sets(st.integers(0, tokens - 1), min_size=1, max_size=tokens)))
        slots = st.integers(-1, len(kept) - 1)
        into = data.draw(st.lists(slots, min_size=tokens - len(kept), max_size=tokens - len(kept)))
        generator = np.random.default_rng(seed)
        x = generator.normal(size=(tokens, 3))
        size = generator.integers(1, 9, tokens).astype(np.float64) if sized else np.ones(tokens)
        choice = Choice(torch.tensor([kept]), torch.tensor([into], dtype=torch.int64))
        weight = torch.tensor(size[None]) if sized else None
        ours, ours_size = merge_tokens(torch.tensor(x[None]), choice, complement(choice.kept, tokens), weight)
        theirs, theirs_size = reference.merged(x, size, kept, into)
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(ours_size[0], theirs_size)
        if -1 not in into:
            assert ours_size.sum() == size.sum()
            np.testing.assert_allclose(ours_size[0] @ ours[0].double(), size @ x, atol=1e-9)

    def test_a_large_slot_stays_in_the_range_of_half_precision(self) -> None:
        x = torch.full((1, 197, 2), 60000.0, dtype=torch.float16)
        choice = Choice(torch.tensor([[0]]), torch.zeros(1, 196, dtype=torch.int64))
        tokens, size = merge_tokens(x, choice, complement(choice.kept, 197), None)
        assert size.item() == 197
        assert tokens.isfinite().all()


class TestToMe:
    @SETTINGS
    @given(
        seed=seeds,
        prefix=st.sampled_from([0, 1, 2, 5]),
        patches=st.integers(2, 17),
        heads=st.integers(1, 4),
        data=st.data(),
    )
    def test_merges_whom_the_twin_merges(
        self, seed: int, prefix: int, patches: int, heads: int, data: st.DataObject
    ) -> None:
        count = data.draw(st.integers(1, patches // 2))
        keys = np.random.default_rng(seed).normal(size=(2, heads, prefix + patches, 4))
        record, taps = Recorder(), BlockTaps(None, torch.tensor(keys))
        layer = pruning_layer("tome", layer_plan(patches, patches - count, prefix=prefix))
        choice = layer(torch.zeros(2, prefix + patches, 3, dtype=torch.float64), taps, record).choice
        for image in range(2):
            expected = reference.tome(keys[image], prefix=prefix, count=count)
            np.testing.assert_allclose(record.smallest_gap(2)[image], expected.margin, atol=1e-12)
            if expected.margin < CLEAR:
                event("inconclusive: a decision within rounding")
                continue
            assert choice.kept[image].tolist() == expected.kept
            assert choice.into[image].tolist() == expected.into

    def test_ties_go_to_the_first_pair_and_the_first_partner(self) -> None:
        keys = torch.zeros(1, 2, 9, 4)
        keys[..., 0] = 1.0
        choice = pruning_layer("tome", layer_plan(8, 6))(torch.zeros(1, 9, 2), BlockTaps(None, keys)).choice
        assert choice.kept.tolist() == [[0, 1, 3, 5, 6, 7, 8]]  # 2 and 4 are gone
        assert choice.into.tolist() == [[1, 1]]

    @pytest.mark.parametrize("keep_ratio", [0.8, 0.5])
    def test_through_a_whole_model_sizes_add_up_and_the_class_token_stands_for_itself(self, keep_ratio: float) -> None:
        model = tiny_vit()
        adapter = VitAdapter(model, 32)
        wrapped = PrunedModel(adapter, default_schedule(keep_ratio, adapter.architecture, method="tome"))
        seen = []
        for layer in wrapped.layers:
            layer.register_forward_hook(lambda _module, _inputs, reduction: seen.append(reduction))
        with torch.no_grad():
            wrapped(images(3))
        assert len(seen) == 4
        for reduction in seen:
            assert (reduction.size.sum(1) == 17).all()
            assert (reduction.size[:, 0] == 1).all()
            assert (reduction.choice.into > 0).all()
        assert seen[-1].size.max() > 1

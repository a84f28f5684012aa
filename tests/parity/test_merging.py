"""Merging, and the methods that merge, against the NumPy twin written from the paper's text."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import reference_merging as reference
from helpers.models import images, layer_plan, random_attention, tiny_vit
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ztdeploy.core import plan as core_plan
from ztdeploy.core.keep_ratio import default_schedule
from ztdeploy.core.options import MethodOptions
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning import novelty_merge, pruning_layer
from ztdeploy.host.pruning.layer import BlockTaps, Choice, Recorder
from ztdeploy.host.pruning.merging import Averages, coherence_of, slot_of
from ztdeploy.host.pruning.pruned_model import PrunedModel
from ztdeploy.host.pruning.selection import complement
from ztdeploy.host.pruning.zero_tprune_merge import ZeroTPruneMerge

SETTINGS = settings(deadline=None, max_examples=60)
CLEAR = 1e-9
seeds = st.integers(0, 2**32 - 1)
#: Of a random image, and how it is drawn.
SIZES = {"seed": seeds, "prefix": st.sampled_from([0, 1, 2, 5]), "patches": st.integers(2, 17)}


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
        weight = torch.tensor(size[None, :, None]) if sized else None
        averages = Averages(torch.tensor(x[None]), choice, complement(choice.kept, tokens), weight)
        ours, ours_size = averages.of(torch.tensor(x[None])), averages.total[..., 0]
        theirs, theirs_size = reference.merged(x, size, kept, into)
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(ours_size[0], theirs_size)
        if -1 not in into:
            assert ours_size.sum() == size.sum()
            np.testing.assert_allclose(ours_size[0] @ ours[0].double(), size @ x, atol=1e-9)

    def test_a_large_slot_stays_in_the_range_of_half_precision(self) -> None:
        x = torch.full((1, 197, 2), 60000.0, dtype=torch.float16)
        choice = Choice(torch.tensor([[0]]), torch.zeros(1, 196, dtype=torch.int64))
        averages = Averages(x, choice, complement(choice.kept, 197), None)
        assert averages.total.item() == 197
        assert averages.of(x).isfinite().all()


class TestToMe:
    @SETTINGS
    @given(
        **SIZES,
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
            assert (reduction.size[:, 0, 0] == 1).all()
            assert (reduction.choice.into > 0).all()
        assert seen[-1].size.max() > 1


class TestZeroTPruneMerge:
    @SETTINGS
    @given(
        seed=seeds,
        prefix=st.sampled_from([0, 1, 2]),
        patches=st.integers(3, 17),
        options=st.builds(
            MethodOptions,
            partner=st.sampled_from(["tokens", "keys"]),
            least_similarity=st.sampled_from([None, 0.0, 0.4]),
        ),
        data=st.data(),
    )
    def test_each_that_goes_joins_the_most_similar_that_stays(
        self, seed: int, prefix: int, patches: int, options: MethodOptions, data: st.DataObject
    ) -> None:
        kept_patches = data.draw(st.integers(1, patches - 1))
        drop = data.draw(st.integers(0, min(patches // 2, patches - kept_patches)))
        plan = layer_plan(patches, kept_patches, prefix=prefix, similarity_drop=drop, iterations=3)
        generator = np.random.default_rng(seed)
        attention = random_attention(generator, 2, 3, plan.tokens_in)
        keys, tokens = (generator.normal(size=(2, 3, plan.tokens_in, 4)) for _ in range(2))
        x = torch.tensor(tokens[:, 0])
        taps, layer = BlockTaps(torch.tensor(attention), torch.tensor(keys)), ZeroTPruneMerge(plan, options)
        choice = layer(x, taps).choice
        plain = pruning_layer("zero-tprune", plan)
        assert torch.equal(choice.kept, plain(x, taps).choice.kept)
        for image in range(2):
            kept = choice.kept[image].tolist()
            compared = keys[image] if options.partner == "keys" else tokens[image, :1]  # as those of a single head
            into, margin = reference.join_most_similar(compared, kept, prefix=prefix, least=options.least_similarity)
            if margin < CLEAR:
                event("inconclusive: two partners within rounding")
                continue
            assert choice.into[image].tolist() == into

    def test_by_default_tokens_themselves_are_compared(self) -> None:
        layer = pruning_layer("zero-tprune-merge", layer_plan(4, 3))
        assert isinstance(layer, ZeroTPruneMerge)
        assert layer.options.partner == "tokens"
        assert not layer.needs_keys, "the importance stage alone reads none either"

    @pytest.mark.parametrize("feature", ["keys", "all-keys", "tokens"])
    def test_similarity_may_be_of_other_features(self, feature: Any) -> None:
        """Token 4 resembles token 1 in one way, token 2 in another, and token 3 in a third."""
        plan = layer_plan(4, 3, prefix=1, iterations=1)
        attention = torch.full((1, 2, 5, 5), 0.2375)
        attention[..., 4] = 0.05
        keys = torch.zeros(1, 2, 5, 3)
        keys[0, :, 4] = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        keys[0, :, 1] = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]])  # the same on average
        keys[0, :, 2] = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.5]])  # nearly the same head by head
        keys[0, :, 3] = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
        x = torch.eye(5).unsqueeze(0).clone()
        x[0, 3] = x[0, 4]
        choice = ZeroTPruneMerge(plan, MethodOptions(partner=feature))(x, BlockTaps(attention, keys)).choice
        assert choice.kept.tolist() == [[0, 1, 2, 3]]
        assert choice.into.tolist() == [[{"keys": 1, "all-keys": 2, "tokens": 3}[feature]]]


class TestNoveltyMerge:
    @SETTINGS
    @given(
        **SIZES,
        sized=st.booleans(),
        powers=st.sampled_from([(1.0, 1.0, 2.0), (0.2, 1.0, 1.0), (0.5, 0.0, 3.0), (1.5, 0.7, 2.5)]),
        band=st.sampled_from([1, 4, 256]),
        many=st.booleans(),
        data=st.data(),
    )
    def test_who_would_be_missed_least_goes(
        self,
        seed: int,
        prefix: int,
        patches: int,
        sized: bool,
        powers: tuple[float, float, float],
        band: int,
        many: bool,
        data: st.DataObject,
    ) -> None:
        """Of many tokens, sums of channels are compared to decide who goes, and whole tokens to decide where to."""
        plan = layer_plan(patches, data.draw(st.integers(1, patches - 1)), prefix=prefix)
        generator = np.random.default_rng(seed)
        attention = random_attention(generator, 2, 3, plan.tokens_in)
        x = generator.normal(size=(2, plan.tokens_in, 128 if many else 4))
        compared = x[..., :64] + x[..., 64:] if many else x
        size = generator.integers(1, 9, (2, plan.tokens_in)).astype(np.float64) if sized else None
        taps = BlockTaps(torch.tensor(attention), None, size=None if size is None else torch.tensor(size[..., None]))
        names = ("importance_power", "size_power", "distance_power")
        options = MethodOptions(**dict(zip(names, powers, strict=True)))
        few = mock.patch.object(core_plan, "MANY_TOKENS", 1 if many else 800)
        with few, mock.patch.object(novelty_merge, "_BAND", band):
            layer, record = pruning_layer("novelty-merge", plan, options), Recorder()
            choice = layer.double()(torch.tensor(x), taps, record).choice
        for image in range(2):
            sizes = np.ones(plan.tokens_in) if size is None else size[image]
            kept, margin = reference.novelty(
                compared[image],
                attention[image],
                sizes,
                prefix=prefix,
                class_token=plan.class_token,
                keep=plan.tokens_out,
                powers=powers,
            )
            if margin < CLEAR:
                event("inconclusive: two scores within rounding")
                continue
            assert choice.kept[image].tolist() == kept
            into, margin = reference.join_most_similar(x[image][None], kept, prefix=prefix)
            if margin >= CLEAR:
                assert choice.into[image].tolist() == into
            noted = record.notes
            assert set(noted["group"][image].tolist()) == set(range(plan.tokens_in)) - set(kept)
            assert noted["survivors"][image].nonzero().flatten().tolist() == kept

    def test_without_importance_a_smaller_token_goes_into_a_larger_one_and_attention_is_not_read(self) -> None:
        """Tokens 1 and 2 are twins, as are 3 and 4; token 5 is alone."""
        x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0], [-1.0, -1.0]]])
        layer = pruning_layer("novelty-merge", layer_plan(5, 3), MethodOptions(importance_power=0.0))
        assert not layer.needs_attention
        for size, kept in (([1, 1, 3, 5, 2, 1], [0, 2, 3, 5]), ([1, 2, 1, 1, 2, 1], [0, 1, 4, 5])):
            choice = layer(x, BlockTaps(None, None, size=torch.tensor(size).float().view(1, -1, 1))).choice
            assert choice.kept.tolist() == [kept]
        assert {*layer(x, BlockTaps(None, None)).choice.kept[0].tolist()} >= {0, 5}, "of twins, one goes"

    @pytest.mark.parametrize("sized", [False, True])
    def test_averages_are_weighed_by_importance_and_sizes_are_not(self, sized: bool) -> None:
        plan, generator = layer_plan(12, 6), np.random.default_rng(3)
        attention = random_attention(generator, 1, 3, plan.tokens_in)
        x = generator.normal(size=(1, plan.tokens_in, 4))
        size = generator.integers(1, 9, (1, plan.tokens_in)).astype(np.float64) if sized else np.ones((1, 13))
        taps = BlockTaps(torch.tensor(attention), None, size=torch.tensor(size[..., None]) if sized else None)
        layer = pruning_layer("novelty-merge", plan, MethodOptions(average_power=0.7)).double()
        found = layer(torch.tensor(x), taps)
        weight = size[0] * np.array(reference.importance_of(attention[0], class_token=True)) ** 0.7
        kept, into = (part[0].tolist() for part in found.choice.tensors)
        np.testing.assert_allclose(found.tokens[0], reference.merged(x[0], weight, kept, into)[0])
        np.testing.assert_allclose(found.size[0, :, 0], reference.merged(x[0], size[0], kept, into)[1])

    def test_a_twin_goes_before_a_token_that_is_alone_and_matters_less(self) -> None:
        """Ranked by importance alone, token 4 would go."""
        attention = torch.full((1, 1, 5, 5), 0.2)
        attention[..., 1:] = torch.tensor([0.3, 0.25, 0.2, 0.05])
        x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [-1.0, -1.0]]])
        choice = pruning_layer("novelty-merge", layer_plan(4, 3))(x, BlockTaps(attention, None)).choice
        assert choice.kept.tolist() == [[0, 1, 3, 4]]
        assert choice.into.tolist() == [[1]]


class TestCoherence:
    def test_an_average_is_as_coherent_as_it_is_long(self) -> None:
        """Two at a right angle keep 1 / sqrt(2) of their length; a third one like their mean then adds to it."""
        x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]])
        choice, gone = Choice(torch.tensor([[0, 2]]), torch.tensor([[0]])), torch.tensor([[1]])
        averages = Averages(x, choice, gone, None)
        tokens = averages.of(x)
        coherence = coherence_of(x, None, tokens, averages)
        torch.testing.assert_close(coherence, torch.tensor([[[0.5**0.5], [1.0]]]))
        again, last = Choice(torch.tensor([[0]]), torch.tensor([[0]])), torch.tensor([[1]])
        averages = Averages(tokens, again, last, averages.total)
        merged = coherence_of(tokens, coherence, averages.of(tokens), averages)
        torch.testing.assert_close(merged, torch.tensor([[[0.5**0.5 / ((2 + 0.5**0.5) / 3)]]]))

    def test_opposites_and_nothing_at_all_stay_finite(self) -> None:
        x = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]])
        averages = Averages(x, Choice(torch.tensor([[0, 2]]), torch.tensor([[0]])), torch.tensor([[1]]), None)
        coherence = coherence_of(x, None, averages.of(x), averages)
        assert coherence.isfinite().all()
        assert (coherence > 0).all()

    @pytest.mark.parametrize(
        ("method", "scaled"), [("novelty-merge", True), ("zero-tprune-merge", True), ("tome", False)]
    )
    def test_it_is_the_option_that_decides(self, method: str, scaled: bool) -> None:
        plan = layer_plan(6, 4)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 7, 4, generator=generator)
        taps = BlockTaps(torch.full((1, 2, 7, 7), 1 / 7), torch.randn(1, 2, 7, 3, generator=generator))
        reduction = pruning_layer(method, plan)(x, taps)
        assert (reduction.scale is not None) is scaled
        if scaled:
            torch.testing.assert_close(reduction.scale**2, reduction.coherence)
            off = pruning_layer(method, plan, MethodOptions(coherent=False))(x, taps)
            assert off.scale is off.coherence is None
            assert torch.equal(off.tokens, reduction.tokens)


class TestEVit:
    @SETTINGS
    @given(seed=seeds, prefix=st.sampled_from([1, 2]), patches=st.integers(2, 12), data=st.data())
    def test_the_rest_is_fused_by_attention(self, seed: int, prefix: int, patches: int, data: st.DataObject) -> None:
        kept_patches = data.draw(st.integers(1, patches - 1))
        generator = np.random.default_rng(seed)
        attention = random_attention(generator, 2, 3, prefix + patches)
        x = generator.normal(size=(2, prefix + patches, 3))
        layer = pruning_layer("evit", layer_plan(patches, kept_patches, prefix=prefix))
        reduction = layer(torch.tensor(x), BlockTaps(torch.tensor(attention), None))
        assert reduction.size is reduction.bias is None
        for image in range(2):
            scores = np.mean([head[0] for head in attention[image]], axis=0)
            order = sorted(range(prefix, prefix + patches), key=lambda token: (-scores[token], token))
            alone, fused = [*range(prefix), *order[: kept_patches - 1]], order[kept_patches - 1 :]
            assert reduction.choice.kept[image].tolist() == sorted([*alone, fused[0]])
            for slot, token in enumerate(sorted([*alone, fused[0]])):
                members = fused if token == fused[0] else [token]
                mean = sum(scores[m] * x[image, m] for m in members) / sum(scores[m] for m in members)
                np.testing.assert_allclose(reduction.tokens[image, slot], mean, rtol=1e-6, atol=1e-9)


class TestAts:
    @SETTINGS
    @given(seed=seeds, prefix=st.sampled_from([1, 2]), patches=st.integers(2, 12), data=st.data())
    def test_tokens_that_samples_hit_stay_and_the_best_of_the_others_fill_up(
        self, seed: int, prefix: int, patches: int, data: st.DataObject
    ) -> None:
        samples = data.draw(st.integers(1, patches - 1))
        generator, tokens = np.random.default_rng(seed), prefix + patches
        attention = random_attention(generator, 1, 3, tokens)
        values = generator.normal(size=(1, 3, tokens, 4)) * generator.uniform(0.1, 5, (1, 1, tokens, 1))
        layer = pruning_layer("ats", layer_plan(patches, samples, prefix=prefix))
        taps, record = BlockTaps(torch.tensor(attention), None, torch.tensor(values)), Recorder()
        kept = layer(torch.zeros(1, tokens, 3), taps, record).choice.kept[0].tolist()
        if record.smallest_gap(1).item() < CLEAR:
            event("inconclusive: a decision within rounding")
            return
        scores = np.array(
            [
                sum(attention[0, head, 0, token] * np.linalg.norm(values[0, head, token]) for head in range(3))
                for token in range(prefix, tokens)
            ]
        )
        cumulative = np.cumsum(scores / scores.sum())
        hits = {int(np.argmax(cumulative >= (number - 0.5) / samples)) for number in range(1, samples + 1)}
        others = sorted(set(range(patches)) - hits, key=lambda token: (-scores[token], token))
        expected = sorted([*hits, *others[: samples - len(hits)]])
        assert kept == [*range(prefix), *(prefix + token for token in expected)]

    def test_a_flat_distribution_is_sampled_evenly(self) -> None:
        layer = pruning_layer("ats", layer_plan(12, 4, prefix=1))
        taps = BlockTaps(torch.full((1, 2, 13, 13), 1 / 13), None, torch.ones(1, 2, 13, 4))
        assert layer(torch.zeros(1, 13, 2), taps).choice.kept.tolist() == [[0, 2, 5, 8, 11]]

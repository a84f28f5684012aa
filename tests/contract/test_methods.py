"""What every pruning method promises, whichever it is; a new line in the table is tested by existing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import (
    IMAGE_SIZE,
    VARIANTS,
    images,
    layer_plan,
    pruned,
    random_attention,
    schedule,
    tiny_vit,
    variant,
)
from torch import Tensor, nn

from ztdeploy.errors import ScheduleError
from ztdeploy.models.vit import VitAdapter
from ztdeploy.pruning import METHODS, check_method, pruning_layer
from ztdeploy.pruning.layer import BlockTaps, PruningLayer, Recorder
from ztdeploy.pruning.pruned_model import CHILD, PrunedModel
from ztdeploy.schedule import LayerPlan, LayerSpec, uniform_schedule

BATCH, HEADS, WIDTH, EMBED = 3, 2, 5, 6

#: Every combination that the layers treat differently: prefix, class token, and which stage drops.
PLANS: dict[str, LayerPlan] = {
    "both stages": layer_plan(12, 7, prefix=1, similarity_drop=3, iterations=5),
    "only importance": layer_plan(12, 7, prefix=1, iterations=2),
    "only similarity": layer_plan(12, 7, prefix=1, similarity_drop=5),
    "no prefix": layer_plan(12, 7, prefix=0, similarity_drop=2),
    "two prefix tokens": layer_plan(12, 7, prefix=2, similarity_drop=2),
    "registers": layer_plan(12, 7, prefix=5, class_token=True, similarity_drop=2),
    "registers without class token": layer_plan(12, 7, prefix=4, class_token=False, similarity_drop=2),
    "one token left": layer_plan(13, 1, prefix=1, similarity_drop=6),
    "one token dropped": layer_plan(9, 8, prefix=1),
    "two tokens": layer_plan(2, 1, prefix=0, similarity_drop=1),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest) -> LayerPlan:
    return PLANS[request.param]


def tokens_of(plan: LayerPlan, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, plan.tokens_in, EMBED, generator=generator)


def taps_for(layer: PruningLayer, plan: LayerPlan, *, seed: int = 0) -> BlockTaps:
    """What the layer asked for, and nothing else."""
    generator = np.random.default_rng(seed)
    attention = torch.tensor(random_attention(generator, BATCH, HEADS, plan.tokens_in), dtype=torch.float32)
    keys = torch.tensor(generator.normal(size=(BATCH, HEADS, plan.tokens_in, WIDTH)), dtype=torch.float32)
    return BlockTaps(attention if layer.needs_attention else None, keys if layer.needs_keys else None)


class TestLayer:
    def test_counts_are_static_and_indices_ascend_from_the_prefix_on(self, method: str, plan: LayerPlan) -> None:
        layer, x = pruning_layer(method, plan), tokens_of(plan)
        for seed in range(3):
            tokens, kept = layer(x, taps_for(layer, plan, seed=seed))
            assert tokens.shape == (BATCH, plan.tokens_out, EMBED)
            assert kept.shape == (BATCH, plan.tokens_out)
            assert kept.dtype == torch.int64
            assert (kept[:, : plan.prefix_tokens] == torch.arange(plan.prefix_tokens)).all()
            assert (kept[:, 1:] > kept[:, :-1]).all()
            assert kept.min() >= 0
            assert kept.max() < plan.tokens_in

    def test_kept_tokens_are_rows_of_the_input(self, method: str, plan: LayerPlan) -> None:
        layer, x = pruning_layer(method, plan), tokens_of(plan)
        tokens, kept = layer(x, taps_for(layer, plan))
        for image in range(BATCH):
            assert torch.equal(tokens[image], x[image][kept[image]])

    def test_the_same_input_gives_the_same_output(self, method: str, plan: LayerPlan) -> None:
        first, second = pruning_layer(method, plan), pruning_layer(method, plan)
        x, taps = tokens_of(plan), taps_for(first, plan)
        torch.manual_seed(0)
        tokens, kept = first(x, taps)
        torch.manual_seed(1)
        for again in (first(x, taps), second(x, taps)):
            assert torch.equal(again[0], tokens)
            assert torch.equal(again[1], kept)

    def test_nothing_that_was_given_is_written_to(self, method: str, plan: LayerPlan) -> None:
        layer, x = pruning_layer(method, plan), tokens_of(plan)
        taps = taps_for(layer, plan)
        before = [value.clone() for value in (x, taps.attention, taps.keys) if value is not None]
        layer(x, taps)
        after = [value for value in (x, taps.attention, taps.keys) if value is not None]
        assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))

    def test_forced_tokens_are_kept_and_the_own_choice_is_told(self, method: str, plan: LayerPlan) -> None:
        layer, x = pruning_layer(method, plan), tokens_of(plan)
        taps = taps_for(layer, plan)
        _, own = layer(x, taps)
        everybody = range(plan.prefix_tokens, plan.tokens_in)
        others = [  # whoever was dropped comes first
            sorted(everybody, key=lambda token: token in own[image].tolist())[: plan.tokens_out - plan.prefix_tokens]
            for image in range(BATCH)
        ]
        forced = torch.tensor([[*range(plan.prefix_tokens), *sorted(chosen)] for chosen in others])
        assert not torch.equal(forced, own)
        tokens, told = layer(x, taps, None, forced)
        assert torch.equal(told, own)
        assert torch.equal(tokens, torch.stack([x[image][forced[image]] for image in range(BATCH)]))

    def test_gradients_reach_the_kept_tokens_and_no_others(self, method: str, plan: LayerPlan) -> None:
        layer, x = pruning_layer(method, plan), tokens_of(plan).requires_grad_()
        tokens, kept = layer(x, taps_for(layer, plan))
        tokens.sum().backward()
        expected = torch.zeros(BATCH, plan.tokens_in).scatter(1, kept, 1.0)
        assert x.grad is not None
        assert torch.equal(x.grad, expected.unsqueeze(-1).expand_as(x))

    def test_recording_changes_nothing_and_leaves_a_gap_per_image(self, method: str, plan: LayerPlan) -> None:
        layer, x, record = pruning_layer(method, plan), tokens_of(plan), Recorder()
        taps = taps_for(layer, plan)
        assert torch.equal(layer(x, taps, record)[1], layer(x, taps)[1])
        gap = record.smallest_gap(BATCH)
        assert gap.shape == (BATCH,)
        assert (gap >= 0).all()
        assert bool(record.gaps) is layer.needs_attention
        assert gap.isfinite().all() or not record.gaps

    def test_a_layer_adds_nothing_to_a_checkpoint(self, method: str, plan: LayerPlan) -> None:
        layer = pruning_layer(method, plan)
        assert not layer.state_dict()
        assert not list(layer.parameters())


class TestTable:
    def test_an_unknown_method_is_refused_with_the_nearest_known_one(self) -> None:
        with pytest.raises(ScheduleError, match="did you mean 'zero-tprune'"):
            check_method("zerotprune")
        with pytest.raises(ScheduleError, match="choose from"):
            pruning_layer("zzz", PLANS["both stages"])


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """All that attaching could leave behind."""
    return {
        "modules": [(name, type(module)) for name, module in model.named_modules()],
        "hooks": {
            name: counts
            for name, module in model.named_modules()
            if any(counts := tuple(len(getattr(module, kind)) for kind in HOOKS))
        },
        "fused": [block.attn.fused_attn for block in model.blocks],
        "own": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "keys": list(model.state_dict()),
        "buffers": [name for name, _ in model.named_buffers()],
    }


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class TestPrunedModel:
    @pytest.mark.parametrize("name", VARIANTS)
    def test_at_keep_1_it_is_the_untouched_model_bit_by_bit(self, method: str, name: str) -> None:
        model, x = variant(name), images(3)
        before = fingerprint(model)
        with torch.no_grad():
            expected = model(x)
            wrapped = PrunedModel(VitAdapter(model, IMAGE_SIZE), uniform_schedule(1.0, 4, method=method))
            assert wrapped.layers == []
            assert fingerprint(model) == before
            output, *kept = wrapped(x)
        assert kept == []
        assert torch.equal(output, expected)

    def test_a_layer_that_would_keep_all_is_not_emitted(self, method: str) -> None:
        model, x = tiny_vit(), images(2)
        layers = (LayerSpec(block=1, keep_ratio=1.0), LayerSpec(block=2, keep_ratio=0.99))
        with torch.no_grad():
            expected = model(x)
            wrapped = pruned(model, method, *layers)
            assert wrapped.layers == []
            assert torch.equal(wrapped(x)[0], expected)

    @pytest.mark.parametrize("name", VARIANTS)
    def test_the_blocks_see_the_planned_token_counts(self, method: str, name: str) -> None:
        model, seen = variant(name), []
        wrapped = pruned(model, method)
        for block in model.blocks:
            block.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[1]))
        with torch.no_grad():
            output, *kept = wrapped(images(2))
        prefix = VARIANTS[name][1]
        assert tuple(seen) == wrapped.token_plan.tokens_per_block == (16 + prefix,) * 2 + (12 + prefix, 8 + prefix)
        assert output.shape == (2, 7)
        assert output.isfinite().all()
        assert [tuple(indices.shape) for indices in kept] == [(2, 12 + prefix), (2, 8 + prefix)]

    @pytest.mark.parametrize("name", VARIANTS)
    def test_it_is_the_model_cut_and_pruned_by_hand(self, method: str, name: str) -> None:
        """The blocks run one by one, the kept rows picked out between them."""
        model, x = variant(name), images(3)
        wrapped = pruned(model, method)
        with torch.no_grad():
            output, *kept = wrapped(x)
        wrapped.detach()
        by_block = dict(zip((1, 2), kept, strict=True))
        with torch.no_grad():
            tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
            for index, block in enumerate(model.blocks):
                tokens = block(tokens)
                if index in by_block:
                    tokens = torch.stack([tokens[image][by_block[index][image]] for image in range(3)])
            expected = model.forward_head(model.norm(tokens))
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)

    def test_only_pruned_blocks_give_up_fused_attention_and_only_where_it_is_needed(self, method: str) -> None:
        model = tiny_vit(depth=6)
        assert all(block.attn.fused_attn for block in model.blocks)
        wrapped = pruned(model, method, LayerSpec(block=2, keep_ratio=0.7), LayerSpec(block=5, keep_ratio=0.7))
        needed = wrapped.layers[0].needs_attention
        assert [block.attn.fused_attn for block in model.blocks] == [True, not needed, True, True, not needed, True]

    @pytest.mark.parametrize("name", VARIANTS)
    def test_detach_leaves_the_model_as_it_was(self, method: str, name: str) -> None:
        model, x = variant(name), images(2)
        model.blocks[1].attn.fused_attn = False  # somebody's own choice, which is not ours to change
        before = fingerprint(model)
        parameters = {key: value.clone() for key, value in model.state_dict().items()}
        with torch.no_grad():
            expected = model(x)
            wrapped = pruned(model, method)
            assert fingerprint(model) != before
            assert hasattr(model.blocks[1], CHILD)
            assert list(model.state_dict()) == before["keys"], "an attached layer would change checkpoints"
            wrapped(x)
            wrapped.detach()
            assert fingerprint(model) == before
            assert torch.equal(model(x), expected)
        assert wrapped.layers == []
        assert all(torch.equal(value, parameters[key]) for key, value in model.state_dict().items())
        wrapped.detach()  # a second time does no harm
        assert fingerprint(model) == before

    def test_leaving_a_with_block_detaches_also_after_an_error(self, method: str) -> None:
        model = tiny_vit()
        before = fingerprint(model)
        wrong_size = torch.zeros(1, 3, IMAGE_SIZE + 1, IMAGE_SIZE)
        with pytest.raises(AssertionError, match="Input height"), pruned(model, method) as wrapped:
            wrapped(wrong_size)
        assert fingerprint(model) == before

    def test_one_model_can_be_pruned_one_way_after_another(self, method: str) -> None:
        model, x = tiny_vit(), images(2)
        with pruned(model, method) as wrapped, torch.no_grad():
            first = wrapped(x)
        with pruned(model, "slice", LayerSpec(block=1, keep_ratio=0.5)):
            pass
        with pruned(model, method) as wrapped, torch.no_grad():
            second = wrapped(x)
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))

    def test_a_forward_pass_leaves_nothing_for_the_next(self, method: str) -> None:
        wrapped = pruned(tiny_vit(), method)
        with torch.no_grad():
            first, _, again = wrapped(images(2)), wrapped(images(5, seed=1)), wrapped(images(2))
        assert len(again) == 3
        assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))

    def test_gradients_flow_through_the_pruned_model_to_every_parameter(self, method: str) -> None:
        model = variant("registers")
        output, *_ = pruned(model, method)(images(2))
        output.square().sum().backward()
        missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert missing == []
        assert model.pos_embed.grad.abs().sum() > 0

    def test_replaying_the_own_choice_is_the_forward_pass(self, method: str) -> None:
        wrapped, x = pruned(tiny_vit(), method), images(3)
        with torch.no_grad():
            output, *kept = wrapped(x)
        for replay in (wrapped.replay(x), wrapped.replay(x, kept)):
            assert torch.equal(replay.output, output)
            assert all(torch.equal(*pair) for pair in zip(replay.kept, kept, strict=True))
            assert len(replay.records) == 2
        with torch.no_grad():  # and it leaves nothing forced behind
            assert torch.equal(wrapped(images(3, seed=1))[0], wrapped(images(3, seed=1))[0])

    def test_replaying_another_choice_compares_each_layer_on_identical_input(self, method: str) -> None:
        """A first layer that is overruled changes what the second one sees, and so does the output."""
        model, x = tiny_vit(), images(3)
        wrapped = pruned(model, method)
        with torch.no_grad():
            output, first, second = wrapped(x)
        other = torch.arange(17)[-12:]
        forced = torch.cat([torch.zeros(3, 1, dtype=torch.int64), other.expand(3, -1)], 1)
        assert not torch.equal(forced, first)
        replay = wrapped.replay(x, [forced, second])
        assert torch.equal(replay.kept[0], first)
        assert not torch.allclose(replay.output, output)

        wrapped.detach()
        with torch.no_grad():
            tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
            tokens = model.blocks[1](model.blocks[0](tokens))[torch.arange(3)[:, None], forced]
            tokens = model.blocks[2](tokens)[torch.arange(3)[:, None], second]
            expected = model.forward_head(model.norm(model.blocks[3](tokens)))
        torch.testing.assert_close(replay.output, expected, rtol=1e-5, atol=1e-5)

    def test_an_unknown_method_leaves_the_model_untouched(self) -> None:
        model = tiny_vit()
        before = fingerprint(model)
        with pytest.raises(ScheduleError):
            PrunedModel(VitAdapter(model, IMAGE_SIZE), schedule("zero-prune"))
        assert fingerprint(model) == before


class TestTaps:
    """The attention matrix and the keys are those of the block that has just run."""

    @pytest.mark.parametrize("name", VARIANTS)
    def test_are_what_the_block_computes(self, name: str) -> None:
        model, x = variant(name), images(2)
        wrapped = pruned(model, "zero-tprune")
        seen: list[BlockTaps] = []
        tokens_in: list[Tensor] = []
        wrapped.layers[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1]))
        model.blocks[1].register_forward_pre_hook(lambda _module, inputs: tokens_in.append(inputs[0]))
        with torch.no_grad():
            wrapped(x)
            block = model.blocks[1]
            normed = block.norm1(tokens_in[0])
            batch, tokens, _ = normed.shape
            qkv = block.attn.qkv(normed).view(batch, tokens, 3, 3, 16)
            query, key = (qkv[:, :, part].transpose(1, 2) for part in (0, 1))
            query, key = block.attn.q_norm(query), block.attn.k_norm(key)
            attention = (query @ key.transpose(-1, -2) / 16**0.5).softmax(-1)
        assert seen[0].attention is not None
        assert seen[0].keys is not None
        torch.testing.assert_close(seen[0].attention, attention)
        torch.testing.assert_close(seen[0].keys, key)
        torch.testing.assert_close(seen[0].attention.sum(-1), torch.ones(2, 3, tokens))

    def test_attention_is_tapped_before_dropout_in_training(self) -> None:
        model = tiny_vit(attn_drop_rate=0.5).train()
        wrapped = pruned(model, "zero-tprune")
        seen: list[BlockTaps] = []
        for layer in wrapped.layers:
            layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1]))
        wrapped(images(2))
        for taps in seen:
            assert taps.attention is not None
            assert (taps.attention > 0).all()

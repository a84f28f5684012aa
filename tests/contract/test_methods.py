"""What every pruning method promises, whichever it is; a new line in the table is tested by existing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.architectures import DEIT_S
from helpers.models import (
    IMAGE_SIZE,
    VARIANTS,
    fits,
    images,
    layer_of,
    layer_plan,
    pruned,
    random_attention,
    schedule,
    takes,
    tiny_vit,
    variant,
)
from helpers.reference_merging import ints, merged
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ztdeploy.core.cost import pruning_gmacs
from ztdeploy.core.errors import ModelError, ScheduleError
from ztdeploy.core.keep_ratio import default_schedule, uniform_schedule
from ztdeploy.core.methods import METHODS, method_named
from ztdeploy.core.names import PRUNE
from ztdeploy.core.options import DEFAULT_OPTIONS, MethodOptions
from ztdeploy.core.plan import LayerPlan, plan
from ztdeploy.core.schedule import LayerSpec
from ztdeploy.host.models.vit import VitAdapter
from ztdeploy.host.pruning import pruning_layer
from ztdeploy.host.pruning.layer import BlockTaps, Choice, PruningLayer, Recorder
from ztdeploy.host.pruning.pruned_model import PrunedModel

BATCH, HEADS, WIDTH, EMBED = 3, 2, 5, 8

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


MERGING = [method for method in METHODS if METHODS[method].merges]
#: Others weigh in their own way, or drop tokens as well: tests compare them with twins, see test_rivals.py,
#: test_merging.py, test_trained_layers.py and test_attention_scores.py.
OWN_AVERAGES = ("evit", "mctf", "diffrate", "tofu", "ppt", "dtps", "etps", "sp-vit", "heatvit")
BY_SIZE = [method for method in MERGING if method not in OWN_AVERAGES]
DROPPING = [method for method in METHODS if method not in MERGING]
#: Others change what the head reads as well: see test_trained_layers.py.
ONLY_DROPPING = [method for method in DROPPING if not METHODS[method].reads_blocks]
#: Every method in every situation that it can be in.
PAIRS = [(method, name) for method in METHODS for name in PLANS if takes(method, PLANS[name])]
MODELS = [(method, name) for method in METHODS for name in VARIANTS if fits(method, name)]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pairs(methods: list[str]) -> pytest.MarkDecorator:
    chosen = [(method, PLANS[name]) for method, name in PAIRS if method in methods]
    names = [f"{method}-{name}" for method, name in PAIRS if method in methods]
    return pytest.mark.parametrize(("method", "plan"), chosen, ids=names)


def models(methods: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("method", "name"), [pair for pair in MODELS if pair[0] in methods])


def tokens_of(plan: LayerPlan, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, plan.tokens_in, EMBED, generator=generator)


def taps_for(layer: PruningLayer, plan: LayerPlan, *, seed: int = 0, sized: bool = False) -> BlockTaps:
    """What the layer asked for, and nothing else."""
    generator = np.random.default_rng(seed)
    attention = torch.tensor(random_attention(generator, BATCH, HEADS, plan.tokens_in), dtype=torch.float32)
    keys = torch.tensor(generator.normal(size=(BATCH, HEADS, plan.tokens_in, WIDTH)), dtype=torch.float32)
    size = torch.tensor(generator.integers(1, 6, (BATCH, plan.tokens_in, 1)), dtype=torch.float32) if sized else None
    values = torch.tensor(generator.normal(size=keys.shape), dtype=torch.float32)
    return BlockTaps(
        attention if layer.needs_attention else None,
        keys if layer.needs_keys else None,
        values if layer.needs_values else None,
        size,
    )


def run_pruned(method: str, name: str) -> tuple[Any, Tensor, Tensor, list[Tensor]]:
    """A model, the tokens of images that enter its first block, and what it gives for them pruned: output, choices."""
    model, x = variant(name), images(3)
    wrapped = pruned(model, method)
    with torch.no_grad():
        output, *choices = wrapped(x)
        wrapped.detach()
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))
    return model, tokens, output, choices


@pairs(list(METHODS))
class TestLayer:
    def test_counts_are_static_and_indices_ascend_from_the_prefix_on(self, method: str, plan: LayerPlan) -> None:
        layer, x = layer_of(method, plan, EMBED, HEADS), tokens_of(plan)
        for seed in range(3):
            reduction = layer(x, taps_for(layer, plan, seed=seed))
            kept = reduction.choice.kept
            assert reduction.tokens.shape == (BATCH, plan.tokens_out, EMBED)
            assert kept.shape == (BATCH, plan.tokens_out)
            assert kept.dtype == torch.int64
            assert (kept[:, : plan.prefix_tokens] == torch.arange(plan.prefix_tokens)).all()
            assert (kept[:, 1:] > kept[:, :-1]).all()
            assert kept.min() >= 0
            assert kept.max() < plan.tokens_in

    def test_the_same_input_gives_the_same_output(self, method: str, plan: LayerPlan) -> None:
        first, second = layer_of(method, plan, EMBED, HEADS), layer_of(method, plan, EMBED, HEADS)
        x, taps = tokens_of(plan), taps_for(first, plan)
        torch.manual_seed(0)
        expected = first(x, taps)
        torch.manual_seed(1)
        for again in (first(x, taps), second(x, taps)):
            assert torch.equal(again.tokens, expected.tokens)
            assert all(torch.equal(*pair) for pair in zip(again.choice.tensors, expected.choice.tensors, strict=True))

    def test_nothing_that_was_given_is_written_to(self, method: str, plan: LayerPlan) -> None:
        layer, x = layer_of(method, plan, EMBED, HEADS), tokens_of(plan)
        taps = taps_for(layer, plan, sized=True)
        given = [value for value in (x, taps.attention, taps.keys, taps.values, taps.size) if value is not None]
        before = [value.clone() for value in given]
        layer(x, taps)
        assert all(torch.equal(*pair) for pair in zip(before, given, strict=True))

    def test_a_forced_choice_is_applied_and_the_own_choice_is_told(self, method: str, plan: LayerPlan) -> None:
        layer, x = layer_of(method, plan, EMBED, HEADS), tokens_of(plan)
        taps = taps_for(layer, plan)
        own = layer(x, taps).choice
        everybody = range(plan.prefix_tokens, plan.tokens_in)
        others = [  # whoever was dropped comes first
            sorted(everybody, key=lambda token: token in own.kept[image].tolist())[
                : plan.tokens_out - plan.prefix_tokens
            ]
            for image in range(BATCH)
        ]
        kept = torch.tensor([[*range(plan.prefix_tokens), *sorted(chosen)] for chosen in others])
        assert not torch.equal(kept, own.kept)
        into = None if own.into is None else torch.full_like(own.into, plan.tokens_out - 1)
        reduction = layer(x, taps, None, Choice(kept, into))
        assert all(torch.equal(*pair) for pair in zip(reduction.choice.tensors, own.tensors, strict=True))
        if into is None:
            assert torch.equal(reduction.tokens, torch.stack([x[image][kept[image]] for image in range(BATCH)]))
        else:  # all that go, go into the last slot
            assert torch.equal(reduction.tokens[:, :-1], torch.stack([x[i][kept[i]] for i in range(BATCH)])[:, :-1])
            same = torch.equal(reduction.tokens, layer(x, taps).tokens)
            assert not same or plan.tokens_in == 2  # where either goes into the other, the mean is the same

    def test_recording_changes_nothing_and_leaves_a_gap_per_image(self, method: str, plan: LayerPlan) -> None:
        layer, x, record = layer_of(method, plan, EMBED, HEADS), tokens_of(plan), Recorder()
        taps = taps_for(layer, plan)
        told, untold = layer(x, taps, record).choice, layer(x, taps).choice
        assert all(torch.equal(*pair) for pair in zip(told.tensors, untold.tensors, strict=True))
        gap = record.smallest_gap(BATCH)
        assert gap.shape == (BATCH,)
        assert (gap >= 0).all()
        assert bool(record.gaps) is METHODS[method].decides_by_image
        assert gap.isfinite().all() or not record.gaps or method in MERGING

    def test_a_layer_adds_nothing_to_a_checkpoint(self, method: str, plan: LayerPlan) -> None:
        layer = layer_of(method, plan, EMBED, HEADS)
        assert not layer.state_dict()
        assert not list(layer.parameters())


@pairs(DROPPING)
class TestDropping:
    def test_kept_tokens_are_rows_of_the_input(self, method: str, plan: LayerPlan) -> None:
        layer, x = layer_of(method, plan, EMBED, HEADS), tokens_of(plan)
        reduction = layer(x, taps_for(layer, plan))
        for image, kept in enumerate(reduction.choice.kept):
            assert torch.equal(reduction.tokens[image], x[image][kept])

    def test_nothing_is_left_of_the_others(self, method: str, plan: LayerPlan) -> None:
        layer, x = layer_of(method, plan, EMBED, HEADS), tokens_of(plan)
        reduction = layer(x, taps_for(layer, plan))
        assert reduction.choice.into is None
        assert reduction.size is None
        assert reduction.bias is None

    def test_gradients_reach_the_kept_tokens_and_no_others(self, method: str, plan: LayerPlan) -> None:
        layer, x = layer_of(method, plan, EMBED, HEADS), tokens_of(plan).requires_grad_()
        reduction = layer(x, taps_for(layer, plan))
        reduction.tokens.sum().backward()
        expected = torch.zeros(BATCH, plan.tokens_in).scatter(1, reduction.choice.kept, 1.0)
        assert x.grad is not None
        assert torch.equal(x.grad, expected.unsqueeze(-1).expand_as(x))


@pytest.mark.parametrize("sized", [False, True])
@pairs(BY_SIZE)
class TestMerging:
    def test_every_token_that_goes_has_a_slot_and_none_is_a_prefix_tokens(
        self, method: str, plan: LayerPlan, sized: bool
    ) -> None:
        layer, x = layer_of(method, plan, EMBED, HEADS), tokens_of(plan)
        for seed in range(3):
            into = layer(x, taps_for(layer, plan, seed=seed, sized=sized)).choice.into
            assert into.shape == (BATCH, plan.tokens_in - plan.tokens_out)
            assert into.dtype == torch.int64
            assert into.min() >= plan.prefix_tokens
            assert into.max() < plan.tokens_out

    def test_slots_are_weighted_means_as_computed_by_loops(self, method: str, plan: LayerPlan, sized: bool) -> None:
        layer, x = layer_of(method, plan, EMBED, HEADS), tokens_of(plan)
        taps = taps_for(layer, plan, sized=sized)
        reduction = layer(x, taps)
        size = torch.ones(BATCH, plan.tokens_in, 1) if taps.size is None else taps.size
        for image in range(BATCH):
            choice = (ints(indices[image].numpy()) for indices in reduction.choice.tensors)
            tokens, sizes = merged(x[image].double().numpy(), size[image, :, 0].double().numpy(), *choice)
            np.testing.assert_allclose(reduction.tokens[image], tokens, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(reduction.size[image, :, 0], sizes)

    def test_what_tokens_stand_for_is_conserved(self, method: str, plan: LayerPlan, sized: bool) -> None:
        layer, x = layer_of(method, plan, EMBED, HEADS), tokens_of(plan)
        taps = taps_for(layer, plan, sized=sized)
        reduction = layer(x, taps)
        size = torch.ones(BATCH, plan.tokens_in, 1) if taps.size is None else taps.size
        assert torch.equal(reduction.size.sum(1), size.sum(1))
        before, after = (size * x).sum(1), (reduction.size * reduction.tokens).sum(1)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)

    def test_whoever_gets_nothing_stays_as_it_is_bit_by_bit(self, method: str, plan: LayerPlan, sized: bool) -> None:
        layer, x = layer_of(method, plan, EMBED, HEADS), tokens_of(plan)
        taps = taps_for(layer, plan, sized=sized)
        reduction = layer(x, taps)
        for image in range(BATCH):
            kept, into = (ints(indices[image].numpy()) for indices in reduction.choice.tensors)
            alone = [slot for slot in range(plan.tokens_out) if slot not in into]
            assert set(range(plan.prefix_tokens)) <= set(alone)
            assert torch.equal(reduction.tokens[image, alone], x[image, [kept[slot] for slot in alone]])

    def test_attention_is_told_the_logarithm_of_the_sizes(self, method: str, plan: LayerPlan, sized: bool) -> None:
        layer = layer_of(method, plan, EMBED, HEADS)
        reduction = layer(tokens_of(plan), taps_for(layer, plan, sized=sized))
        assert reduction.bias.shape == (BATCH, 1, 1, plan.tokens_out)
        torch.testing.assert_close(reduction.bias[:, 0, 0].exp(), reduction.size[..., 0])

    def test_gradients_reach_each_token_by_its_share(self, method: str, plan: LayerPlan, sized: bool) -> None:
        layer, x = layer_of(method, plan, EMBED, HEADS), tokens_of(plan).requires_grad_()
        taps = taps_for(layer, plan, sized=sized)
        reduction = layer(x, taps)
        reduction.tokens.sum().backward()
        assert x.grad is not None
        size = torch.ones(BATCH, plan.tokens_in, 1) if taps.size is None else taps.size
        for image in range(BATCH):
            kept, into = (ints(indices[image].numpy()) for indices in reduction.choice.tensors)
            gone = [token for token in range(plan.tokens_in) if token not in kept]
            slot = dict(zip(kept, range(plan.tokens_out), strict=True)) | dict(zip(gone, into, strict=True))
            share = [size[image, token, 0] / reduction.size[image, slot[token], 0] for token in range(plan.tokens_in)]
            torch.testing.assert_close(x.grad[image], torch.tensor(share).unsqueeze(-1).expand(-1, EMBED))


class TestCost:
    @pytest.mark.parametrize("keep_ratio", [0.7, 0.4])
    def test_multiply_adds_of_pruning_layers_are_those_that_pytorch_counts(
        self, method: str, keep_ratio: float
    ) -> None:
        schedule = default_schedule(keep_ratio, DEIT_S, method=method)
        found, counted, width = plan(schedule, DEIT_S), 0, DEIT_S.embed_dim // DEIT_S.num_heads
        for one in found.layers:
            keys, queries = torch.randn(2, 1, DEIT_S.num_heads, one.tokens_in, width)
            attention, size = (queries @ keys.transpose(2, 3)).softmax(-1), torch.ones(1, one.tokens_in, 1)
            layer = layer_of(method, one, DEIT_S.embed_dim, DEIT_S.num_heads)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                layer(torch.randn(1, one.tokens_in, DEIT_S.embed_dim), BlockTaps(attention, keys, keys, size, queries))
            counted += counter.get_total_flops() // 2
        assert counted / 1e9 == pytest.approx(pruning_gmacs(DEIT_S, found, method), rel=0.02)


class TestTable:
    def test_an_unknown_method_is_refused_with_the_nearest_known_one(self) -> None:
        with pytest.raises(ScheduleError, match="did you mean 'zero-tprune'"):
            method_named("zerotprune")
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
    @models(list(METHODS))
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

    @models(list(METHODS))
    def test_the_blocks_see_the_planned_token_counts(self, method: str, name: str) -> None:
        model, seen, in_mlp = variant(name), [], []
        wrapped = pruned(model, method)
        for block in model.blocks:
            block.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[1]), prepend=True)
            block.mlp.register_forward_pre_hook(lambda _module, inputs: in_mlp.append(inputs[0].shape[1]))
        with torch.no_grad():
            output, *choices = wrapped(images(2))
        prefix = VARIANTS[name][1]
        assert tuple(seen) == wrapped.token_plan.tokens_per_block == (16 + prefix,) * 2 + (12 + prefix, 8 + prefix)
        behind = (*seen[1:], seen[-1])
        assert tuple(in_mlp) == (behind if METHODS[method].inside else tuple(seen))
        assert tuple(in_mlp) == wrapped.token_plan.mlp_tokens_per_block
        assert output.shape == (2, 7)
        assert output.isfinite().all()
        per_layer = 2 if method in MERGING else 1
        assert [tuple(indices.shape) for indices in choices[::per_layer]] == [(2, 12 + prefix), (2, 8 + prefix)]
        assert [tuple(indices.shape) for indices in choices[1::2]] == [(2, 4), (2, 4)] or method not in MERGING

    @models(ONLY_DROPPING)
    def test_it_is_the_model_cut_and_pruned_by_hand(self, method: str, name: str) -> None:
        """The blocks run one by one, the kept rows picked out between them."""
        model, tokens, output, kept = run_pruned(method, name)
        by_block = dict(zip((1, 2), kept, strict=True))
        with torch.no_grad():
            for index, block in enumerate(model.blocks):
                tokens = block(tokens)
                if index in by_block:
                    tokens = torch.stack([tokens[image][by_block[index][image]] for image in range(3)])
            expected = model.forward_head(model.norm(tokens))
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)

    @models(BY_SIZE)
    def test_it_is_the_model_cut_and_merged_by_hand(self, method: str, name: str) -> None:
        """The blocks run in two halves, with attention spelt out, and tokens merged by loops between or behind them."""
        model, tokens, output, choices = run_pruned(method, name)
        with torch.no_grad():
            expected = model.forward_head(model.norm(merged_by_hand(model, tokens, choices, method)))
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)

    def test_only_pruned_blocks_give_up_fused_attention_and_only_where_it_is_needed(self, method: str) -> None:
        model = tiny_vit(depth=6)
        assert all(block.attn.fused_attn for block in model.blocks)
        wrapped = pruned(model, method, LayerSpec(block=2, keep_ratio=0.7), LayerSpec(block=5, keep_ratio=0.7))
        needed = wrapped.layers[0].needs_attention
        assert [block.attn.fused_attn for block in model.blocks] == [True, not needed, True, True, not needed, True]

    @models(list(METHODS))
    def test_detach_leaves_the_model_as_it_was(self, method: str, name: str) -> None:
        model, x = variant(name), images(2)
        model.blocks[1].attn.fused_attn = False  # somebody's own choice, which is not ours to change
        before = fingerprint(model)
        parameters = {key: value.clone() for key, value in model.state_dict().items()}
        with torch.no_grad():
            expected = model(x)
            wrapped = pruned(model, method)
            assert fingerprint(model) != before
            assert hasattr(model.blocks[1], PRUNE)
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
        assert len(again) == (5 if method in MERGING else 3)
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
        for replay in (wrapped.replay(x), wrapped.replay(x, wrapped.replay(x).choices)):
            assert torch.equal(replay.output, output)
            told = [tensor for choice in replay.choices for tensor in choice.tensors]
            assert all(torch.equal(*pair) for pair in zip(told, kept, strict=True))
            assert len(replay.records) == 2
        with torch.no_grad():  # and it leaves nothing forced behind
            assert torch.equal(wrapped(images(3, seed=1))[0], wrapped(images(3, seed=1))[0])

    def test_replaying_another_choice_compares_each_layer_on_identical_input(self, method: str) -> None:
        """A first layer that is overruled changes what the second one sees, and so does the output."""
        model, x = tiny_vit(), images(3)
        wrapped = pruned(model, method)
        with torch.no_grad():
            output = wrapped(x)[0]
        first, second = wrapped.replay(x).choices
        other = torch.arange(17)[-12:]
        forced = torch.cat([torch.zeros(3, 1, dtype=torch.int64), other.expand(3, -1)], 1)
        assert not torch.equal(forced, first.kept)
        into = None if first.into is None else torch.tensor([[5, 2, 12, 5]]).expand(3, -1)
        replay = wrapped.replay(x, [Choice(forced, into), second])
        assert torch.equal(replay.choices[0].kept, first.kept)
        assert not torch.allclose(replay.output, output)

        wrapped.detach()
        if method not in (*ONLY_DROPPING, *BY_SIZE):
            return
        if into is not None:
            with torch.no_grad():
                tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
                tokens = merged_by_hand(model, tokens, [forced, into, *second.tensors], method)
                expected = model.forward_head(model.norm(tokens))
            torch.testing.assert_close(replay.output, expected, rtol=1e-4, atol=1e-4)
            return
        with torch.no_grad():
            tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
            tokens = model.blocks[1](model.blocks[0](tokens))[torch.arange(3)[:, None], forced]
            tokens = model.blocks[2](tokens)[torch.arange(3)[:, None], second.kept]
            expected = model.forward_head(model.norm(model.blocks[3](tokens)))
        torch.testing.assert_close(replay.output, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("method", [method for method in METHODS if METHODS[method].needs_class_token])
    def test_a_method_that_asks_the_class_token_refuses_a_model_without(self, method: str) -> None:
        for name in ("average-pool", "registers-only", "attention-pool"):
            model = variant(name)
            before = fingerprint(model)
            with pytest.raises(ScheduleError, match="without a class token"):
                pruned(model, method)
            assert fingerprint(model) == before

    def test_an_unknown_method_leaves_the_model_untouched(self) -> None:
        model = tiny_vit()
        before = fingerprint(model)
        with pytest.raises(ScheduleError):
            PrunedModel(VitAdapter(model, IMAGE_SIZE), schedule("zero-prune"))
        assert fingerprint(model) == before


def attention_by_hand(block: Any, x: Tensor, size: Tensor, coherence: Tensor, power: float = 0.5) -> Tensor:
    """The block's attention branch: `log(size)` is added to the logits of every key; incoherent tokens are shorter."""
    batch, tokens, width = x.shape
    qkv = block.attn.qkv(block.norm1(x) * coherence[..., None] ** power).view(batch, tokens, 3, 3, 16)
    query, key, value = (qkv[:, :, part].transpose(1, 2) for part in range(3))
    logits = block.attn.q_norm(query) @ block.attn.k_norm(key).transpose(-1, -2) / 16**0.5
    weights = (logits + size.log().view(batch, 1, 1, tokens)).softmax(-1)
    return block.ls1(block.attn.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, width)))


def merged_by_hand(
    model: Any, tokens: Tensor, choices: list[Tensor], method: str, options: MethodOptions = DEFAULT_OPTIONS
) -> Tensor:
    """What the blocks make of `[B, N, D]`, where the layers of blocks 1 and 2 merge as told."""
    by_block, size = {1: choices[:2], 2: choices[2:]}, torch.ones(tokens.shape[:2])
    coherence, coherent = torch.ones_like(size), "coherent" in METHODS[method].options
    for index, block in enumerate(model.blocks):
        update = coherence[..., None] ** options.update_power
        tokens = tokens + update * attention_by_hand(block, tokens, size, coherence, options.coherence_power)
        if METHODS[method].inside and index in by_block:
            tokens, size, coherence = all_merged(tokens, size, coherence, *by_block[index])
            update = torch.ones(())
        tokens = tokens + update * block.ls2(block.mlp(block.norm2(tokens)))
        if not METHODS[method].inside and index in by_block:
            tokens, size, coherence = all_merged(tokens, size, coherence, *by_block[index])
        coherence = coherence if coherent else torch.ones_like(size)
    return tokens


@pytest.mark.parametrize("powers", [(1.0, 0.0), (0.0, 0.5), (0.3, 1.0)])
def test_powers_of_coherence_are_those_of_what_enters_and_of_what_is_added(powers: tuple[float, float]) -> None:
    options = MethodOptions(coherence_power=powers[0], update_power=powers[1])
    model, x = tiny_vit(), images(3)
    wanted = schedule("novelty-merge").model_copy(update={"options": options})
    with PrunedModel(VitAdapter(model, IMAGE_SIZE), wanted) as wrapped, torch.no_grad():
        output, *choices = wrapped(x)
    with torch.no_grad():
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        tokens = merged_by_hand(model, tokens, choices, "novelty-merge", options)
        torch.testing.assert_close(output, model.forward_head(model.norm(tokens)), rtol=1e-4, atol=1e-4)


def all_merged(
    tokens: Tensor, size: Tensor, coherence: Tensor, kept: Tensor, into: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, sizes and coherence of every image after merging."""
    images = []
    for x, sizes, shares, *choice in zip(tokens, size, coherence, kept, into, strict=True):
        stay, slots = (ints(indices.numpy()) for indices in choice)
        averages, total = merged(x.numpy(), sizes.numpy(), stay, slots)
        lengths = np.linalg.norm(x.numpy(), axis=1, keepdims=True) / shares.numpy()[:, None]
        mean_length, _ = merged(lengths, sizes.numpy(), stay, slots)
        images.append((averages, total, np.linalg.norm(averages, axis=1) / mean_length[:, 0]))
    return tuple(torch.tensor(np.stack(parts), dtype=torch.float32) for parts in zip(*images, strict=True))  # type: ignore[return-value]


class TestBetweenAttentionAndMlp:
    """Blocks of another build cannot be reached there, and are refused before anything is changed."""

    def test_a_post_norm_block_is_refused_with_the_reason(self) -> None:
        model = tiny_vit(block_fn=ResPostBlock)
        before = fingerprint(model)
        with pytest.raises(ModelError, match="blocks of type ResPostBlock"):
            pruned(model, "tome")
        assert fingerprint(model) == before

    def test_dropping_behind_such_blocks_is_fine(self) -> None:
        with torch.no_grad():
            assert pruned(tiny_vit(block_fn=ResPostBlock), "zero-tprune")(images(2))[0].isfinite().all()

    def test_a_bias_of_the_callers_own_is_kept(self) -> None:
        """Attention adds up what the caller masks and what sizes ask for."""
        model, seen = tiny_vit(), []
        pruned(model, "tome")
        mask = torch.full((1, 1, 1, 12 + 1), 0.25)
        model.blocks[2].attn.register_forward_pre_hook(
            lambda _module, _inputs, options: seen.append(options["attn_mask"]), with_kwargs=True
        )
        model.blocks[2].register_forward_pre_hook(
            lambda _module, inputs, options: (inputs, {**options, "attn_mask": mask}), with_kwargs=True
        )
        with torch.no_grad():
            model(images(1))
        assert (seen[0] >= 0.25).all()
        assert (seen[0] > 0.25 + 0.6).any()  # log 2

    def test_drop_path_stays_what_it_is_in_training(self) -> None:
        model = tiny_vit(drop_path_rate=0.5).train()
        torch.manual_seed(0)
        output = pruned(model, "tome")(images(4))[0]
        output.square().sum().backward()
        assert output.isfinite().all()
        assert model.pos_embed.grad.isfinite().all()


class TestTaps:
    """The attention matrix, the keys and the values are those of the block that has just run."""

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

    def test_values_are_the_last_third_of_what_the_block_projects(self) -> None:
        model, seen = tiny_vit(), []
        wrapped = pruned(model, "ats")
        tokens_in: list[Tensor] = []
        wrapped.layers[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1].values))
        model.blocks[1].register_forward_pre_hook(lambda _module, inputs: tokens_in.append(inputs[0]))
        with torch.no_grad():
            wrapped(images(2))
            projected = model.blocks[1].attn.qkv(model.blocks[1].norm1(tokens_in[0]))
        heads = [projected[..., 2 * 48 + 16 * head : 2 * 48 + 16 * (head + 1)] for head in range(3)]
        torch.testing.assert_close(seen[0], torch.stack(heads, 1))

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


@pytest.mark.parametrize("method", METHODS)
def test_everything_is_computed_where_the_model_is(method):
    """A GPU that holds no data: an operator that is given tensors of two devices refuses them, as a real one does."""
    layers = [LayerSpec(block=2, keep_ratio=0.7, iterations=1)] if method == "tome" else []
    model = pruned(tiny_vit(), method, *layers)
    with FakeTensorMode(), torch.no_grad():
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))
        pixels = torch.empty(2, 3, IMAGE_SIZE, IMAGE_SIZE, device="cuda")
        assert {output.device.type for output in model(pixels)} == {"cuda"}
        replay = model.replay(pixels)
        assert {gap.device.type for record in replay.records for gap in record.gaps.values()} <= {"cuda"}
